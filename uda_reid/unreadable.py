"""Images that could be read when a run began and cannot any more: left out and counted, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized

from uda_reid.errors import UnreadableError

TOLERATED = 10
"""Images that a run may lose. A few are a bad block or a hasty tidy-up; more are a disk or a data set that is going."""


class Unreadable:
    """The images that one run has lost.

    Args:
        limit: how many may be lost, in each process; 0 makes every one an error.
        log: is told of each, once.
    """

    def __init__(self, limit: int = 0, log: Callable[[str], None] = lambda _: None) -> None:
        self.limit, self.log = limit, log
        self._lost: set[tuple[int, int, int]] = set()

    @property
    def count(self) -> int:
        """How many images were lost so far."""
        return len(self._lost)

    @property
    def lost(self) -> set[tuple[int, int]]:
        """Return them in a way that other processes understand: how many images there are, and the row."""
        return {(many, row) for _, many, row in self._lost}

    def note(self, images: Sized, error: UnreadableError) -> None:
        """Count the rows of `images` that cannot be read.

        Raises:
            UnreadableError: there are more than the limit.
        """
        new = {(id(images), len(images), row) for row in error.rows} - self._lost
        self._lost |= new
        if self.count > self.limit:
            over = f"; {self.count} images were lost, and {self.limit} are tolerated" if self.limit else ""
            raise UnreadableError(f"{error}{over}", error.rows) from error
        if new:
            which = "it is" if len(new) == 1 else f"{len(new)} such images are"
            self.log(f"warning: {error}; {which} left out ({self.count} of at most {self.limit})")

    def facts(self, count: int | None = None) -> Mapping[str, object]:
        """Return what a ledger has to say of them, or of `count` of all processes; nothing where there are none."""
        count = self.count if count is None else count
        return {"images left out, unreadable": count} if count else {}
