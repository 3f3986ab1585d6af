"""An epoch that begins anew with half the learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops import Memory, Noise, Once, StopAt, Told, Work, equal
from uda_reid.errors import NotFiniteError
from uda_reid.run import Run
from uda_reid.training.batches import Batches
from uda_reid.training.loop import Stateful, Stopped, train
from uda_reid.types import Batch
from uda_reid.updates import fuse


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("fused", [False, True])
def test_an_epoch_with_an_infinite_loss_begins_anew_with_half_the_rate(fused: bool, keep: bool, side: bool) -> None:
    epochs, told = 2 if keep else 1, Told()
    spoilt, plain = Work(fused=fused), Work(fused=fused)
    spoilt.bad = Once(2)
    run, half = Run(rollbacks=1, reporter=told), Run()
    half.updates.halve()
    history = spoilt.train(run, epochs=epochs, keep=keep, side=side)
    assert history == plain.train(half, epochs=epochs, keep=keep, side=side)
    assert equal(spoilt.model, plain.model)
    assert run.updates.facts() == {"learning rate halved": "1 x, after a loss that was not finite"}
    [warning] = [line for line in told.lines if line.startswith("warning: ")]
    assert warning.startswith(
        "warning: work: epoch 1, step 2: the loss was not finite, and no update was made with it; "
    )
    assert warning.endswith("; rollback 1 of 1: the epoch begins again, with 1/2 of the learning rate")
    assert "rows" not in warning and "--" not in warning


def test_every_rollback_of_an_epoch_goes_back_to_the_same_beginning() -> None:
    spoilt, plain = Work(), Work()
    spoilt.bad = Once(6, 9)  # the last step of the second epoch, and of its second attempt
    assert len(spoilt.train(Run(rollbacks=2), epochs=2)) == 2
    quarter, made = Run(), 0

    def from_the_second_epoch_on(_: Batch) -> bool:
        nonlocal made
        made += 1
        if made == 4:
            quarter.updates.halve()
            quarter.updates.halve()
        return False

    plain.bad = from_the_second_epoch_on
    plain.train(quarter, epochs=2)
    assert equal(spoilt.model, plain.model)


def test_rollbacks_are_of_one_epoch_and_used_up() -> None:
    told = Told()
    spoilt, run = Work(), Run(rollbacks=3, store=Memory(), reporter=told)
    spoilt.bad = Once(5, 8, 10, 12)  # in the second epoch, in its second attempt, in its third, in its fourth
    with pytest.raises(
        NotFiniteError, match=r"^work: epoch 2, step 2: the loss was not finite, .*; all rollbacks \(3\) are used up$"
    ):
        spoilt.train(run)
    assert run.updates.halved == 3
    steps = [line.split("; ")[-1] for line in told.lines if line.startswith("warning: ")]
    again = "the epoch begins again, with 1/{} of the learning rate"
    assert steps == [f"rollback {number} of 3: {again.format(2**number)}" for number in (1, 2, 3)]
    assert len(run.store.states["work"]["history"]) == 1  # type: ignore[attr-defined]
    with pytest.raises(NotFiniteError, match="epoch 1, step 1"):
        other = Work()
        other.bad = Once(1)
        other.train(Run())


def test_halved_rates_outlast_an_interruption_also_into_the_next_training_of_the_slot() -> None:
    memory, spoilt = Memory(), Work()
    spoilt.bad = Once(1)
    spoilt.train(Run(store=memory, rollbacks=1), epochs=1)
    assert memory.states["updates"]["after"]["halved"] == 1  # for the ledger of a run whose training is over
    again = Run(store=memory, rollbacks=1)
    Work().train(again, epochs=1)  # is found
    assert again.updates.halved == 1
    later = Run(store=memory, rollbacks=1)
    layer = nn.Linear(1, 1)
    train(lambda _: {}, lambda _: [0], epochs=1, parts={"layer": layer}, name="next", run=later, slot="work")
    assert later.updates.halved == 1


def test_halved_rates_outlast_an_interruption_where_the_caller_keeps_epochs() -> None:
    memory, spoilt, again = Memory(), Work(), Run(rollbacks=1)
    spoilt.bad = Once(1)
    spoilt.train(Run(store=memory, rollbacks=1), epochs=1, keep=False)
    lost, layer = Run(store=memory, rollbacks=1), nn.Linear(1, 1)
    Work().train(lost, epochs=1, keep=False)  # the caller had not kept it yet: it is made again from its beginning
    assert lost.updates.halved == 0
    again = Run(store=memory, rollbacks=1)
    train(lambda _: {}, lambda _: [0], epochs=1, parts={"layer": layer}, name="next", run=again, keep=False)
    assert again.updates.halved == 1
    quiet = Memory()
    Work().train(Run(store=quiet), epochs=1, keep=False)
    assert not quiet.states  # nothing unusual is nothing to keep


@pytest.mark.parametrize("keep", [True, False])
def test_training_stopped_behind_a_rollback_ends_bit_identical(keep: bool) -> None:
    epochs = 2 if keep else 1
    spoilt, memory, first, second = Work(), Memory(), Work(), Work()
    spoilt.bad, first.bad = Once(2), Once(2)
    run, again = Run(rollbacks=1), Run(store=memory, rollbacks=1)
    history = spoilt.train(run, epochs=epochs, keep=keep)
    with pytest.raises(Stopped, match="epoch 1: stopped after step 2"):
        first.train(Run(store=memory, rollbacks=1, stop=StopAt(4)), epochs=epochs, keep=keep)
    assert second.train(again, epochs=epochs, keep=keep) == history
    assert equal(spoilt.model, second.model) and again.updates.halved == 1


def test_rollback_behind_a_resumed_step_goes_to_the_first_step_of_the_epoch() -> None:
    plan: Batches | None = None
    seen: list[list[int]] = []
    memory, layer = Memory(), nn.Linear(1, 1)
    bad = Once(4)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        seen.append(batch.rows.tolist())
        if bad(batch):
            raise NotFiniteError("no number")
        if isinstance(run.stop, StopAt):
            run.stop.count()
        return {"pixel": batch.images.mean()}

    def batches(_: int) -> Batches:
        assert plan is not None
        return plan  # as strategies do that train for one epoch: the same object once more

    def made() -> Batches:
        rows = torch.split(torch.arange(12), 4)
        return Batches(Noise(), torch.zeros(12), rows, size=(16, 8), augmentation="reid", name="x", run=run)

    run = Run(store=memory, stop=StopAt(2), rollbacks=1)
    plan = made()
    with pytest.raises(Stopped):
        train(step, batches, epochs=1, parts={"layer": layer}, name="x", run=run, keep=False)
    run = Run(store=memory, rollbacks=1)
    plan = made()
    bad = Once(1)
    [found] = train(step, batches, epochs=1, parts={"layer": layer}, name="x", run=run, keep=False)
    assert [rows[0] for rows in seen] == [0, 4, 8, 0, 4, 8]
    plan = made()
    [plain] = train(step, batches, epochs=1, parts={"layer": layer}, name="x", run=Run(), keep=False)
    assert found == plain


def test_several_trainings_of_one_run_go_on_with_the_rates_that_the_last_one_ended_with() -> None:
    """The first keeps its epochs itself, as pretraining does; callers keep those of the others, as strategies do."""
    rates: dict[str, int] = {}

    def program(run: Run, *, bad: tuple[str, ...] = (), until: int = 3) -> None:
        def one(name: str, *, keep: bool) -> None:
            layer, spoilt = nn.Linear(1, 1), Once(1) if name in bad else Once()
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

            def step(_: int) -> Mapping[str, Tensor]:
                rates[name] = run.updates.halved
                loss = layer(torch.ones(1, 1)).sum() * (torch.inf if spoilt(None) else 1)
                run.step(loss, optimizer)
                return {"loss": loss}

            parts: dict[str, Stateful] = {"layer": layer, "optimizer": optimizer}
            train(step, lambda _: [0, 1], epochs=1, parts=parts, name=name, run=run, keep=keep)

        one("pretrain", keep=True)
        for epoch in range((run.restore("mine") or {"done": 0})["done"], until):
            one(f"cluster/epoch/{epoch}", keep=False)
            run.save("mine", {"done": epoch + 1})

    whole, memory = Run(store=Memory(), rollbacks=3), Memory()
    program(whole, bad=("pretrain", "cluster/epoch/0"))
    expected = dict(rates)
    assert expected == {"pretrain": 1, "cluster/epoch/0": 2, "cluster/epoch/1": 2, "cluster/epoch/2": 2}
    program(Run(store=memory, rollbacks=3), bad=("pretrain", "cluster/epoch/0"), until=2)
    rates.clear()
    again = Run(store=memory, rollbacks=3)
    program(again)
    assert rates == {"cluster/epoch/2": 2} and again.updates.facts() == whole.updates.facts()


def test_a_rollback_brings_back_the_scale_of_float16s_losses() -> None:
    layer, made = nn.Linear(1, 1), 0
    scales: list[float] = []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    fuse(optimizer)

    def step(_: int) -> Mapping[str, Tensor]:
        nonlocal made
        made += 1
        assert run.updates.scaler is not None
        scales.append(run.updates.scaler.get_scale())
        loss = layer(torch.ones(1, 1)).square().sum() * (torch.nan if 5 <= made <= 20 else 1)
        run.step(loss, optimizer)
        return {"loss": loss}

    run = Run(precision="fp16", rollbacks=1)
    train(step, lambda _: list(range(20)), epochs=1, parts={"layer": layer, "o": optimizer}, name="x", run=run)
    assert made == 40 and scales[19] < scales[0] / 1000 and scales[20:] == scales[:1] * 20
