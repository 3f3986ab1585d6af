from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tests.foreign.made import people, same, saved, searched, table
from uda_reid.errors import DataError, RecipeError
from uda_reid.foreign import Search, read_rows, read_search, score_features


def test_two_files_and_a_table_without_splits_are_queries_then_gallery(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    found = read_search([query, gallery], ids)
    same(found, search)
    assert found.query_rows is not None and found.query_rows.tolist() == list(range(12))
    assert found.query_names[:2] == ("1", "2")


def test_two_files_take_their_rows_from_the_splits_in_order(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    lines = ids.read_text().splitlines()
    mine, theirs = lines[1:13], lines[13:]
    mixed = [f"{line},gallery" for line in theirs[:5]] + [f"{line},query" for line in mine]
    mixed += [",,train", *(f"{line},gallery" for line in theirs[5:])]
    ids.write_text("\n".join(["identity,camera,split", *mixed]))
    found = read_search([query, gallery], ids)
    same(found, search)
    assert found.notes == ("rows left out: 1 of split train",)


@pytest.mark.parametrize("mixed", [False, True])
def test_one_file_is_told_apart_by_the_splits(tmp_path: Path, mixed: bool) -> None:
    features, pids, cams = people()
    splits = np.array(["train"] * 20 + ["query"] * 10 + ["gallery"] * 30)
    order = np.random.default_rng(0).permutation(60) if mixed else np.arange(60)
    splits = splits[order]
    np.save(tmp_path / "x.npy", features.numpy())
    rows = zip(splits, pids, cams, strict=True)
    ids = table(tmp_path, "\n".join(["split,pid,cam", *(",".join(map(str, row)) for row in rows)]))
    found = read_search([tmp_path / "x.npy"], ids)
    query, gallery = splits == "query", splits == "gallery"
    same(found, Search(features[query], features[gallery], pids[query], pids[gallery], cams[query], cams[gallery]))
    assert found.query_rows is not None and found.query_rows.tolist() == np.flatnonzero(query).tolist()
    assert found.notes == ("rows left out: 20 of split train",)


def test_row_numbers_put_the_lines_in_the_order_of_the_features(tmp_path: Path) -> None:
    search = searched()
    query, gallery, ids = saved(tmp_path, search)
    lines = ids.read_text().splitlines()[1:]
    numbered = [f"{row},{line}" for row, line in enumerate(lines)]
    ids.write_text("\n".join(["row,identity,camera", *reversed(numbered)]))
    same(read_search([query, gallery], ids), search)


def test_matlab_file_needs_no_table(tmp_path: Path) -> None:
    search = searched()
    result = {"query_f": search.query.numpy(), "query_label": search.query_pids.tolist()}
    result |= {"gallery_f": search.gallery.numpy(), "gallery_label": search.gallery_pids.tolist()}
    assert search.query_cams is not None and search.gallery_cams is not None
    result |= {"query_cam": search.query_cams.tolist(), "gallery_cam": search.gallery_cams.tolist()}
    savemat(tmp_path / "pytorch_result.mat", result)
    same(read_search([tmp_path / "pytorch_result.mat"]), search)
    features, known = read_rows(tmp_path / "pytorch_result.mat")
    assert torch.equal(features, torch.cat([search.query, search.gallery]))
    assert known is not None and known.pids.tolist() == [*search.query_pids, *search.gallery_pids]
    with pytest.raises(RecipeError, match=r"pytorch_result\.mat holds its own labels; leave out --ids$"):
        read_search([tmp_path / "pytorch_result.mat"], tmp_path / "ids.csv")
    with pytest.raises(DataError, match=r"holds queries and a gallery with their labels; give it alone, without a sec"):
        read_search([tmp_path / "pytorch_result.mat"] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_cam": None}, "there is no query_cam in it; it has to hold query_f, query_label, query_cam, gallery_f"),
        ({"query_label": [1]}, "query_f holds 2 rows but query_label 1"),
        ({"gallery_cam": [1]}, "2 gallery labels but 1 cameras; one of each per row is needed"),
        ({"gallery_f": np.ones((2, 4))}, "x.mat: query_f has 3 dimensions, gallery_f 4"),
        ({"gallery_f": np.ones((2, 3), int)}, "x.mat: gallery_f holds int64; features are"),
        ({"query_f": np.full((2, 3), np.nan)}, "x.mat: query_f: row 0 holds NaN or infinity (2 of 2 rows do)"),
        ({"gallery_label": ["a", "b"]}, "the gallery labels are <U1; whole numbers are needed"),
        ({"gallery_label": [1, -2]}, "a label is below -1 or a camera below 0"),
    ],
)
def test_unusable_matlab_file_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    result = {f"{part}_{what}": [1, 2] for part in ("query", "gallery") for what in ("label", "cam")}
    result |= {"query_f": np.ones((2, 3)), "gallery_f": np.ones((2, 3)), **change}  # type: ignore[dict-item]
    savemat(tmp_path / "x.mat", {name: value for name, value in result.items() if value is not None})
    with pytest.raises(DataError) as error:
        read_search([tmp_path / "x.mat"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is truncated or no MATLAB file ("),
        (b"", "is truncated or no MATLAB file ("),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "is a MATLAB 7.3 file, which is not read"),
    ],
)
def test_what_is_no_matlab_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_search([tmp_path / "x.mat"])


def test_rows_that_mean_something_else_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.eye(3, dtype=np.float32))
    np.save(tmp_path / "g.npy", 2 * np.eye(3, dtype=np.float32))
    both = [tmp_path / "q.npy", tmp_path / "g.npy"]
    found = read_search(both, table(tmp_path, "pid,cam\n-1,1\n0,1\n1,2\n0,2\n1,1\n-1,2\n"))
    assert found.query_pids.tolist() == [1, 2]
    assert found.query_rows is not None and found.query_rows.tolist() == [1, 2]
    assert found.gallery_pids.tolist() == [1, 2, -1]
    assert torch.equal(found.query, torch.eye(3)[1:])
    assert found.notes == (
        "1 query of identity -1 (junk) left out",
        "identities count from 0, where 0 means a distractor in a gallery: 1 was added to each",
    )
    single = read_search(both, table(tmp_path, "pid,cam\n" + "3,1\n" * 5 + "4,1\n"))
    assert single.query_cams is single.gallery_cams is None
    assert single.notes == ("all rows are from one camera, so cameras count as unknown",)
    unknown = read_search(both, table(tmp_path, "pid\n" + "3\n" * 6))
    assert unknown.query_cams is None
    assert unknown.notes == (
        "the gallery shows one person only, so no answer is wrong, and the numbers say nothing",
        "no camera is given, so matches of the query's own camera cannot be removed",
    )


def test_queries_that_are_in_the_gallery_too_are_counted_where_nothing_removes_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    np.save(tmp_path / "q.npy", rows[:3])
    np.save(tmp_path / "g.npy", rows)
    both = [tmp_path / "q.npy", tmp_path / "g.npy"]
    # The third query's copy is said to be somebody else.
    found = read_search(both, table(tmp_path, "pid\n" + "\n".join("123128456")))
    assert score_features(found).notes[1:2] == (
        "2 queries are in the gallery too, row for row, and every such query finds itself; leave the queries out of it",
    )
    cams = "pid,cam\n1,1\n2,1\n3,1\n1,1\n2,1\n8,1\n1,2\n2,2\n3,2\n"
    found = read_search(both, table(tmp_path, cams))
    assert "row for row" in str(score_features(found, protocol="any-camera").notes)
    assert "row for row" not in str(score_features(found, protocol="market").notes)  # which removes them
    rows[1:3] = rows[0]
    np.save(tmp_path / "q.npy", rows[:3])
    thrice = read_search(both, table(tmp_path, "pid\n" + "\n".join("111111456")))
    assert score_features(thrice).notes[1].startswith("3 queries are in")


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("pid,cam\n" + "1,1\n" * 5, "q g", "q.npy and {}g.npy hold 2 + 4 rows but {}ids.csv lists 5; write one line"),
        (
            "pid,cam,split\n" + "1,1,query\n" * 3 + "1,2,gallery\n" * 4, "q g",
            "q.npy holds 2 rows but {}ids.csv lists 3 of split query; write one line for each row",
        ),
        ("pid,cam,split\n" + "1,1,query\n" * 2 + "1,2,gallery\n", "q g", "g.npy holds 4 rows but"),
        ("pid,cam\n" + "1,1\n" * 4, "g", "ids.csv: no column split; {}g.npy is to hold queries and gallery, so write"),
        ("pid,split\n" + "1,query\n" * 3, "g", "g.npy holds 4 rows but {}ids.csv lists 3; write one line for each row"),
        ("pid,split\n" + "1,query\n" * 4, "g", "ids.csv: no row of split gallery; there are query (4); write quer"),
        (
            "pid,split\n1,query\n1,gallery\n1,galery\n1,\n", "g",
            "ids.csv:4: split 'galery' is unknown; did you mean 'gallery'?",
        ),
        ("pid,cam\n" + "1,1\n" * 5 + ",1\n", "q g", "ids.csv:7: identity is blank; every gallery row needs one"),
        ("pid,cam\n" + "1,1\n" * 5 + "1,\n", "q g", "ids.csv:7: camera is blank here but given elsewhere; fill in all"),
        ("pid,cam\n" + "-1,1\n" * 6, "q g", "ids.csv: every query is junk (-1); give the queries their identities"),
        ("pid,cam\n" + "1,1\n" * 6, "q wide", "q.npy has 3 dimensions, {}wide.npy 5; queries and gallery must come"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_line(tmp_path: Path, text: str, names: str, message: str) -> None:
    for name, shape in (("q", (2, 3)), ("g", (4, 3)), ("wide", (4, 5))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
    with pytest.raises(DataError) as error:
        read_search([tmp_path / f"{name}.npy" for name in names.split()], table(tmp_path, text))
    assert message.replace("{}", f"{tmp_path}/") in str(error.value)


def test_features_need_a_table_and_are_one_file_or_two(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    one = tmp_path / "x.npy"
    for several in ([one], [one, one]):
        with pytest.raises(
            RecipeError, match=r"x\.npy: whose images are these\? give a table of identities with --ids"
        ):
            read_search(several)
    with pytest.raises(RecipeError, match=r"^3 files of features; give the queries' and the gallery's, or one with bo"):
        read_search([one] * 3, tmp_path / "ids.csv")
