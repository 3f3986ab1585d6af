"""What the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uda_reid.launch import Stop
from uda_reid.run import Run, Silent
from uda_reid.sharing import Alone
from uda_reid.training.batches import Batches, SideBySide
from uda_reid.training.loop import Draws, Stateful, train
from uda_reid.types import Batch
from uda_reid.updates import fuse


class Memory:
    """A store that keeps deep copies in memory and can be told to fail after some saves."""

    def __init__(self, saves: int = 1000) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.left = saves

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        if not self.left:
            raise InterruptedError
        self.left -= 1
        import copy

        self.states[name] = copy.deepcopy(dict(state))

    def restore(self, name: str) -> dict[str, Any] | None:
        return self.states.get(name)


class Noise:
    """Images whose pixels are their row number."""

    def __len__(self) -> int:
        return 12

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        return rows.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()


def trained(run: Run, *, epochs: int = 4, name: str = "test") -> tuple[nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def batches(epoch: int) -> Batches:
        rows = torch.split(torch.randperm(12, generator=run.stream(f"rows/{epoch}")), 4)
        return Batches(Noise(), torch.arange(12) % 3, rows, size=(4, 2), augmentation="none", name=f"{epoch}", run=run)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
        run.step(loss, optimizer)
        return {"loss": loss}

    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    return model, train(step, batches, epochs=epochs, parts=parts, name=name, run=run, slot="slot")


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[key]) for key, value in first.state_dict().items())


class StopAt(Stop):
    """Asks to stop while a step runs, by its number; the steps count themselves."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def count(self) -> None:
        assert self.noticing
        self.left -= 1
        self.asked = self.left == 0


class One(Alone):
    """One of several processes, seen from the plan of its batches."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


class Work:
    """A small training with everything in it that is drawn or remembered; three steps in an epoch of 12 images."""

    def __init__(self, *, fused: bool = False, dropout: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 8, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 3)
        )
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        if fused:
            fuse(self.optimizer)
        self.bad: Callable[[Batch], bool] = lambda _: False
        self.draws: Draws | None = None

    def train(self, run: Run, *, epochs: int = 3, keep: bool = True, side: bool = False) -> list[dict[str, float]]:
        self.draws = Draws(run.stream("draws"))

        def batches(epoch: int) -> Batches | SideBySide:
            def one(name: str) -> Batches:
                rows = torch.split(torch.randperm(12, generator=run.stream(f"{name}/rows/{epoch}")), 4)
                return Batches(
                    Noise(), torch.arange(12) % 3, rows, size=(16, 8), augmentation="reid", name=f"{name}/{epoch}",
                    run=run,
                )  # fmt: skip

            return SideBySide(one("first"), one("second")) if side else one("first")

        def step(given: Batch | tuple[Batch, ...]) -> Mapping[str, Tensor]:
            assert self.draws is not None
            parts = (given,) if isinstance(given, Batch) else given
            images = torch.cat([part.images for part in parts]) + torch.rand((), generator=self.draws.generator)
            loss = nn.functional.cross_entropy(self.model(images), torch.cat([part.labels for part in parts]))
            if self.bad(parts[0]):
                loss = loss * torch.inf
            run.step(loss, self.optimizer)
            if isinstance(run.stop, StopAt):
                run.stop.count()
            return {"loss": loss, "noise": torch.rand((), device=loss.device)}

        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "draws": self.draws}
        given: Callable[[int], Iterable[Any]] = batches
        return train(step, given, epochs=epochs, parts=parts, name="work", run=run, keep=keep)


class Once:
    """Says yes in the given steps only."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.number = steps, 0

    def __call__(self, _: object) -> bool:
        self.number += 1
        return self.number in self.steps
