"""One training loop for everything that is trained: epochs of batches, resumable after every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.run import Run
from uda_reid.training.batches import Skippable
from uda_reid.training.faults import BAD, Rows, is_full, not_finite, option, rows_of, told_ahead, too_large

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
"""Steps after which several processes agree on whether to stop, and wait for each other."""
NEXT = "its next batch does not fit into memory, before any step with it; use a smaller --set {}=..."


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
        if run.updates.unusual:  # before the epoch itself: what is found without it begins as it did
            run.save(UPDATES, {"name": name, "before": before, "after": run.updates.state_dict()})
        if keep:
            run.save(slot, {"name": name, "history": history, **_state(parts, run)})
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
    before = copy.deepcopy(_state(parts, run)) if run.rollbacks else {}
    while True:
        try:
            return attempt()
        except NotFiniteError as error:
            if not run.rollbacks:
                raise NotFiniteError(f"{error}, or start with --rollbacks 3, which halves it") from error
            if run.updates.halved >= run.rollbacks:
                raise NotFiniteError(str(error), f"all rollbacks ({run.rollbacks}) are used up") from error
            halved = run.updates.halved
            run.save(PARTIAL, NOTHING)
            _put_back(copy.deepcopy(before), parts, run)  # with the scale of float16's losses
            run.updates.halved = halved
            run.updates.halve()
            rate = f"with 1/{2**run.updates.halved} of the learning rate"
            which = f"rollback {run.updates.halved} of {run.rollbacks}"
            run.log(f"warning: {error.what}; {which}: the epoch begins again, {rate}")


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
    seen: list[Rows] = []  # of the steps since the last look
    patience = 1 if run.processes.count == 1 else AGREE
    agreed = 0  # the step after which processes last agreed on whether to stop
    title = f"{name}: epoch {epoch + 1}"
    if run.processes.any(run.stop.asked):  # in the last steps of an epoch, when gradients waited for more
        raise Stopped(f"{title}: stopped before its first step")
    with run.randomness(f"{name}/epoch/{epoch}"), run.updates.watched():
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
        planned = told_ahead(planned, f"{title}: {NEXT.format(option(name, 'batch'))}")
        with run.stop.watched():
            for batch in run.progress(planned, f"{name}: epoch {epoch + 1}/{epochs}", total):
                run.updates.now = len(seen)
                seen.append(rows_of(batch))
                try:
                    terms.append({term: value.detach() for term, value in step(batch).items()})
                except Exception as error:
                    if isinstance(error, NotFiniteError) or run.updates.known_bad:  # what follows may fail by that
                        told = error if isinstance(error, NotFiniteError) else BAD
                        raise not_finite(told, terms, len(terms), seen[-1], title) from error
                    if is_full(error):
                        raise OutOfMemoryError(too_large(error, step, batch, parts.values(), title, run)) from error
                    raise
                if run.updates.known_bad or len(terms) % LOOK == 0:
                    _look(terms, seen, title, run)
                due = len(terms) == steps or len(terms) - agreed >= patience
                if not due or not run.updates.settled:
                    continue
                agreed = len(terms)
                if run.processes.any(run.stop.asked):
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


def _look(terms: list[Mapping[str, Tensor]], seen: list[Rows], title: str, run: Run) -> None:
    """Ask the device for the first loss since the last look that was not finite."""
    first = run.updates.check()
    if first >= 0:
        raise not_finite(BAD, terms, len(terms) - len(seen) + first, seen[first], title)
    seen.clear()


def _without(batches: Iterable[Step], count: int) -> Iterable[Step]:
    """Return the batches behind the first `count`; ours draw what these would have drawn and read none of them."""
    if not isinstance(batches, Skippable):
        return islice(batches, count, None)
    batches.skip(count)
    return batches


def _means(terms: list[Mapping[str, Tensor]]) -> dict[str, float]:
    names = terms[0].keys() if terms else ()
    return {name: float(torch.stack([term[name].float() for term in terms]).mean()) for name in names}
