"""Tables as CSV text: one way to write a cell, and the way back.

A spreadsheet takes a cell that begins with = + - or @ for a formula, and runs it. Names of files, data sets and recipes
come from others, so such a text gets an apostrophe in front, which spreadsheets do not show and `plain` takes off.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable
from typing import Any, BinaryIO

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


class Table:
    """Lines of CSV in UTF-8 that are written to a file; names of files that are no UTF-8 keep their bytes.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = codecs.getwriter("utf-8")(file, "surrogateescape")

    def write(self, *cells: Any) -> None:
        """Write one line."""
        self._file.write(text_of([cells]))


def text_of(lines: Iterable[Iterable[Any]]) -> str:
    """Return lines of cells as CSV text."""
    text = io.StringIO()
    plainly = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for line in lines:
        cells = [safe(cell) for cell in line]
        # Python quotes a cell with a line feed, but not one with a carriage return, at which readers end the line too.
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else plainly).writerow(cells)
    return text.getvalue()


def safe(cell: Any) -> Any:
    """Return what is written for a cell: a text that begins a formula gets an apostrophe, unless it is a number.

    >>> [safe(cell) for cell in ("=1+1", "-1", "+3e5", "-cam", "'quoted", "anna", -1, None)]
    ["'=1+1", '-1', '+3e5', "'-cam", "''quoted", 'anna', -1, None]
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) and not _is_number(cell) else cell


def plain(cell: str) -> str:
    """Return the text of a cell that `safe` may have written.

    >>> [plain(safe(text)) for text in ("=1+1", "'quoted", "o'neil", "-1")]
    ['=1+1', "'quoted", "o'neil", '-1']
    """
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULAS) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text.isprintable()
