from __future__ import annotations

from pathlib import Path

import pytest

from tests.foreign.made import table
from uda_reid.errors import DataError
from uda_reid.foreign import read_ids


@pytest.mark.parametrize("identity", ["identity", "pid", "ID", "person", "Label"])
@pytest.mark.parametrize("camera", ["camera", "cam", "camid", "Camera ID"])
def test_columns_have_the_names_that_toolkits_use(tmp_path: Path, identity: str, camera: str) -> None:
    found = read_ids(table(tmp_path, f"\ufeff{camera}, {identity}\n\n3,0007\n2,-1\n4.0,12.0\n"))
    assert found.pids.tolist() == [7, -1, 12]
    assert found.cams.tolist() == [3, 2, 4]
    assert found.lines.tolist() == [3, 4, 5]
    assert list(found.names) == ["0007", "-1", "12.0"]
    assert found.notes == ()


def test_text_is_numbered_and_junk_and_distractors_keep_their_meaning(tmp_path: Path) -> None:
    found = read_ids(table(tmp_path, "id,cam,colour\nben,hall,red\n0000,door,\n-1,,\nanna,hall,\n"))
    assert found.pids.tolist() == [2, 0, -1, 1]
    assert found.cams.tolist() == [2, 1, -1, 2]
    assert found.notes == (
        "columns of ids.csv that are ignored: colour",
        "2 identities written as text and numbered from 1 (-1 stays junk, 0 a distractor)",
    )


def test_rows_may_be_numbered_in_any_order(tmp_path: Path) -> None:
    found = read_ids(
        table(tmp_path, "row,split,path,identity,camera,tracklet\n2,Query,a,7,1,\n0,train,b,,,\n1,gallery,c,8,2,\n")
    )
    assert found.pids.tolist() == [-2, 8, 7]
    assert found.cams.tolist() == [-1, 2, 1]
    assert list(found.splits) == ["train", "gallery", "query"]
    assert found.where(2) == f"{tmp_path / 'ids.csv'}:2"
    assert found.notes == ()


@pytest.mark.parametrize("junk", ["-1", "-1.0", "-1.000000000000000000e+00", "-1."])
def test_numbers_are_the_same_however_they_are_written(tmp_path: Path, junk: str) -> None:
    found = read_ids(table(tmp_path, f"pid,cam\n{junk},1.0e+00\n0.0e+00,1\n1.200000000000000000e+01,+2\n0012,2.0\n"))
    assert found.pids.tolist() == [-1, 0, 12, 12]
    assert found.cams.tolist() == [1, 1, 2, 2]
    assert found.notes == ()
    long = read_ids(table(tmp_path, "pid\n9223372036854775807\n0000000000000000000007\n"))
    assert long.pids.tolist() == [(1 << 63) - 1, 7]
    digits = read_ids(table(tmp_path, "pid,cam\nab12,0e1\n0e12,0e2\n00e5,0e3\n"))
    assert sorted(digits.pids.tolist()) == sorted(digits.cams.tolist()) == [1, 2, 3]
    named = read_ids(table(tmp_path, f"pid\n{junk}\nanna\n0.0\nben\n"))
    assert named.pids.tolist() == [-1, 1, 0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pid\n7\n8\ndistractor\n", "ids.csv:4: identity 'distractor' beside '7'; write whole numbers for all, or"),
        ("pid\n7\n7.5\n8\n", "ids.csv:3: identity '7.5' beside '7'; write whole numbers"),
        ("pid\n7\nnan\n8\n", "ids.csv:3: identity 'nan' stands for a missing value; write whose image it is"),
        ("pid\n7\n12345678901234567890\n8\n", "ids.csv:3: identity '12345678901234567890' beside '7'"),
        ("pid\nanna\nben\n7\n", "ids.csv:4: identity '7' beside 'anna'; write whole numbers for all, or names for all"),
        ("pid,cam\n1,hall\n1,door\n1,2\n", "ids.csv:4: camera '2' beside 'door'; write whole numbers for all, or"),
        ("pid,cam\n1,hall\n1,-1\n", "ids.csv:2: camera 'hall' beside '-1'"),
        ("", "ids.csv:1: no column identity; the header is nothing, write identity,camera,split"),
        ("name,camera\n1,1\n", "ids.csv:1: no column identity; the header is name,camera, write"),
        (
            "pid;cam\n1;1\n",
            "the header is pid;cam, write identity,camera,split, of which only identity is needed; put c",
        ),
        ("identiy,cam\n1,1\n", "ids.csv:1: no column identity; the header is identiy,cam, call identiy identity"),
        ("pid\tcam\n1\t1\n", "put commas between the columns"),
        ("identity,camera\n", "ids.csv: lists nothing; write one line for each row of features"),
        ("pid,label\n1,1\n", "ids.csv:1: the column identity is there twice, as pid and label; leave one of the two"),
        (
            "pid,camera_name\n1,1\n",
            "no column camera; the header is pid,camera_name, write camera; if camera_name means",
        ),
        ("pid,subset\n1,1\n", "no column split; the header is pid,subset, write split"),
        ("pid,index\n1,0\n", "no column row; the header is pid,index, write row"),
        ("pid,cam\n1\n", "ids.csv:2: 1 values under 2 columns; quote inner commas"),
        ("pid\n1\n-2\n", "ids.csv:3: identity -2 is negative; only -1 may be, for junk"),
        ("pid,cam\n1,-3\n", "ids.csv:2: camera -3 is negative; count cameras from 0 or 1, blank is unknown"),
        ("pid,row\n1,0\n1,2\n", "ids.csv:3: row '2' is none of 2 counted from 0; number all or none"),
        ("pid,row\n1,0\n1,\n", "ids.csv:3: row '' is none of 2 counted from 0"),
        ("pid,row\n1,1\n1,1\n", "ids.csv:3: row 1 is there already in line 2; number every row once"),
    ],
)
def test_unusable_table_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_ids(table(tmp_path, text))
    assert message in str(error.value)


def test_table_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_bytes("identity\njosé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"^.*ids\.csv: cannot be read as CSV text in UTF-8 \("):
        read_ids(tmp_path / "ids.csv")
