"""Your own data by a table: `manifest.csv` with the columns path, identity, camera and split."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from uda_reid.cells import plain
from uda_reid.data.layouts.files import Presence, file_called
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.tokens import check_written
from uda_reid.errors import DataError
from uda_reid.options import one_line
from uda_reid.reading import open_text

MANIFEST = "manifest.csv"
COLUMNS = ("path", "identity", "camera", "split")
_MEANT = {
    "identity": re.compile(r"(p|person)?[-_ ]?(ids?|identifiers?|identities|labels?|person)", re.ASCII),
    "camera": re.compile(r"(cam|camera|camera[-_ ]?names?)s?([-_ ]?(ids?|no|numbers?|index))?", re.ASCII),
    "split": re.compile(r"(sub|data)?[-_ ]?sets?|splits|partition|part|phase|fold", re.ASCII),
}
"""Headers that mean a column that may be absent: what it says would be lost without a word, so a slip must not pass."""


def read_manifest(folder: Path) -> Parts:
    """Read the data set that `folder/manifest.csv` lists.

    The column `path` (relative to the folder, or absolute) is needed, `camera` and `split` may be absent or blank
    throughout; other columns are ignored, with a note. `identity` may be absent or blank for all training images,
    which then can be adapted to only. Labels are numbered as in `labels.arrange`.

    Raises:
        DataError: a column is missing, a value is blank, out of range or given for some images only, a file
            does not exist or is listed twice; the message names file and line.
    """
    file = find_manifest(folder) or folder / MANIFEST
    rows: list[Row] = []
    lines: dict[Path, str] = {}
    notes: list[str] = []
    present = Presence()
    for where, values in _lines(file, notes):
        row = _row(folder, where, values, present)
        if row.path in lines:
            raise DataError(f"{where}: {values['path']} is listed already in {lines[row.path]}; list every image once")
        lines[row.path] = where
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: lists no image; write one line for each under the header {','.join(COLUMNS)}")
    _check_filled("split", rows)
    unlabelled = [row for row in rows if not row.identity]
    for part in (unlabelled, [row for row in rows if row.identity]):
        _check_filled("camera", part)
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def find_manifest(folder: Path) -> Path | None:
    """Return the table in a folder, in whatever case its name is spelt, or nothing."""
    # Also a pipe, or a link to nothing: the owner meant it to be read.
    if (folder / MANIFEST).is_file() or os.path.lexists(folder / MANIFEST):
        return folder / MANIFEST
    return file_called(folder, MANIFEST) if folder.is_dir() else None


def _check_filled(column: str, rows: list[Row]) -> None:
    blank = [row for row in rows if not getattr(row, column)]
    if blank and len(blank) < len(rows):
        raise DataError(f"{blank[0].where}: {column} is blank here but given elsewhere; fill in all or none")


def _lines(file: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the values of every line under the header; note the columns that are ignored."""
    try:
        # Spreadsheets put a byte-order mark in front of the header; utf-8-sig takes it off.
        with open_text(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_header(file, header)
            ignored = [name for name in header if name and name not in COLUMNS]
            if ignored:
                notes.append(f"columns of {file.name} that are ignored: {', '.join(ignored)}")
            for cells in reader:
                where = f"{file}:{reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} values under {len(header)} columns; quote inner commas")
                values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
                for name in values.keys() - {"path"}:  # the name of a file may be of any bytes
                    values[name].encode("utf-8")
                yield where, {name: plain(cell) for name, cell in values.items()}
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); put the table there, or remove it") from error
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV text in UTF-8 ({error})") from error


def _check_header(file: Path, header: list[str]) -> None:
    found = ",".join(header) or "nothing"
    if "path" not in header:
        split = ";" in found or "\t" in found
        hint = "; put commas between the columns" if split else ""
        raise DataError(f"{file}:1: no column path; the header is {found}, write {','.join(COLUMNS)}{hint}")
    doubled = next((name for name in header if name and header.count(name) > 1), "")
    if doubled:
        raise DataError(f"{file}:1: the column {doubled} is there twice; the header is {found}, leave one of the two")
    for column, pattern in _MEANT.items():
        others = [name for name in header if name not in COLUMNS]
        meant = [name for name in others if pattern.fullmatch(name)] or get_close_matches(column, others, cutoff=0.8)
        if column not in header and meant:
            blank = ", with identity left blank where nobody knows it" if column == "identity" else ""
            raise DataError(
                f"{file}:1: no column {column}; the header is {found}, write {','.join(COLUMNS)}{blank}; "
                f"if {meant[0]} means something else give it another name"
            )


def _row(folder: Path, where: str, values: dict[str, str], present: Presence) -> Row:
    if not values["path"]:
        raise DataError(f"{where}: path is blank; every image needs one")
    for column in COLUMNS:
        check_written(values.get(column, ""), column, where)
    split = values.get("split", "").casefold()
    if split and split not in SPLITS:
        raise DataError(f"{where}: split {split!r} is unknown; use {', '.join(SPLITS)}")
    path = folder / values["path"]
    try:
        there = path in present
    except OSError as error:
        raise DataError(f"{where}: {one_line(path)} cannot be read ({error.strerror})") from error
    if not there and any("\udc80" <= sign <= "\udcff" for sign in values["path"]):
        raise DataError(f"{where}: there is no file {one_line(path)}, and the table is not in UTF-8; save it as UTF-8")
    if not there:
        hint = "write / between folders" if "\\" in values["path"] else "paths are relative to the manifest's folder"
        raise DataError(f"{where}: there is no file {path}; {hint}")
    return Row(path, values.get("identity", ""), values.get("camera", ""), split, where)


TABLE = Layout(
    f"a table ({MANIFEST})",
    f"a {MANIFEST}",
    recognises=lambda folder: find_manifest(folder) is not None,
    read=lambda folder, split: read_manifest(folder),
)
