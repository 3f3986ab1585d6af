"""Whose image each row of features is: the table of identities, cameras and splits beside them."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uda_reid.cells import plain
from uda_reid.data.layouts.labels import count
from uda_reid.data.layouts.tokens import cameras as read_cameras
from uda_reid.data.layouts.tokens import check_written, identities, whole
from uda_reid.errors import DataError
from uda_reid.foreign.files import check_file
from uda_reid.reading import open_text
from uda_reid.types import DISTRACTOR, JUNK, Ids

Texts = npt.NDArray[np.object_]

COLUMNS = {
    "identity": ("identity", "pid", "id", "person", "label"),
    "camera": ("camera", "cam", "camid", "camera_id"),
    "split": ("split",),
    "row": ("row",),
}
"""What each column may be called."""
BESIDE = ("path", "tracklet")
"""Columns that `embed` writes and nothing here needs."""
HEADER = "identity,camera,split"
NONE: Texts = np.empty(0, dtype=object)
_MEANT = {
    "camera": re.compile(r"cam.*"),
    "split": re.compile(r"(sub|data)?_?sets?|splits|partition|part|phase|fold"),
    "row": re.compile(r"rows?_?(ids?|no|numbers?|index)?|index"),
}
"""Headers that mean a column that may be absent: what it says would be lost without a word, so a slip must not pass."""


@dataclass(frozen=True)
class IdTable:
    """What is known of N rows of features.

    Args:
        file: where it comes from, for messages.
        pids: (N,) int64; `JUNK` and `DISTRACTOR` keep their meaning, `UNKNOWN` where no identity is written.
        cams: (N,) int64, `UNSEEN` where no camera is written.
        splits: (N,) texts in lower case, or empty where there is no such column.
        names: (N,) identities as they are written.
        cameras: (N,) cameras as they are written, or empty where there is no such column.
        lines: (N,) line of the file.
        notes: what was unusual, one line each.
    """

    file: str
    pids: Ids
    cams: Ids
    splits: Texts
    names: Texts
    cameras: Texts
    lines: Ids
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.pids)

    def where(self, row: int) -> str:
        """Return the file and line of a row."""
        return f"{self.file}:{self.lines[row]}"


def read_ids(path: Path) -> IdTable:
    """Read the table of identities, CSV text in UTF-8 with a header.

    The column `identity` (or pid, id, person, label) is needed. `camera` (cam, camid, camera_id) and `split` may be
    absent. Lines stand in the order of the features' rows, unless a column `row` numbers them from 0.

    Whole numbers, however they are written (7, 0007, 7.0, 7e+00), stay as they are; in a column of names, these are
    numbered from 1 in sorted order. Among names, an identity of -1 is still junk and one of 0 a distractor.

    Raises:
        DataError: the file cannot be read, a column is missing or there twice, or a value is out of range; the message
            names file and line.
    """
    check_file(path)
    notes: list[str] = []
    columns, at = _columns(path, notes)
    order = _order(path, columns["row"], at) if "row" in columns else np.arange(len(at))
    pids = _identities(path, columns["identity"], at, notes)[order]
    seen = columns.get("camera", np.full(len(at), "", dtype=object))
    cams = read_cameras(seen, lambda row: f"{path}:{at[row]}")[order]
    splits = np.array([text.lower() for text in columns["split"]], dtype=object)[order] if "split" in columns else NONE
    cameras = columns["camera"][order] if "camera" in columns else NONE
    return IdTable(str(path), pids, cams, splits, columns["identity"][order], cameras, at[order], tuple(notes))


def from_arrays(file: str, parts: Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]) -> IdTable:
    """Return the table of parts whose identities and cameras are arrays.

    Args:
        file: where they come from.
        parts: of each, the name of its split, its identities and its cameras.

    Raises:
        DataError: they are not whole numbers, equally many, in range.
    """
    columns: list[list[Any]] = [[], [], []]
    for split, pids, cams in parts:
        if len(pids) != len(cams):
            raise DataError(
                f"{file}: {len(pids)} {split} labels but {len(cams)} cameras; one of each per row is needed"
            )
        for values, what in ((pids, "labels"), (cams, "cameras")):
            if values.dtype.kind not in "iuf" or (values != np.rint(values)).any():
                raise DataError(f"{file}: the {split} {what} are {values.dtype}; whole numbers are needed")
        columns[0].append(np.full(len(pids), split, dtype=object))
        columns[1].append(pids.astype(np.int64))
        columns[2].append(cams.astype(np.int64))
    splits, pids, cams = (np.concatenate(column) for column in columns)
    if pids.min(initial=0) < JUNK or cams.min(initial=0) < 0:
        raise DataError(f"{file}: a label is below -1 or a camera below 0; count both from 0 or 1, -1 is junk")
    names, cameras = (column.astype(str).astype(object) for column in (pids, cams))
    return IdTable(file, pids, cams, splits, names, cameras, np.arange(len(pids)))


class _Header(NamedTuple):
    """The columns of a table by place, and the names of the others."""

    places: dict[str, int]
    others: list[str]
    width: int


def _columns(path: Path, notes: list[str]) -> tuple[dict[str, Texts], Ids]:
    """Return the columns that mean something, and the line of each of their values; note the columns that do not."""
    lines: list[int] = []
    columns: dict[str, list[str]] = {}
    try:
        # Spreadsheets put a byte-order mark in front of the header; utf-8-sig takes it off.
        with open_text(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream)
            header = _header(path, next(reader, []))
            if header.others:
                notes.append(f"columns of {path.name} that are ignored: {', '.join(header.others)}")
            columns = {name: [] for name in header.places}
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != header.width:
                    where = f"{path}:{reader.line_num}"
                    raise DataError(f"{where}: {len(cells)} values under {header.width} columns; quote inner commas")
                lines.append(reader.line_num)
                for name, place in header.places.items():
                    columns[name].append(sys.intern(_read(cells[place])))
                    check_written(columns[name][-1], name, f"{path}:{reader.line_num}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV text in UTF-8 ({error}); save it as UTF-8") from error
    if not lines:
        raise DataError(f"{path}: lists nothing; write one line for each row of features under {HEADER}")
    return {name: np.array(values, dtype=object) for name, values in columns.items()}, np.array(lines)


def _read(cell: str) -> str:
    """Return a cell's text; the names of image files, which may be of any bytes, are in no column that is read."""
    cell.encode("utf-8")
    return plain(cell.strip())


def _header(path: Path, cells: list[str]) -> _Header:
    names = [re.sub(r"[- ]", "_", cell.strip().lower()) for cell in cells]
    found = ",".join(names) or "nothing"
    places: dict[str, int] = {}
    for column, aliases in COLUMNS.items():
        there = [place for place, name in enumerate(names) if name in aliases]
        if len(there) > 1:
            doubled = " and ".join(names[place] for place in there)
            raise DataError(f"{path}:1: the column {column} is there twice, as {doubled}; leave one of the two")
        if there:
            places[column] = there[0]
    others = [name for name in names if name and not any(name in aliases for aliases in COLUMNS.values())]
    if "identity" not in places:
        hint = "; put commas between the columns" if ";" in found or "\t" in found else ""
        close = get_close_matches("identity", others, n=1, cutoff=0.7) or [""]
        call = f"call {close[0]} identity" if close[0] else f"write {HEADER}, of which only identity is needed"
        raise DataError(f"{path}:1: no column identity; the header is {found}, {call}{hint}")
    for column, pattern in _MEANT.items():
        meant = [name for name in others if pattern.fullmatch(name)] or get_close_matches(column, others, cutoff=0.8)
        if column not in places and meant:
            rest = f"write {column}; if {meant[0]} means something else give it another name"
            raise DataError(f"{path}:1: no column {column}; the header is {found}, {rest}")
    return _Header(places, [name for name in others if name not in BESIDE], len(cells))


def _order(path: Path, texts: Texts, lines: Ids) -> Ids:
    """Return which line tells of each row of the features."""
    first: dict[int, int] = {}
    for place, text in enumerate(texts):
        row, where = whole(text), f"{path}:{lines[place]}"
        if row is None or not 0 <= row < len(texts):
            raise DataError(f"{where}: row {text!r} is none of {len(texts):,} counted from 0; number all or none")
        if row in first:
            raise DataError(f"{where}: row {row} is there already in line {lines[first[row]]}; number every row once")
        first[row] = place
    return np.array([first[row] for row in range(len(texts))])


def _identities(path: Path, texts: Texts, lines: Ids, notes: list[str]) -> Ids:
    pids, named = identities(texts, lambda row: f"{path}:{lines[row]}")
    if named:
        special = " (-1 stays junk, 0 a distractor)" if np.isin(pids, (JUNK, DISTRACTOR)).any() else ""
        notes.append(f"{count(named, 'identity', 'identities')} written as text and numbered from 1{special}")
    return pids
