"""From a loss to new weights: the update step, at any precision, on one process or several.

An update is masked where its loss is not finite: no weight moves. On the CPU that is an error at once, or, where the
training loop watches, once the step has told its terms. On a GPU, looking at the loss would make the processor wait in
every step, so the flag stays on the device, masks the update there, and is read by `Updates.check`, which the training
loop calls now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from uda_reid.errors import NotFiniteError, RecipeError

Optimizer = torch.optim.Optimizer
Average = Callable[[Sequence[Tensor]], None]
"""Replaces tensors, in place, by their means over all processes."""


class Updates:
    """Makes the updates of one run, and counts what happened to them.

    Args:
        accumulate: losses per update: the gradients of so many calls are averaged.
        scaled: multiply losses so that float16 holds their gradients (`torch.amp.GradScaler`).
        device: where the scale lives, `cpu` or `cuda`.

    Raises:
        RecipeError: `accumulate` is below 1.
    """

    def __init__(self, *, accumulate: int = 1, scaled: bool = False, device: str = "cpu") -> None:
        if accumulate < 1:
            raise RecipeError(f"accumulate {accumulate} is out of range; use 1 or more losses for an update")
        self.accumulate = accumulate
        self.scaler = torch.amp.GradScaler(torch.device(device).type) if scaled else None
        self.halved = 0
        """How often the learning rates were halved."""
        self._pending: dict[int, tuple[Optimizer, int, Tensor | None]] = {}
        self.now = 0
        """Which step this is since the last `check`; the training loop counts."""
        self.known_bad = False
        """Whether a loss is known not to be finite: no update is made any more until `check`."""
        self._first: Tensor | None = None
        self._watched = False
        self._stepped: set[int] = set()
        """Optimizers that have been updated by the scale as it is."""

    @property
    def settled(self) -> bool:
        """Whether no gradient waits for more."""
        return not self._pending

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, somebody looks at `known_bad` after every step, and a loss that is not finite is no error at once."""
        before, self._watched = self._watched, True
        try:
            yield
        finally:
            self._watched = before
            self.now, self._first, self.known_bad = 0, None, False
            self.forget()

    def step(self, loss: Tensor, optimizers: Sequence[Optimizer], average: Average) -> None:
        """Backpropagate `loss`, and update by every optimizer that has its share of losses.

        Raises:
            NotFiniteError: the loss is not finite, and nobody watches; no weight has been touched by then.
        """
        bad = self._flagged(loss, optimizers)
        if self.known_bad:
            return
        for optimizer in optimizers:
            if id(optimizer) not in self._pending:
                optimizer.zero_grad(set_to_none=True)
        scaled = loss / self.accumulate if self.accumulate > 1 else loss
        if self.scaler is not None and bad is not None:  # the scaler masks by what it sees in gradients
            scaled = scaled * torch.where(bad > 0, torch.nan, 1.0)
        # Into these weights alone: what a loss leaves on others must not wait there for the others' own update.
        mine = _weights(optimizers) if self.accumulate > 1 else None
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward(inputs=mine)  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            _, count, before = self._pending.get(id(optimizer), (optimizer, 0, None))
            masked = bad if before is None else before if bad is None else torch.maximum(bad, before)
            self._pending[id(optimizer)] = optimizer, count + 1, masked
        self._update([each for each in optimizers if self._pending[id(each)][1] == self.accumulate], average)

    def flush(self, average: Average) -> None:
        """Update by what is left of gradients at the end of an epoch, as if the missing losses were 0."""
        self._update([optimizer for optimizer, *_ in self._pending.values()], average)

    def check(self) -> int:
        """Return which step since the last check (`now`) was the first with a loss that is not finite, or -1.

        The only place that waits for a GPU.
        """
        first = -1 if self._first is None else int(self._first)
        self.now, self._first, self.known_bad = 0, None, False
        return first

    def halve(self) -> None:
        """Halve all learning rates from now on."""
        self.halved += 1
        self.forget()
        self.now, self._first, self.known_bad = 0, None, False

    def forget(self) -> None:
        """Forget gradients that wait."""
        self._pending.clear()
        if self.scaler is not None and self._stepped:  # by others that these waited beside
            self.scaler.update()
            self._stepped.clear()

    @property
    def unusual(self) -> bool:
        """Whether `state_dict` tells more than that nothing happened."""
        return self.halved > 0 or self.scaler is not None

    def facts(self) -> Mapping[str, Any]:
        """Return what a ledger has to say of unusual updates; nothing where there were none."""
        return {"learning rate halved": f"{self.halved} x, after a loss that was not finite"} if self.halved else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next update depends on."""
        return {"halved": self.halved, "scaler": None if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state back."""
        self.halved = int(state["halved"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(dict(state["scaler"]))

    def _flagged(self, loss: Tensor, optimizers: Sequence[Optimizer]) -> Tensor | None:
        """Return 1 on the device where the loss is not finite, else 0; None where it was looked at."""
        if not all(_masks(optimizer) for optimizer in optimizers):
            if not bool(torch.isfinite(loss)):
                if not self._watched:
                    raise NotFiniteError(f"the loss became {float(loss.detach())}; lower the learning rate")
                self.known_bad = True
                if self._first is None or self._first < 0:
                    self._first = torch.tensor(float(self.now))
            return None
        bad = (~torch.isfinite(loss.detach())).float()
        if self._first is None:
            self._first = torch.full_like(bad, -1)
        self._first = torch.where((self._first < 0) & (bad > 0), torch.full_like(bad, self.now), self._first)
        return bad

    def _update(self, due: Sequence[Optimizer], average: Average) -> None:
        if not due:
            return
        average([weight.grad for weight in _weights(due) if weight.grad is not None])
        for optimizer in due:
            *_, bad = self._pending.pop(id(optimizer))
            _fill_momentum(optimizer)
            rates = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5**self.halved
            if self.scaler is not None:
                if id(optimizer) in self._stepped:
                    raise RecipeError(
                        "fp16 cannot accumulate gradients of optimizers that are updated at different rates; "
                        "use --precision bf16 or --accumulate 1"
                    )
                self._stepped.add(id(optimizer))
                self.scaler.step(optimizer)
            else:
                if bad is not None:
                    optimizer.found_inf = bad  # type: ignore[attr-defined]
                optimizer.step()
                if bad is not None:
                    del optimizer.found_inf  # type: ignore[attr-defined]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if self.scaler is not None and self.settled:  # gradients that wait are multiplied by the scale as it is
            self.scaler.update()
            self._stepped.clear()


def _weights(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    every = (weight for each in optimizers for group in each.param_groups for weight in group["params"])
    return [weight for weight in every if weight.requires_grad]


def _masks(optimizer: Optimizer) -> bool:
    """Return whether an optimizer leaves all weights as they are where the device says so (`found_inf`)."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _fill_momentum(optimizer: Optimizer) -> None:
    """Let momentum begin with 0; torch's fused SGD leaves it to chance where the mask leaves out its first update."""
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum") and not group.get("dampening"):
            for weight in group["params"]:
                if weight.grad is not None and optimizer.state[weight].get("momentum_buffer") is None:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def fuse(*optimizers: Optimizer) -> None:
    """Let optimizers that can do so update all weights in one kernel, with the mask in it; before their first step."""
    for optimizer in optimizers:
        if "fused" in optimizer.defaults and not optimizer.state:
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
            optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # as with fused=True at the start
            optimizer.register_load_state_dict_post_hook(_lay_out)


def _lay_out(optimizer: Optimizer) -> None:
    """Give what an optimizer has loaded the layout of its weights in memory: one kernel reads both side by side.

    A state that was saved is contiguous, where weights on a GPU are channels-last.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
