"""Batches of augmented images on a run's device: read ahead, dealt to processes, of one domain or of several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.errors import UnreadableError
from uda_reid.ops.noise import keys_of
from uda_reid.ops.transfer import moved, pinned
from uda_reid.run import Run
from uda_reid.types import Batch, Images

T = TypeVar("T")


@runtime_checkable
class Skippable(Protocol):
    """Batches that can begin later."""

    def skip(self, count: int) -> None:
        """Leave out the first batches."""


class Batches:
    """Augmented batches on the run's device, for planned batches of rows.

    With several processes each has the images of its own share of every batch, and the labels of all.

    Args:
        images: where pictures come from.
        labels: (N,) int64 label per row of `images`.
        plan: the rows of every batch, int64.
        size: height and width in pixels.
        augmentation: a name from `data.images.AUGMENTATIONS`.
        name: names the random stream of the augmentation: another epoch needs another name.
        run: the surroundings.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        plan: Iterable[Tensor],
        *,
        size: tuple[int, int],
        augmentation: str,
        name: str,
        run: Run,
    ) -> None:
        self.images, self.labels, self.plan = images, labels, list(plan)
        self.size, self.augmentation, self.run = size, augmentation, run
        self.name, self.start = name, 0

    def skip(self, count: int) -> None:
        """Leave out the first batches, the next time."""
        self.start = count

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0  # whoever begins anew gets the same once more, and from the beginning
        keys = keys_of(self.run.seed_for(self.name), self.plan)[start:]
        for mine, (rows, pixels) in zip(keys, self._pixels(self.plan[start:]), strict=True):
            pictures = augment(pixels, self.augmentation, mine[self.run.share(len(rows))])
            yield Batch(pictures, moved(self.labels[rows], self.run.device), rows)

    def _pixels(self, plan: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of every batch, and this process's images of them, uint8, on the run's device."""
        for rows, pixels in in_time(self._read, plan, self.run):
            yield rows, moved(pixels, self.run.device)

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of a batch, and this process's images of them.

        An image that cannot be read any more gives its place to another one of the batch, with its label if there is
        one.
        """
        share = self.run.share(len(rows))
        try:
            return rows, pinned(self.images.read(rows[share], *self.size), self.run.device)
        except UnreadableError as error:
            self.run.unreadable.note(self.images, error)
            lost = torch.isin(rows, torch.tensor(error.rows))
            if bool(lost[share].all()):
                raise
        rows = rows.clone()
        for place in torch.nonzero(lost).flatten().tolist():
            alike = torch.nonzero(~lost & (self.labels[rows] == self.labels[rows[place]])).flatten()
            others = alike if len(alike) else torch.nonzero(~lost).flatten()
            rows[place] = rows[others[place % len(others)]]
        return self._read(rows)


def in_time(read: Callable[[Tensor], T], plan: Sequence[Tensor], run: Run) -> Iterator[T]:
    """Yield what `read` gives for every item of a plan, in order: while a GPU works, or where the CPU does, at once."""
    return map(read, plan) if torch.device(run.device).type == "cpu" else ahead(read, plan)


def ahead(read: Callable[[Tensor], T], plan: Sequence[Tensor], *, many: int = 2) -> Iterator[T]:
    """Yield what `read` gives for every item of a plan, in order; a thread reads the next ones meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(read, rows) for rows in plan[:many])
        for rows in [*plan[many:], *[None] * min(many, len(plan))]:
            found = waiting.popleft().result()
            if rows is not None:
                waiting.append(pool.submit(read, rows))
            yield found


class SideBySide:
    """Batches of several domains, one of each at a time.

    Args:
        domains: as many batches of every domain.
    """

    def __init__(self, *domains: Batches) -> None:
        self.domains = domains

    def skip(self, count: int) -> None:
        """Leave out the first batches of every domain."""
        for domain in self.domains:
            domain.skip(count)

    def __len__(self) -> int:
        return len(self.domains[0])

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return zip(*self.domains, strict=True)
