"""`Run`: everything that training code needs from its surroundings, and nothing else.

A strategy draws random numbers, moves modules to a device, reports progress and saves what it needs to resume
through the `Run` it is handed. The default, `QUIET`, runs on one process on the CPU, prints nothing and keeps nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from uda_reid.errors import NotFiniteError, RecipeError

T = TypeVar("T")
State = Mapping[str, Any]
"""What `save` takes: nested mappings with text keys; leaves are tensors, NumPy arrays, numbers, text, None or lists."""


class Store(Protocol):
    """Keeps named states; a write replaces the old state at once or not at all."""

    def save(self, name: str, state: State) -> None:
        """Keep `state` under `name`."""

    def restore(self, name: str) -> dict[str, Any] | None:
        """Return the state last kept under `name`, or None."""


class Reporter(Protocol):
    """Shows a person what is going on."""

    def log(self, message: str) -> None:
        """Say one line."""

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Yield `items`, showing how many have passed."""


class Silent:
    """A reporter that says nothing."""

    def log(self, message: str) -> None:
        """Drop the line."""

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Return `items` as they are."""
        return items


class Forgetful:
    """A store that keeps nothing."""

    def save(self, name: str, state: State) -> None:
        """Drop the state."""

    def restore(self, name: str) -> dict[str, Any] | None:
        """Return None: nothing was kept."""
        return None


Probe = Callable[[nn.Module, int, Tensor | None], None]


def _no_probe(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
    return None


@dataclass(frozen=True)
class Run:
    """The surroundings of one training or adaptation.

    Args:
        seed: root of every random stream of this run.
        device: where modules and batches live, as torch names it (`cpu`, `cuda`, `cuda:1`).
        precision: `fp32`, or `bf16` for autocast in the forward passes.
        store: where `save` and `restore` keep states (default: nowhere).
        reporter: where `log` and `progress` show themselves (default: nowhere).
        prober: what `probe` does with a snapshot (default: nothing).
    """

    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    store: Store = field(default_factory=Forgetful)
    reporter: Reporter = field(default_factory=Silent)
    prober: Probe = _no_probe

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise RecipeError(f"precision {self.precision!r} is unknown; use fp32 or bf16")

    def seed_for(self, name: str) -> int:
        """Return the seed of the random stream called `name`: 63 bits that depend on the name and the run's seed only.

        A new consumer takes a new name and so never shifts the draws of another.

        >>> Run(seed=1).seed_for("pul/kmeans/3") == Run(seed=1).seed_for("pul/kmeans/3")
        True
        >>> Run(seed=1).seed_for("pul/kmeans/3") == Run(seed=2).seed_for("pul/kmeans/3")
        False
        """
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def stream(self, name: str) -> torch.Generator:
        """Return a fresh CPU generator for the random stream called `name`."""
        return torch.Generator().manual_seed(self.seed_for(name))

    @contextmanager
    def randomness(self, name: str) -> Iterator[None]:
        """Inside, torch's global random numbers (dropout, say) are the stream `name`; outside they are untouched."""
        devices = range(torch.cuda.device_count()) if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices=list(devices)):
            torch.default_generator.manual_seed(self.seed_for(name))
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.seed_for(name))
            yield

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run at this run's precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def log(self, message: str) -> None:
        """Say one line to whoever watches."""
        self.reporter.log(message)

    def progress(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """Yield `items` while showing progress."""
        return self.reporter.progress(items, description, total)

    def probe(self, encoder: nn.Module, step: int, pseudo_labels: Tensor | None = None) -> None:
        """Hand out a snapshot of the encoder after `step` epochs or rounds; nothing comes back.

        Args:
            encoder: the encoder as it stands; the receiver copies what it keeps.
            step: the number of finished epochs or rounds.
            pseudo_labels: (N,) int64 cluster per target row, -1 where the row was not used; for later audits.
        """
        self.prober(encoder, step, pseudo_labels)

    def save(self, name: str, state: State) -> None:
        """Keep `state` under `name`, so that an interrupted run can go on from here."""
        self.store.save(name, state)

    def restore(self, name: str) -> dict[str, Any] | None:
        """Return what was last saved under `name`, or None where there is nothing."""
        return self.store.restore(name)

    def prepare(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        """Make `module` and the optimizers of its parameters ready for this run's device, in place."""
        module.to(self.device)

    def step(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """Backpropagate `loss` and step the optimizers.

        Raises:
            NotFiniteError: the loss is not finite; no weight has been touched by then.
        """
        if not bool(torch.isfinite(loss)):
            raise NotFiniteError(
                f"the loss became {float(loss.detach())}; lower the learning rate"
                " (--set adapt.lr=... or --set pretrain.lr=...)"
            )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes in order; with one process, the tensor itself."""
        return tensor

    def main_only(self, action: Callable[[], T]) -> T:
        """Return what `action` gives on the main process, to all processes."""
        return action()


QUIET = Run()
"""The default surroundings: seed 0, CPU, no output, nothing kept."""
