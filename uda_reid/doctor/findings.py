"""What the doctor says about a data set, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""What stops a run; what makes its numbers mislead or its learning suffer; what is good to know."""

NAMED = 10
"""How many of a kind a text names; all of them are counted, and in `items`."""


@dataclass(frozen=True)
class Finding:
    """One line about a data set: what is there, why it matters, what to do.

    Args:
        level: how grave it is.
        text: the line; of many things it names the first few.
        items: all of the things that the line is about, for programs; empty where the text names them all.
    """

    level: Level
    text: str
    items: tuple[str, ...] = ()


def some(things: Sequence[object]) -> str:
    """Return the first few of some things, and how many more there are.

    >>> some([3, 5, 8])
    '3, 5, 8'
    >>> some(range(1, 14))
    '1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more'
    """
    named = ", ".join(map(str, things[:NAMED]))
    return f"{named} and {len(things) - NAMED:,} more" if len(things) > NAMED else named
