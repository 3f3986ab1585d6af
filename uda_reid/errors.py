"""The errors a user can cause; each message says what was given, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable


class UdaReidError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it as one line."""


class DataError(UdaReidError):
    """A data set on disk, an image or an array handed to a function is not what it has to be."""


class UnreadableError(DataError):
    """Image files are missing or damaged.

    Args:
        message: names the first of them.
        rows: all rows, among those that were asked for, whose files cannot be decoded; each once.
    """

    def __init__(self, message: str, rows: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class RecipeError(UdaReidError):
    """A recipe, an option or a name typed by the user is unknown or out of range."""


class CheckpointError(UdaReidError):
    """A checkpoint is missing, truncated, foreign or made for another model."""


class NotFiniteError(UdaReidError):
    """A loss became infinite or no number; the update that it would have made is left out.

    Args:
        what: what happened, and where.
        more: what else there is to say where the run ends by it.
    """

    def __init__(self, what: str, *more: str) -> None:
        super().__init__("; ".join((what, *more)))
        self.what = what


class OutOfMemoryError(UdaReidError):
    """A batch does not fit into memory; the message says which one would."""
