"""Batches of augmented images on a run's device: read ahead, dealt to processes, of one domain or of several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from uda_reid.data.images import IMAGENET_MEAN, augment
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

        The place of an image that cannot be read any more is taken by the next one of its label in the plan, whatever
        batch that is in, or by one colour.
        """
        planned = rows[self.run.share(len(rows))]
        mine, gaps = planned.clone(), torch.zeros(len(planned), dtype=torch.bool)
        lost = torch.zeros(len(self.labels), dtype=torch.bool)
        while True:
            try:
                return rows, pinned(_with_gaps(self.images, mine, gaps, self.size), self.run.device)
            except UnreadableError as error:
                self.run.unreadable.note(self.images, error)
                lost[list(error.rows)] = True
            used = torch.unique(torch.cat(self.plan))  # what is left out of a training stays out
            for place in torch.nonzero(lost[mine] & ~gaps).flatten().tolist():
                alike = used[(self.labels[used] == self.labels[planned[place]]) & ~lost[used]]
                gaps[place] = not len(alike)
                if len(alike):
                    mine[place] = alike[int(torch.searchsorted(alike, planned[place])) % len(alike)]


def readable(images: Images, rows: Tensor, *, size: tuple[int, int], run: Run) -> Tensor:
    """Return images (M, 3, H, W) uint8; those that cannot be read any more, and may be lost, are of one colour."""
    gaps = torch.zeros(len(rows), dtype=torch.bool)
    while True:
        try:
            return pinned(_with_gaps(images, rows, gaps, size), run.device)
        except UnreadableError as error:
            run.unreadable.note(images, error)
            gaps |= torch.isin(rows, torch.tensor(error.rows))


def _with_gaps(images: Images, rows: Tensor, gaps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the images of rows, and one colour where there is a gap."""
    if not gaps.any():
        return images.read(rows, *size)
    colour = (255 * torch.tensor(IMAGENET_MEAN)).round().to(torch.uint8)
    found = colour.view(1, 3, 1, 1).repeat(len(rows), 1, *size)
    if not gaps.all():
        found[~gaps] = images.read(rows[~gaps], *size)
    return found


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
