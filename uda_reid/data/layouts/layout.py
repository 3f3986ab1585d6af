"""What a folder layout is: how it is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uda_reid.data.layouts.labels import Parts


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on disk.

    Args:
        title: how people call it, as in "Market-1501's folders"; reports name it.
        holds: what its folder holds, as a clause for error messages: "the folders query and gallery".
        recognises: whether a folder looks like this layout, by the names in it; opens no image.
        read: the folder and the number of the split, counted from 0 -> its images; raises a DataError.
    """

    title: str
    holds: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, int], Parts]
