"""Your own data by a table: `manifest.csv` with the columns path, identity, camera and split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.errors import DataError

MANIFEST = "manifest.csv"
COLUMNS = ("path", "identity", "camera", "split")
_MEANT = re.compile(r"(p|person)?[-_ ]?(ids?|identifiers?|identities|labels?|person)", re.ASCII)
"""Headers that mean the column `identity`: without it images count as unlabelled, so a slip must not pass."""


def read_manifest(folder: Path) -> Parts:
    """Read the data set that `folder/manifest.csv` lists.

    The column `path` (relative to the folder, or absolute) is needed, `camera` and `split` may be absent or blank
    throughout; other columns are ignored. `identity` may be absent or blank for all training images, which then can
    be adapted to only. Labels are numbered as in `labels.arrange`.

    Raises:
        DataError: a column is missing, a value is blank, out of range or given for some images only, a file
            does not exist or is listed twice; the message names file and line.
    """
    file = folder / MANIFEST
    rows: list[Row] = []
    lines: dict[Path, str] = {}
    for where, values in _lines(file):
        row = _row(folder, where, values)
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
    return arrange(rows, folder=folder)


def _check_filled(column: str, rows: list[Row]) -> None:
    blank = [row for row in rows if not getattr(row, column)]
    if blank and len(blank) < len(rows):
        raise DataError(f"{blank[0].where}: {column} is blank here but given elsewhere; fill in all or none")


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the values of every line under the header."""
    try:
        # Spreadsheets put a byte-order mark in front of the header; utf-8-sig takes it off.
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip().lower() for name in next(reader, [])]
            meant = "identity" not in header and any(_MEANT.fullmatch(name) for name in header)
            missing = "path" if "path" not in header else "identity" if meant else ""
            if missing:
                found = ",".join(header) or "nothing"
                blank = ", with identity left blank where nobody knows it" if meant else ""
                raise DataError(
                    f"{file}:1: no column {missing}; the header is {found}, write {','.join(COLUMNS)}{blank}"
                )
            for cells in reader:
                where = f"{file}:{reader.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} values under {len(header)} columns; quote inner commas")
                yield where, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV text in UTF-8 ({error})") from error


def _row(folder: Path, where: str, values: dict[str, str]) -> Row:
    if not values["path"]:
        raise DataError(f"{where}: path is blank; every image needs one")
    split = values.get("split", "")
    if split and split not in SPLITS:
        raise DataError(f"{where}: split {split!r} is unknown; use {', '.join(SPLITS)}")
    path = folder / values["path"]
    if not path.is_file():
        raise DataError(f"{where}: there is no file {path}; paths are relative to the manifest's folder")
    return Row(path, values.get("identity", ""), values.get("camera", ""), split, where)


TABLE = Layout(
    f"a table ({MANIFEST})",
    f"a {MANIFEST}",
    recognises=lambda folder: (folder / MANIFEST).is_file(),
    read=lambda folder, split: read_manifest(folder),
)
