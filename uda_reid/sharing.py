"""The processes that share one run: what a run asks of them, and the one process that is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class Processes(Protocol):
    """The processes that share one run; each does the same, on its own rows of every batch."""

    @property
    def rank(self) -> int:
        """Return the number of this process, from 0; process 0 is the main one, and the only one that writes."""

    @property
    def count(self) -> int:
        """Return how many there are."""

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        """Return the rows of all processes in order, (total, ...), on the device of `tensor`, with gradient."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place."""

    def main_only(self, action: Callable[[], T]) -> T:
        """Return to all processes what `action` gives on the main one; its error is raised on all of them."""

    def any(self, here: bool) -> bool:
        """Return whether it is so on any process."""

    def prepare(self, module: nn.Module, *, trained: bool) -> None:
        """Make layers that look at a whole batch look beyond this process, in place; `trained`: it will be."""


class Alone:
    """One process."""

    rank, count = 0, 1

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        """Return the tensor itself."""
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Leave the tensors as they are."""

    def main_only(self, action: Callable[[], T]) -> T:
        """Return what `action` gives."""
        return action()

    def any(self, here: bool) -> bool:
        """Return whether it is so here."""
        return here

    def prepare(self, module: nn.Module, *, trained: bool) -> None:
        """Leave the module as it is."""

    def __deepcopy__(self, _: object) -> Self:
        return self  # modules hold on to it, and are copied


ALONE = Alone()
