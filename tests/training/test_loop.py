from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops import Memory, Noise, equal, trained
from uda_reid.errors import NotFiniteError
from uda_reid.run import Run
from uda_reid.training.batches import Batches, SideBySide
from uda_reid.training.loop import Draws, train
from uda_reid.types import Batch


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
        told = loss if not torch.isfinite(loss) else torch.tensor(0.25 if 3 in batch.rows else 9.0)
        return {"loss": told, "triplet": torch.tensor(3.0)}

    def batches(_: int) -> Batches:
        rows = torch.split(torch.arange(12), 4)
        return Batches(Noise(), torch.zeros(12), rows, size=(4, 2), augmentation="none", name="x", run=run)

    with pytest.raises(NotFiniteError) as stop:
        train(step, batches, epochs=3, parts={"model": model}, name="pul/round/0", run=run)
    told = str(stop.value)
    assert told.startswith("pul/round/0: epoch 2, step 3: the loss was not finite, and no update was made with it; ")
    assert "; lower the learning rate (--set adapt.lr=...), or start with --rollbacks 3, which halves it" in told
    assert "; it had loss -inf, triplet 3; the step before loss 9, triplet 3; rows [8, 9, 10, 11]; " in told
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
        NotFiniteError,
        match=r"step 1: no number; rows \[1, 2\] and \[3\]; what is saved stays; lower .* \(--set adapt\.lr=.*\), or ",
    ):
        train(step, batches, epochs=1, parts={}, name="x", run=Run())


def test_draws_are_put_back() -> None:
    draws = Draws(torch.Generator().manual_seed(3))
    torch.rand(2, generator=draws.generator)
    kept = draws.state_dict()
    first = torch.rand(4, generator=draws.generator)
    again = Draws(torch.Generator())
    again.load_state_dict(kept)
    assert torch.equal(torch.rand(4, generator=again.generator), first)
