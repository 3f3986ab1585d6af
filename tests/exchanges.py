"""What every process of several has to find; checked in threads quickly, and in real processes.

As a program: `python -m tests.exchanges`, in every process, with the environment of a launcher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import RecipeError, UdaReidError, UnreadableError
from uda_reid.models.batch_norm import grouped, shared
from uda_reid.run import Run
from uda_reid.sharing import Processes
from uda_reid.training.features import extract
from uda_reid.training.meeting import join
from uda_reid.types import Encoder


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_are_gathered_in_order(processes: Processes) -> None:
    run = Run(processes=processes)
    for total in (2, 3, 4, 7):
        for kind in (torch.float32, torch.float64, torch.int64, torch.bool):
            whole = (numbers(total, 3, 2) * 4).to(kind)
            assert torch.equal(run.gather(whole[run.share(total)], total), whole)
    with pytest.raises(ValueError, match=r"has 5 of 7 rows, not [34]"):
        run.gather(torch.zeros(5, 1), 7)
    with pytest.raises(RecipeError, match="a batch of 1 images is too small for 2 processes; use fewer of them"):
        run.share(1)


def gradients_are_those_of_the_undivided_batch(processes: Processes) -> None:
    run = Run(processes=processes)
    images, labels = numbers(7, 5), torch.arange(7) % 3

    def made() -> nn.Module:
        net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        with torch.no_grad():
            for number, weight in enumerate(net.parameters()):
                weight.copy_(numbers(*weight.shape, seed=number))
        grouped(net)
        return net

    plain, own = made(), made()
    shared(own, processes, trained=True)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (plain, own)]
    for _ in range(3):  # the classifier sees all rows on every process, what comes before it some
        logits = plain(images)
        Run().step(nn.functional.cross_entropy(logits, labels) + logits.std(0).sum(), optimizers[0])
        logits = own[2](run.gather(own[:2](images[run.share(7)]), 7))  # type: ignore[index]
        run.step(nn.functional.cross_entropy(logits, labels) + logits.std(0).sum(), optimizers[1])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-10, atol=1e-10)


def means_are_of_all_processes_and_kinds(processes: Processes) -> None:
    kinds = (torch.float32, torch.float64, torch.float32)
    tensors = [torch.full((3, number), float(processes.rank + number), dtype=kind) for number, kind in enumerate(kinds)]
    turned = numbers(3, 2, seed=processes.rank).T
    expected = torch.stack([numbers(3, 2, seed=rank).T for rank in range(processes.count)]).mean(0)
    processes.average([*tensors, turned])
    for number, (tensor, kind) in enumerate(zip(tensors, kinds, strict=True)):
        assert tensor.dtype == kind and bool((tensor == number + (processes.count - 1) / 2).all())
    torch.testing.assert_close(turned, expected)
    processes.average([])


def any_is_of_all(processes: Processes) -> None:
    found = [processes.any(processes.rank == rank) for rank in (0, processes.count - 1, -1)]
    assert found == [True, True, False]


class Demanding(Exception):
    """An error whose class cannot be made again from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def the_main_process_works_for_all(processes: Processes) -> None:
    done: list[int] = []

    def action() -> dict[str, Any]:
        done.append(processes.rank)
        return {"rows": torch.arange(3), "text": "x", "rank": processes.rank}

    found = processes.main_only(action)
    assert (found["rank"], found["text"], found["rows"].tolist()) == (0, "x", [0, 1, 2])
    assert done == ([0] if processes.rank == 0 else [])


def errors_of_the_main_process_are_raised_on_all(processes: Processes) -> None:
    def fails(error: Exception) -> Callable[[], None]:
        def action() -> None:
            raise error

        return action

    with pytest.raises(UnreadableError, match="broken") as told:
        processes.main_only(fails(UnreadableError("broken", [3, 4])))
    assert told.value.rows == (3, 4)
    with pytest.raises((Demanding, UdaReidError), match="this and that") as sent:
        processes.main_only(fails(Demanding("this", "that")))
    assert processes.rank == 0 or str(sent.value) == "Demanding: this and that"
    with pytest.raises((OSError, UdaReidError), match="local"):

        class Local(OSError):
            pass

        processes.main_only(fails(Local("local")))
    assert processes.main_only(lambda: processes.rank) == 0  # and they are still in step


def work_of_the_main_process_that_asks_others_is_an_error(processes: Processes) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: processes.any(True),
        lambda: processes.gather(torch.zeros(1), processes.count),
        lambda: processes.average([torch.zeros(1)]),
        lambda: processes.main_only(lambda: 1),
        lambda: Run(processes=processes).save("x", {}),
    ]
    for ask in asks:
        with pytest.raises(RuntimeError, match="work of the main process alone asks for the other processes"):
            processes.main_only(ask)
        assert processes.main_only(lambda: "in step") == "in step"
        assert processes.any(processes.rank == 1)


class Painted:
    """Images in memory, uint8."""

    def __init__(self, count: int) -> None:
        self.images = (torch.rand(count, 3, 8, 4, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
        self.read_here: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        self.read_here += rows.tolist()
        return self.images[rows]


class Small(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.dim, self.spec = 5, {"height": 8, "width": 4}
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        grouped(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images).mean((2, 3))
        return features


def features_are_the_same_to_the_last_bit(processes: Processes) -> None:
    for count in (0, 1, 127, 128, 129, 256, 300):
        for augmentation in ("none", "ide", "reid"):
            encoder, images, alone = Small().train(), Painted(count), Painted(count)
            found = extract(encoder, images, augmentation=augmentation, run=Run(processes=processes))
            expected = extract(Small(), alone, augmentation=augmentation)
            assert torch.equal(found, expected) and found.shape == (count, 5), (count, augmentation)
            blocks = torch.split(torch.arange(count), 128)[processes.rank :: processes.count]
            assert images.read_here == [row for block in blocks for row in block.tolist()]
            assert encoder.training
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    found = extract(Small(), Painted(300), rows=rows, run=Run(processes=processes))
    assert torch.equal(found, extract(Small(), Painted(300), rows=rows))


def copies_know_the_same_processes(processes: Processes) -> None:
    assert copy.deepcopy(processes) is processes


CHECKS: list[Callable[[Processes], None]] = [
    rows_are_gathered_in_order,
    gradients_are_those_of_the_undivided_batch,
    means_are_of_all_processes_and_kinds,
    any_is_of_all,
    the_main_process_works_for_all,
    errors_of_the_main_process_are_raised_on_all,
    work_of_the_main_process_that_asks_others_is_an_error,
    features_are_the_same_to_the_last_bit,
    copies_know_the_same_processes,
]


def main() -> None:
    torch.set_num_threads(1)
    processes, device = join("cpu")
    assert (processes.count, device) == (2, "cpu"), device
    for check in CHECKS:
        check(processes)
        print(f"{check.__name__} passed")


if __name__ == "__main__":
    main()
