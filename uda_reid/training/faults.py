"""What a training that cannot go on tells: which step, which rows, which batch would fit."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.models.batch_norm import group_of
from uda_reid.run import Run
from uda_reid.types import Batch

T = TypeVar("T")
Rows = tuple[Tensor, ...]
Terms = Mapping[str, Tensor]

FULL = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch says of a full memory where it has no class of its own for it."""


def parts_of(batch: object) -> tuple[Batch, ...]:
    """Return the batches of all domains that a step is given."""
    parts = batch if isinstance(batch, tuple) and not isinstance(batch, Batch) else (batch,)
    return tuple(part for part in parts if isinstance(part, Batch))


def rows_of(batch: object) -> Rows:
    """Return the rows of all domains that a step is given."""
    return tuple(part.rows for part in parts_of(batch))


BAD = "the loss was not finite, and no update was made with it"


def not_finite(error: object, terms: Sequence[Terms], step: int, rows: Rows, title: str) -> NotFiniteError:
    """Return the error that says where a loss was not finite, what was measured there and before it, and its rows.

    Args:
        error: what is wrong, such as `BAD`.
        terms: what the steps of the epoch have reported; this one may be missing.
        step: this step, counted from 0.
        rows: what it was given.
        title: names the training and its epoch.
    """
    measured = [
        f"{when} {', '.join(f'{name} {float(term):.4g}' for name, term in terms[each].items())}"
        for each, when in ((step, "it had"), (step - 1, "the step before"))
        if 0 <= each < len(terms)
    ]
    what = "; ".join([f"{title}, step {step + 1}: {error}", *measured])
    given = " and ".join(f"{part.tolist()}" for part in rows)
    mend = f"lower the learning rate (--set {option(title, 'lr')}=...)"
    return NotFiniteError(what, f"rows {given or 'unknown'}", "what is saved stays", mend)


def option(title: str, name: str) -> str:
    """Return what a training's option is called on the command line."""
    return f"{'pretrain' if title.startswith('pretrain') else 'adapt'}.{name}"


def is_full(error: Exception) -> bool:
    """Return whether an error says that the memory of a device or of the machine is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in FULL)


@contextmanager
def told_when_full(message: str) -> Iterator[None]:
    """Inside, a full memory is an error of ours.

    Raises:
        OutOfMemoryError: with `message`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        raise OutOfMemoryError(message) from error


def told_ahead(items: Iterable[T], message: str) -> Iterator[T]:
    """Yield the items; memory that is full while the next one is made is an error of ours, with `message`."""
    iterator = iter(items)
    while True:
        with told_when_full(message):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def too_large(
    error: Exception, step: Callable[[Any], Any], batch: Any, parts: Iterable[object], title: str, run: Run
) -> str:
    """Return in words that a batch is too large, and the largest part of it that fits, by trying.

    Whole identities are tried where a batch holds them side by side, and whole groups of batch norm. The trial updates
    spoil the weights in memory, which nobody will use: the run ends here. Several processes try nothing, since all
    would have to try the same.

    Args:
        error: the step's, whose frames are cleared: they hold what the batch has filled the memory with.
        step: what has failed.
        batch: what it was given.
        parts: what it trains.
        title: names the training.
        run: the surroundings.
    """
    run.updates.forget()
    traceback.clear_frames(error.__traceback__)
    domains = parts_of(batch)
    size, instances = (max((each(part.labels) for part in domains), default=0) for each in (len, _instances))
    group = max((group_of(part) for part in parts if isinstance(part, nn.Module)), default=0)
    unit = math.lcm(max(instances, 1), max(group, 1) * run.processes.count)
    least = max(unit, 2 * instances)  # two identities: fewer are no batch
    tried = size // 2 // unit * unit
    fits = failed = 0
    while run.processes.count == 1 and not fits and tried >= least:
        cut = tuple(Batch(part.images[:tried], part.labels[:tried], part.rows[:tried]) for part in domains)
        try:
            step(cut[0] if isinstance(batch, Batch) else cut)
            run.updates.flush(run.processes.average)  # optimizers take memory of their own at their first update
            fits = tried
        except Exception as another:
            if not is_full(another):  # a step that takes no other number of images
                break
            failed, tried = tried, tried // 2 // unit * unit
    number = fits or (tried if tried >= least else 0)
    if number:
        known = f"{number} fit" if fits else f"{number} may fit"
    else:
        known = f"and neither do {failed}" if failed else "and no smaller one can be made of it"
    smaller = f"--set {option(title, 'batch')}={number}, " if number else "smaller images, "
    return (
        f"{title}: a batch of {size} images does not fit into memory, {known}; "
        f"use {smaller}or --precision bf16; what is saved stays"
    )


def _instances(labels: Tensor) -> int:
    """Return how many rows at the beginning have one label; 1 where all have."""
    others = torch.nonzero(labels != labels[:1]).flatten()
    return int(others[0]) if len(others) else 1
