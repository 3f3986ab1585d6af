"""Identities, cameras and splits as they are written: one rule for tables, folders and file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Ids

UNSEEN = -1
"""The camera of an image whose camera is not written."""
MISSING = frozenset(
    (
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "NaT", "None", "n/a", "nan", "null",
    )
)  # fmt: skip
"""What programs write for a value that is missing: texts that `pandas.read_csv` reads so. Another case is a name."""
_REMEDIES = {
    "path": "write the path of an image",
    "identity": "write whose image it is, -1 for junk or 0 for a distractor in the gallery",
    "camera": "write its camera, or leave camera blank for all images",
    "split": "write train, query or gallery",
}
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(e[-+]\d+)?", re.ASCII)
"""Also as NumPy writes one, 7.0e+00; without the sign it would be a name, of hexadecimal digits."""


_CODE = re.compile(r"(?=.*\d)(?=.*[a-z])[\w-]+", re.ASCII | re.IGNORECASE)


class Numbered(NamedTuple):
    """The number of each text, and how many different names were numbered."""

    numbers: Ids
    names: int


def whole(text: str) -> int | None:
    """Return what a text says if that is a whole number, also one as pandas and numpy.savetxt write it.

    >>> [whole(text) for text in ("0007", "-1.0", "1.2e+01", "0e12", "7.5", "nan", "anna")]
    [7, -1, 12, None, None, None, None]
    """
    if not _NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-").isdigit()  # a float would round long ones
    number = int(text) if digits else float(text)
    return int(number) if number == number // 1 and abs(number) < (1 << 63 if digits else 1 << 53) else None


def without_decimals(text: str) -> str:
    """Return a whole number without the decimals that a table may have given it, and other text as it is.

    >>> [without_decimals(text) for text in ("0007", "7.0", "7.5", "anna")]
    ['0007', '7', '7.5', 'anna']
    """
    return str(whole(text)) if "." in text and whole(text) is not None else text


def check_written(text: str, what: str, where: str) -> None:
    """Raise a DataError where a text stands for a missing value, as pandas' nan: it would become a name.

    Args:
        text: what is written.
        what: the column: `path`, `identity`, `camera` or `split`; in others it is a text like any.
        where: the place of the text, for the message.
    """
    if text in MISSING and what in _REMEDIES:
        raise DataError(f"{where}: {what} {text!r} stands for a missing value; {_REMEDIES[what]}")


def identities(texts: Sequence[str] | npt.NDArray[np.object_], where: Callable[[int], str]) -> Numbered:
    """Return the number of each identity; blank is `UNKNOWN`.

    Whole numbers stay, however they are written (7, 0007, 7.0). Names are numbered from 1 in sorted order; among them
    -1 is still junk and 0 (also 0000) a distractor.

    Args:
        texts: N identities as written.
        where: the place of the text of a number, for messages.

    Raises:
        DataError: numbers and names are mixed, or a number is below -1.
    """
    found = numbered(texts, where, "identity", blank=UNKNOWN, special=(JUNK, DISTRACTOR))
    _check_least(found.numbers, JUNK, texts, where, "identity", "only -1 may be, for junk")
    return found


def cameras(texts: Sequence[str] | npt.NDArray[np.object_], where: Callable[[int], str], *, mixed: bool = False) -> Ids:
    """Return the number of each camera, numbered like `identities`; blank is `UNSEEN`.

    Args:
        texts: N cameras as written.
        where: the place of the text of a number, for messages.
        mixed: take numbers and names together, as of folders `cam1` and `cam_b`: names come after the numbers.

    Raises:
        DataError: numbers and names are mixed and may not be, or a number is negative.
    """
    if mixed:
        known = {text: number for text in set(texts) if text and (number := whole(text)) is not None}
        highest = max(known.values(), default=0)
        known |= {name: highest + place for place, name in enumerate(sorted(set(texts) - known.keys() - {""}), 1)}
        texts = [str(known[text]) if text else "" for text in texts]
    cams = numbered(texts, where, "camera", blank=UNSEEN).numbers
    _check_least(cams, 0, texts, where, "camera", "count cameras from 0 or 1, blank is unknown")
    return cams


def numbered(
    texts: Sequence[str] | npt.NDArray[np.object_],
    where: Callable[[int], str],
    what: str,
    *,
    blank: int,
    special: tuple[int, ...] = (),
) -> Numbered:
    """Return whole numbers as they are, and names numbered from 1 in sorted order.

    Numbers among names, but for the special ones, are refused: one slip of the pen would make names of all numbers,
    and two persons of 7 and 0007. Where every name has letters and digits, all are codes, such as 1a2b and 5678, and a
    number among them is one too, as long as no number is written in two ways.
    """
    often = Counter(texts)
    numbers = {text: whole(text) for text in often if text}
    names = sorted(text for text, number in numbers.items() if number is None)
    mixed = sorted(text for text, number in numbers.items() if number is not None and number not in special)
    codes = len({numbers[text] for text in mixed}) == len(mixed) and all(map(_CODE.fullmatch, names))
    if names and mixed and codes:
        names = sorted([*names, *mixed])
    elif names and mixed:
        few, other = sorted((names, mixed), key=lambda some: sum(often[text] for text in some))
        slips = set(few)
        first = next(place for place, text in enumerate(texts) if text in slips)
        raise DataError(
            f"{where(first)}: {what} {texts[first]!r} beside {other[0]!r}; write whole numbers for all, "
            f"or names for all, such as {what[0]}{mixed[0]}"
        )
    numbers |= {name: number for number, name in enumerate(names, start=1)}
    values = np.array([blank if text == "" else numbers[text] for text in texts], dtype=np.int64)
    return Numbered(values, len(names))


def _check_least(
    numbers: Ids,
    least: int,
    texts: Sequence[str] | npt.NDArray[np.object_],
    where: Callable[[int], str],
    what: str,
    rule: str,
) -> None:
    for place in np.flatnonzero(numbers < least).tolist():
        if texts[place]:
            raise DataError(f"{where(place)}: {what} {numbers[place]} is negative; {rule}")
