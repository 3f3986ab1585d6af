"""`Run`: everything that training code needs from its surroundings, and nothing else.

A strategy draws random numbers, moves modules to a device, reports progress and saves what it needs to resume
through the `Run` it is handed. The default, `QUIET`, runs on one process on the CPU, prints nothing and keeps nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from uda_reid.errors import RecipeError
from uda_reid.launch import Stop
from uda_reid.sharing import ALONE, Processes
from uda_reid.unreadable import Unreadable
from uda_reid.updates import Updates, fuse

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]
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


@runtime_checkable
class CompilesBlocks(Protocol):
    """An encoder whose blocks can be compiled one by one."""

    def compile_blocks(self) -> None:
        """Compile them; those that are compiled stay so."""


Probe = Callable[[nn.Module, int, Tensor | None], None]


UNMADE = Updates()
"""Stands for updates that a run makes for itself."""


def _no_probe(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
    return None


@dataclass(frozen=True)
class Run:
    """The surroundings of one training or adaptation.

    Args:
        seed: root of every random stream of this run.
        device: where modules and batches live, as torch names it (`cpu`, `cuda`, `cuda:1`).
        precision: `fp32`, or `bf16` or `fp16` for autocast in the forward passes.
        store: where `save` and `restore` keep states (default: nowhere).
        reporter: where `log` and `progress` show themselves (default: nowhere).
        prober: what `probe` does with a snapshot (default: nothing).
        processes: who shares this run (default: nobody).
        accumulate: losses per update.
        rollbacks: how often training may go back to the beginning of an epoch and halve its learning rates, where a
            loss is not finite.
        compiled: whether encoders' blocks are compiled (`torch.compile`).
        stop: asks training to stop.
        unreadable: counts images that cannot be read any more (default: each is an error).
        updates: makes the updates; one that does not do as `accumulate` and `precision` say hands its count of halved
            rates to a new one that does (default: a new one).
    """

    seed: int = 0
    device: str = "cpu"
    precision: Precision = "fp32"
    store: Store = field(default_factory=Forgetful)
    reporter: Reporter = field(default_factory=Silent)
    prober: Probe = _no_probe
    processes: Processes = ALONE
    accumulate: int = 1
    rollbacks: int = 0
    compiled: bool = False
    stop: Stop = field(default_factory=Stop)
    unreadable: Unreadable = field(default_factory=Unreadable)
    updates: Updates = UNMADE

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise RecipeError(f"precision {self.precision!r} is unknown; use one of {', '.join(get_args(Precision))}")
        scaled = self.precision == "fp16"
        fits = self.updates.accumulate == self.accumulate and (self.updates.scaler is not None) is scaled
        if self.updates is UNMADE or not fits:
            made = Updates(accumulate=self.accumulate, scaled=scaled, device=self.device)
            made.halved = self.updates.halved
            object.__setattr__(self, "updates", made)

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

    def random_state(self) -> State:
        """Return the state of torch's global random numbers, for `set_random_state`."""
        cuda = torch.device(self.device).type == "cuda"
        return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(self.device)] if cuda else []}

    def set_random_state(self, state: State) -> None:
        """Set torch's global random numbers; only inside `randomness`."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state(state["cuda"][0], self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run at this run's precision."""
        if self.precision == "fp32":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype=kind)

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
        self.main_only(lambda: self.prober(encoder, step, pseudo_labels))

    def save(self, name: str, state: State) -> None:
        """Keep `state` under `name`, so that an interrupted run can go on from here."""
        self.main_only(lambda: self.store.save(name, state))

    def restore(self, name: str) -> dict[str, Any] | None:
        """Return what was last saved under `name`, or None where there is nothing."""
        return self.main_only(lambda: self.store.restore(name))

    def prepare(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        """Make `module` and the optimizers of its parameters ready for this run's device and processes, in place."""
        module.to(self.device)
        self.processes.prepare(module, trained=bool(optimizers))
        if torch.device(self.device).type == "cuda":
            module.to(memory_format=torch.channels_last)
            fuse(*optimizers)
        if self.compiled:
            for part in module.modules():
                if isinstance(part, CompilesBlocks):
                    part.compile_blocks()

    def step(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """Backpropagate `loss` and step the optimizers, by the mean of the gradients of all processes.

        Raises:
            NotFiniteError: the loss is not finite; no weight has been touched. `training.loop.train` raises it instead,
                behind the step or, of a GPU, later: what follows this call then works on weights as they were.
        """
        self.updates.step(loss, optimizers, self.processes.average)

    def share(self, total: int) -> slice:
        """Return which rows of a batch of `total` are this process's: the first process has the first ones.

        Raises:
            RecipeError: there are fewer rows than processes.
        """
        if total < self.processes.count:
            many = self.processes.count
            raise RecipeError(f"a batch of {total} images is too small for {many} processes; use fewer of them")
        size, more = divmod(total, self.processes.count)
        rank = self.processes.rank
        first = rank * size + min(rank, more)
        return slice(first, first + size + (rank < more))

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        """Return what all processes made of a batch, in the order of its rows; with one process, the tensor itself.

        Losses look at whole batches. On this, every process computes the same loss, and the gradients that reach each
        encoder are those of its own rows; `step` puts them together.

        Args:
            tensor: (b, ...) what this process made of its share of the batch (`share`).
            total: the number of rows of the whole batch.

        Returns:
            (total, ...), with gradient.
        """
        return self.processes.gather(tensor, total)

    def main_only(self, action: Callable[[], T]) -> T:
        """Return what `action` gives on the main process, to all processes; it must not ask others for anything."""
        return self.processes.main_only(action)


QUIET = Run()
"""The default surroundings: seed 0, CPU, no output, nothing kept."""
