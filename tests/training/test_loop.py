from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import NotFiniteError
from uda_reid.run import Run
from uda_reid.training.loop import Batches, SideBySide, Stateful, train
from uda_reid.types import Batch


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


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_training_interrupted_after_any_epoch_ends_bit_identical(finished: int) -> None:
    whole, history = trained(Run())
    store = Memory(saves=finished)
    with pytest.raises(InterruptedError):
        trained(Run(store=store))
    store.left = 1000
    resumed, resumed_history = trained(Run(store=store))
    assert equal(whole, resumed)
    assert history == resumed_history
    assert len(history) == 4


def test_finished_training_is_restored_and_not_repeated() -> None:
    store = Memory()
    first, _ = trained(Run(store=store))
    store.left = 0
    second, _ = trained(Run(store=store))
    assert equal(first, second)


def test_state_of_another_training_in_the_same_slot_is_not_taken() -> None:
    store = Memory()
    trained(Run(store=store), name="first")
    _, history = trained(Run(store=store), name="second", epochs=2)
    assert len(history) == 2


def test_training_leaves_the_global_random_state_alone() -> None:
    trained(Run())
    torch.manual_seed(0)
    nn.Sequential(nn.Linear(3 * 4 * 2, 8), nn.Linear(8, 3))  # what `trained` itself draws
    before = torch.get_rng_state()
    trained(Run())
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_epochs_change_nothing() -> None:
    model, history = trained(Run(), epochs=0)
    torch.manual_seed(0)
    same = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert history == []
    assert equal(model, same)


def test_batches_carry_pixels_between_0_and_1_with_their_labels() -> None:
    batches = Batches(
        Noise(), torch.arange(12) * 10, [torch.tensor([3, 1])], size=(4, 2), augmentation="none", name="x", run=Run()
    )
    batch = next(iter(batches))
    assert len(batches) == 1
    assert batch.images.shape == (2, 3, 4, 2)
    assert torch.allclose(batch.images[:, 0, 0, 0], torch.tensor([3 / 255, 1 / 255]))
    assert batch.labels.tolist() == [30, 10]


def test_side_by_side_are_batches_of_all_domains_in_their_order() -> None:
    def batches(rows: list[list[int]], label: int) -> Batches:
        plan = [torch.tensor(some) for some in rows]
        labels = torch.full((12,), label)
        return Batches(Noise(), labels, plan, size=(4, 2), augmentation="none", name=str(label), run=Run())

    pairs = SideBySide(batches([[0, 1], [2, 3]], 7), batches([[4], [5]], 8))
    assert len(pairs) == 2
    found = [(one.rows.tolist(), other.rows.tolist()) for one, other in pairs]
    assert found == [([0, 1], [4]), ([2, 3], [5])]
    assert [(one.labels[0].item(), other.labels[0].item()) for one, other in pairs] == [(7, 8), (7, 8)]
    with pytest.raises(ValueError, match="shorter"):
        list(SideBySide(batches([[0], [1]], 7), batches([[2]], 8)))
    three = SideBySide(batches([[0]], 7), batches([[1, 2]], 8), batches([[3]], 9))
    assert [[part.rows.tolist() for part in parts] for parts in three] == [[[0], [1, 2], [3]]]


def test_loss_that_is_no_number_is_told_with_its_step_its_rows_and_what_was_before() -> None:
    memory, model = Memory(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run(store=memory)
    before: list[Tensor] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        loss = model(batch.images.mean().reshape(1, 1)).sum()
        if 11 in batch.rows and len(memory.states):
            before.append(model.weight.detach().clone())
            loss = loss * torch.inf
        run.step(loss, optimizer)
        return {"loss": torch.tensor(0.25 if 3 in batch.rows else 9.0), "triplet": torch.tensor(3.0)}

    def batches(_: int) -> Batches:
        rows = torch.split(torch.arange(12), 4)
        return Batches(Noise(), torch.zeros(12), rows, size=(4, 2), augmentation="none", name="x", run=run)

    with pytest.raises(NotFiniteError) as stop:
        train(step, batches, epochs=3, parts={"model": model}, name="pul/round/0", run=run)
    told = str(stop.value)
    assert told.startswith("pul/round/0: epoch 2, step 3: the loss became ") and "lower the learning rate" in told
    assert "the step before had loss 9, triplet 3; rows [8, 9, 10, 11]" in told
    assert torch.equal(model.weight, before[0]) and len(memory.states["pul/round/0"]["history"]) == 1


def test_rows_of_all_domains_are_told() -> None:
    def step(_: tuple[Batch, ...]) -> Mapping[str, Tensor]:
        raise NotFiniteError("no number")

    def batches(_: int) -> SideBySide:
        options: dict[str, Any] = {"size": (4, 2), "augmentation": "none", "name": "x", "run": Run()}
        return SideBySide(
            *(Batches(Noise(), torch.zeros(12), [torch.tensor(rows)], **options) for rows in ([1, 2], [3]))
        )

    with pytest.raises(
        NotFiniteError, match=r"step 1: no number; the step before had nothing to tell; rows \[1, 2\] and \[3\]"
    ):
        train(step, batches, epochs=1, parts={}, name="x", run=Run())
