"""One training loop for everything that is trained: epochs of batches, resumable after every epoch."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.run import Run
from uda_reid.training.batches import Skippable
from uda_reid.types import Batch

Step = TypeVar("Step")
Means = dict[str, float]
"""Term -> its mean over the batches of an epoch."""


class Stateful(Protocol):
    """A module, an optimizer: anything whose state can be read and put back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Put a state back."""


class Draws:
    """Random numbers that steps draw, as a part of a training.

    Args:
        generator: where they come from.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator is."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set the generator back."""
        self.generator.set_state(state_dict["generator"])


PARTIAL = "step"
"""Name of what is kept of an epoch that was stopped in its middle."""
NOTHING = {"name": "", "epoch": 0}
"""Kept under that name where there is nothing of the kind any more."""
UPDATES = "updates"
"""Name of what is kept of `run.updates` before and after the last training, beside what callers save of their own."""
LOOK = 50
"""Steps after which the device is asked whether every loss was finite."""
AGREE = 10
"""Steps after which several processes agree on whether to stop; they also do so at the end of an epoch."""


class Stopped(KeyboardInterrupt):
    """Somebody asked the run to stop; it has kept the step that it was at."""


def train(
    step: Callable[[Step], Mapping[str, Tensor]],
    batches: Callable[[int], Iterable[Step]],
    *,
    epochs: int,
    parts: Mapping[str, Stateful],
    name: str,
    run: Run,
    slot: str = "",
    keep: bool = True,
) -> list[dict[str, float]]:
    """Run epochs of `step`; return for each the mean, over its batches, of every term that `step` reports.

    Resumes by itself: after each epoch the parts are saved, and a later call with the same name goes on from there, or
    from the step at which `run.stop` stopped it. For that, `batches(epoch)` may depend on nothing but the epoch's
    number; torch's global random numbers (dropout) are a stream of their own in every epoch.

    Args:
        step: one update; returns scalar tensors to report, by name.
        batches: epoch number, counted from 0 -> the batches of that epoch.
        epochs: how many epochs in all.
        parts: everything that `step` changes, by name.
        name: names the random streams, and what was saved.
        run: the surroundings.
        slot: where the state is kept (default: `name`); a later training with the same slot overwrites it.
        keep: whether finished epochs are saved; a caller who saves more than the parts does so itself.

    Raises:
        NotFiniteError: a loss is not finite, and `run.rollbacks` are used up; what is saved stays.
        Stopped: `run.stop` asked for it.
    """
    slot = slot or name
    history: list[dict[str, float]] = []
    before, saved = _updates_before(name, run), run.restore(slot) if keep else None
    if saved is not None and saved["name"] == name:
        history = saved["history"]
        _put_back(saved, parts, run)
        if 0 < len(history) < epochs:
            run.log(f"{name}: goes on after epoch {len(history)} of {epochs}")
    for epoch in range(len(history), epochs):
        history.append(_with_rollbacks(partial(_attempt, step, batches, epoch, epochs, parts, name, run), parts, run))
        if keep:
            run.save(slot, {"name": name, "history": history, **_state(parts, run)})
    if run.updates.unusual:
        run.save(UPDATES, {"name": name, "before": before, "after": run.updates.state_dict()})
    return history


def _updates_before(name: str, run: Run) -> dict[str, Any]:
    """Let updates go on from an earlier training of this run, and return their state.

    What is kept of this very training is of one that a caller has lost again: it begins as it did then.
    """
    kept = run.restore(UPDATES)
    if kept is not None:
        run.updates.load_state_dict(kept["before" if kept["name"] == name else "after"])
    return copy.deepcopy(run.updates.state_dict())


def _state(parts: Mapping[str, Stateful], run: Run) -> dict[str, Any]:
    return {"parts": {key: part.state_dict() for key, part in parts.items()}, "updates": run.updates.state_dict()}


def _with_rollbacks(attempt: Callable[[], Means], parts: Mapping[str, Stateful], run: Run) -> Means:
    """Run an epoch, again with half the learning rate where a loss is not finite and the run has rollbacks left."""
    before = copy.deepcopy(_state(parts, run)["parts"]) if run.rollbacks else {}
    while True:
        try:
            return attempt()
        except NotFiniteError as error:
            if not run.rollbacks:
                raise
            if run.updates.halved >= run.rollbacks:
                raise NotFiniteError(f"{error}; all rollbacks ({run.rollbacks}) are used up") from error
            run.updates.halve()
            run.save(PARTIAL, NOTHING)
            for key, part in parts.items():
                part.load_state_dict(copy.deepcopy(before[key]))
            run.log(f"warning: {error}; back to the beginning of the epoch, with half the learning rate")


def _attempt(
    step: Callable[[Step], Mapping[str, Tensor]],
    batches: Callable[[int], Iterable[Step]],
    epoch: int,
    epochs: int,
    parts: Mapping[str, Stateful],
    name: str,
    run: Run,
) -> dict[str, float]:
    """Run one epoch, or what is left of one that was stopped, and return the mean of every term."""
    terms: list[Mapping[str, Tensor]] = []
    seen: list[tuple[Tensor, ...]] = []  # the rows of the steps since the last look
    title = f"{name}: epoch {epoch + 1}"
    with run.randomness(f"{name}/epoch/{epoch}"):
        planned = batches(epoch)
        steps = total = len(planned) if isinstance(planned, Sized) else None
        kept = run.restore(PARTIAL)
        resumed = kept is not None and (kept["name"], kept["epoch"]) == (name, epoch)
        if kept is not None and resumed:
            measured = kept["values"].to(run.device)
            terms = [dict(zip(kept["terms"], values.unbind(), strict=True)) for values in measured]
            _put_back(kept, parts, run)
            run.set_random_state(kept["random"])
            run.log(f"{title}: goes on after step {len(terms)}")
            planned, total = _without(planned, len(terms)), None if total is None else total - len(terms)
        with run.stop.watched():
            for batch in run.progress(planned, f"{name}: epoch {epoch + 1}/{epochs}", total):
                run.updates.now = len(seen)
                seen.append(_rows(batch))
                try:
                    terms.append({term: value.detach() for term, value in step(batch).items()})
                except NotFiniteError as error:
                    raise NotFiniteError(_told(error, terms, seen[-1], title)) from error
                except (MemoryError, RuntimeError) as error:
                    if not _is_full(error):
                        raise
                    run.updates.forget()
                    traceback.clear_frames(error.__traceback__)  # they hold what the batch has filled the memory with
                    raise OutOfMemoryError(f"{title}: {_too_large(step, batch, name, run)}") from error
                if len(terms) % LOOK == 0:
                    _look(terms, seen, title, run)
                if run.updates.settled and _asked(run, len(terms), last=len(terms) == steps):
                    _look(terms, seen, title, run)
                    run.save(PARTIAL, {"name": name, "epoch": epoch, **_stacked(terms, run), **_state(parts, run)})
                    raise Stopped(f"{title}: stopped after step {len(terms)}")
        run.updates.flush(run.processes.average)
        _look(terms, seen, title, run)
    if resumed:
        run.save(PARTIAL, NOTHING)
    return _means(terms)


def _put_back(saved: Mapping[str, Any], parts: Mapping[str, Stateful], run: Run) -> None:
    for key, part in parts.items():
        part.load_state_dict(saved["parts"][key])
    run.updates.load_state_dict(saved.get("updates", run.updates.state_dict()))


def _stacked(terms: list[Mapping[str, Tensor]], run: Run) -> dict[str, Any]:
    values = torch.tensor([[float(term.float()) for term in each.values()] for each in terms])
    return {"terms": list(terms[0]), "values": values, "random": run.random_state()}


def _asked(run: Run, steps: int, *, last: bool) -> bool:
    """Return whether the run is to stop now; several processes agree, so that all stop at the same step."""
    if run.processes.count == 1:
        return run.stop.asked
    return (last or steps % AGREE == 0) and run.processes.any(run.stop.asked)


def _look(terms: list[Mapping[str, Tensor]], seen: list[tuple[Tensor, ...]], title: str, run: Run) -> None:
    """Ask the device for the first loss since the last look that was not finite."""
    first = run.updates.check()
    if first >= 0:
        error = "the loss was not finite; every update that it would have made is left out; lower the learning rate"
        raise NotFiniteError(_told(error, terms[: len(terms) - len(seen) + first], seen[first], title))
    seen.clear()


def _told(error: object, before: list[Mapping[str, Tensor]], rows: tuple[Tensor, ...], title: str) -> str:
    """Return where a loss was not finite, what was measured one step before, and which rows the step was given."""
    terms = ", ".join(f"{name} {float(term):.4g}" for name, term in (before[-1] if before else {}).items())
    given = " and ".join(f"{part.tolist()}" for part in rows)
    where = f"{title}, step {len(before) + 1}: {error} (--set {_option(title, 'lr')}=...)"
    return f"{where}; the step before had {terms or 'nothing to tell'}; rows {given or 'unknown'}; what is saved stays"


def _option(title: str, name: str) -> str:
    """Return what a training's option is called on the command line."""
    return f"{'pretrain' if title.startswith('pretrain') else 'adapt'}.{name}"


def _parts(batch: object) -> tuple[Batch, ...]:
    """Return the batches of all domains that a step is given."""
    parts = batch if isinstance(batch, tuple) and not isinstance(batch, Batch) else (batch,)
    return tuple(part for part in parts if isinstance(part, Batch))


def _rows(batch: object) -> tuple[Tensor, ...]:
    return tuple(part.rows for part in _parts(batch))


def _is_full(error: Exception) -> bool:
    """Return whether an error says that the memory of a device or of the machine is full."""
    texts = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")  # torch has no class of its own for these
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def _too_large(step: Callable[[Any], Any], batch: Any, name: str, run: Run) -> str:
    """Return in words that a batch is too large, and the largest part of it that fits, by trying.

    The trial updates spoil the weights in memory, which nobody will use: the run ends here.
    """
    parts = _parts(batch)
    size, fits = max((len(part.rows) for part in parts), default=0), 0
    # Of batches with several images of an identity side by side, whole identities are tried.
    unit = min((_instances(part.labels) for part in parts), default=1)
    half = size // 2 // unit * unit or size // 2
    if run.processes.count == 1:  # else the others would have to try the same
        tried = half
        while tried and not fits:
            cut = tuple(Batch(part.images[:tried], part.labels[:tried], part.rows[:tried]) for part in parts)
            try:
                step(cut[0] if isinstance(batch, Batch) else cut)
                fits = tried
            except Exception as error:
                if not _is_full(error):  # a step that takes no other number of images
                    break
                tried = tried // 2 // unit * unit
    remedy = f"{fits} fit" if fits else f"{half} may fit"
    choose = f"--set {_option(name, 'batch')}={fits or half}, or --precision bf16"
    return f"a batch of {size} images does not fit into memory, {remedy}; use {choose}; what is saved stays"


def _instances(labels: Tensor) -> int:
    """Return how many rows at the beginning have one label; 1 where all have."""
    others = torch.nonzero(labels != labels[:1]).flatten()
    return int(others[0]) if len(others) else 1


def _without(batches: Iterable[Step], count: int) -> Iterable[Step]:
    """Return the batches behind the first `count`; ours draw what these would have drawn and read none of them."""
    if not isinstance(batches, Skippable):
        return islice(batches, count, None)
    batches.skip(count)
    return batches


def _means(terms: list[Mapping[str, Tensor]]) -> dict[str, float]:
    names = terms[0].keys() if terms else ()
    return {name: float(torch.stack([term[name].float() for term in terms]).mean()) for name in names}
