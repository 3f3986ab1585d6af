"""One training loop for everything that is trained: epochs of batches, resumable after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.errors import NotFiniteError
from uda_reid.run import Run
from uda_reid.types import Batch, Images

Step = TypeVar("Step")


class Stateful(Protocol):
    """A module, an optimizer: anything whose state can be read and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Put a state back."""


def train(
    step: Callable[[Step], Mapping[str, Tensor]],
    batches: Callable[[int], Iterable[Step]],
    *,
    epochs: int,
    parts: Mapping[str, Stateful],
    name: str,
    run: Run,
    slot: str = "",
) -> list[dict[str, float]]:
    """Run `epochs` epochs of `step` and return the mean of every term that it reports, per epoch.

    Resumes by itself: after each epoch the parts are saved, and a later call with the same name goes on from the last
    finished epoch. For that, `batches(epoch)` may depend on nothing but the epoch's number; torch's global random
    numbers (dropout) are a stream of their own in every epoch.

    Args:
        step: one update; returns scalar tensors to report, by name.
        batches: epoch number, counted from 0 -> the batches of that epoch.
        epochs: how many epochs in all.
        parts: everything that `step` changes, by name.
        name: names the random streams, and what was saved.
        run: the surroundings.
        slot: where the state is kept (default: `name`); a later training with the same slot overwrites it.

    Returns:
        One mapping per epoch: term -> mean over its batches.
    """
    slot = slot or name
    history: list[dict[str, float]] = []
    saved = run.restore(slot)
    if saved is not None and saved["name"] == name:
        history = saved["history"]
        for key, part in parts.items():
            part.load_state_dict(saved["parts"][key])
        if 0 < len(history) < epochs:
            run.log(f"{name}: goes on after epoch {len(history)} of {epochs}")
    for epoch in range(len(history), epochs):
        with run.randomness(f"{name}/epoch/{epoch}"):
            planned = batches(epoch)
            total = len(planned) if isinstance(planned, Sized) else None
            terms: list[Mapping[str, Tensor]] = []
            for batch in run.progress(planned, f"{name}: epoch {epoch + 1}/{epochs}", total):
                try:
                    terms.append(step(batch))
                except NotFiniteError as error:
                    where = f"{name}: epoch {epoch + 1}, step {len(terms) + 1}"
                    raise NotFiniteError(f"{where}: {error}; {_seen(terms, batch)}; what is saved stays") from error
        history.append(_means(terms))
        state = {key: part.state_dict() for key, part in parts.items()}
        run.save(slot, {"name": name, "history": history, "parts": state})
    return history


def _seen(terms: list[Mapping[str, Tensor]], batch: object) -> str:
    """Return what was measured one step before, and which rows a step was given, in words."""
    before = ", ".join(f"{name} {float(term):.4g}" for name, term in (terms[-1] if terms else {}).items())
    parts = batch if isinstance(batch, tuple) and not isinstance(batch, Batch) else (batch,)
    rows = " and ".join(f"{part.rows.tolist()}" for part in parts if isinstance(part, Batch))
    return f"the step before had {before or 'nothing to tell'}; rows {rows or 'unknown'}"


def _means(terms: list[Mapping[str, Tensor]]) -> dict[str, float]:
    names = terms[0].keys() if terms else ()
    return {name: float(torch.stack([term[name].detach().float() for term in terms]).mean()) for name in names}


class Batches:
    """Augmented batches on the run's device, for planned batches of rows.

    Args:
        images: where pictures come from.
        labels: (N,) int64 label per row of `images`.
        plan: the rows of every batch, int64.
        size: height and width in pixels.
        augmentation: a name from `data.images.AUGMENTATIONS`.
        name: names the random stream of the augmentation.
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
        self.generator = run.stream(name)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.plan:
            pictures = self.images.read(rows, *self.size).to(self.run.device)
            pictures = augment(pictures, self.augmentation, self.generator)
            yield Batch(pictures, self.labels[rows].to(self.run.device), rows)


class SideBySide:
    """Batches of several domains, one of each at a time.

    Args:
        domains: as many batches of every domain.
    """

    def __init__(self, *domains: Batches) -> None:
        self.domains = domains

    def __len__(self) -> int:
        return len(self.domains[0])

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return zip(*self.domains, strict=True)
