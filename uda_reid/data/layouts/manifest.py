"""Your own data by a table: `manifest.csv` with the columns path, identity, camera and split."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.errors import DataError

MANIFEST = "manifest.csv"
COLUMNS = ("path", "identity", "camera", "split")


def read_manifest(folder: Path) -> Parts:
    """Read the data set that `folder/manifest.csv` lists.

    The columns `path` (relative to the folder, or absolute) and `identity` are needed, `camera` and `split`
    may be absent or blank throughout; other columns are ignored. Labels are
    numbered as in `labels.arrange`.

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
    for column in ("camera", "split"):
        blank = [row for row in rows if not getattr(row, column)]
        if blank and len(blank) < len(rows):
            raise DataError(f"{blank[0].where}: {column} is blank here but given elsewhere; fill in all or none")
    return arrange(rows, folder=folder)


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the values of every line under the header."""
    try:
        # Spreadsheets put a byte-order mark in front of the header; utf-8-sig takes it off.
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip().lower() for name in next(reader, [])]
            missing = [name for name in COLUMNS[:2] if name not in header]
            if missing:
                found = ",".join(header) or "nothing"
                raise DataError(
                    f"{file}:1: no column {' and no column '.join(missing)}; the header is {found}, "
                    f"write {','.join(COLUMNS)}"
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
    for column in COLUMNS[:2]:
        if not values[column]:
            raise DataError(f"{where}: {column} is blank; every image needs one")
    split = values.get("split", "")
    if split and split not in SPLITS:
        raise DataError(f"{where}: split {split!r} is unknown; use {', '.join(SPLITS)}")
    path = folder / values["path"]
    if not path.is_file():
        raise DataError(f"{where}: there is no file {path}; paths are relative to the manifest's folder")
    return Row(path, values["identity"], values.get("camera", ""), split, where)


TABLE = Layout(
    f"a table ({MANIFEST})",
    f"a {MANIFEST}",
    recognises=lambda folder: (folder / MANIFEST).is_file(),
    read=lambda folder, split: read_manifest(folder),
)
