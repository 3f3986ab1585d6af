from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import touch
from uda_reid.data.layouts import read
from uda_reid.data.layouts.tokens import MISSING
from uda_reid.errors import DataError
from uda_reid.foreign.ids import read_ids

COLUMNS = [
    ["1", "2", "2", "1"], ["001", "1", "2", "02"], ["7.0", "7", "0007", "8.0"], ["-1", "3", "0", "4"],
    ["anna", "ben", "0000", "-1"], ["anna", "ben", "0.0", "-1.0"], ["1e+00", "1", "2", "2"],
]  # fmt: skip
REFUSED = [["1", "six", "001", "2"], ["-2", "1", "1", "2"], ["anna", "7", "ben", "anna"], ["nan", "1", "2", "1"]]


def both(folder: Path, column: list[str]) -> tuple[list[int], list[int]]:
    """Return the identities that a data set's table and a table beside features make of the same texts."""
    touch(folder / "own", [f"{place}.jpg" for place in range(len(column))])
    lines = [f"{place}.jpg,{text},gallery" for place, text in enumerate(column)]
    person = "anna" if "anna" in column else "2"
    lines += [f"q.jpg,{person},query", f"t.jpg,{person},train"]
    touch(folder / "own", ["q.jpg", "t.jpg"])
    (folder / "own" / "manifest.csv").write_text("\n".join(["path,identity,split", *lines]))
    domain = read("own", folder)
    (folder / "ids.csv").write_text("\n".join(["identity", *(line.split(",")[1] for line in lines)]))
    return domain.gallery.pids.tolist(), read_ids(folder / "ids.csv").pids[: len(column)].tolist()


@pytest.mark.parametrize("column", COLUMNS)
def test_both_tables_read_identities_alike(column: list[str], tmp_path: Path) -> None:
    one, other = both(tmp_path, column)
    assert one == other


@pytest.mark.parametrize("column", REFUSED)
def test_both_tables_refuse_alike(column: list[str], tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("\n".join(["identity", *column]))
    touch(tmp_path / "own", [f"{place}.jpg" for place in range(len(column))])
    lines = [f"{place}.jpg,{text}" for place, text in enumerate(column)]
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(["path,identity", *lines]))
    messages = []
    for reading in (lambda: read("own", tmp_path), lambda: read_ids(tmp_path / "ids.csv")):
        with pytest.raises(DataError) as raised:
            reading()
        messages.append(str(raised.value).partition(".csv")[2])
    assert messages[0] == messages[1]


@pytest.mark.parametrize("column", ["path", "identity", "camera", "split"])
@pytest.mark.parametrize("text", ["nan", "NaN", "<NA>", "None", "NULL"])
def test_what_pandas_writes_for_nothing_is_no_name(column: str, text: str, tmp_path: Path) -> None:
    assert text in MISSING
    names = ["path", "identity", "camera", "split"]
    rows = [["a.jpg", "anna", "door", "train"], ["b.jpg", "ben", "hall", "query"], ["c.jpg", "ben", "door", "gallery"]]
    rows[1][names.index(column)] = text
    touch(tmp_path / "own", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(map(",".join, [names, *rows])))
    with pytest.raises(DataError, match=rf"manifest.csv:3: {column} '{text}' stands for a missing value; write"):
        read("own", tmp_path)
    if column != "path":
        (tmp_path / "ids.csv").write_text("\n".join(map(",".join, [names[1:], *(row[1:] for row in rows)])))
        with pytest.raises(DataError, match=rf"ids.csv:3: {column} '{text}' stands for a missing value; write"):
            read_ids(tmp_path / "ids.csv")
