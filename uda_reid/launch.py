"""What a launcher tells a process of the others, and how a run is asked to stop; nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

PROCESSES = "WORLD_SIZE"
"""Environment variable in which a launcher says how many processes there are."""
RANK = "RANK"
"""The same for the number of this one, counted from 0."""


def launched() -> int:
    """Return how many processes `torchrun` or `accelerate launch` has started, of which this is one; else 1."""
    given = os.environ.get(PROCESSES, "")
    return int(given) if given.isdecimal() else 1


def first() -> bool:
    """Return whether this process is the launcher's first one, or has a number that makes no sense: it speaks too."""
    rank = os.environ.get(RANK) or "0"
    return not rank.isdecimal() or int(rank) == 0 or int(rank) >= launched()


class Stop:
    """Whether somebody asked a run to stop; training notices after a step, keeps what it has and ends."""

    def __init__(self) -> None:
        self.asked = False
        self.noticing = False
        """Whether somebody will look soon; who asks while nobody does has to end the work by other means."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, somebody looks at `asked` soon."""
        self.noticing = True
        try:
            yield
        finally:
            self.noticing = False
