from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops import Memory, Noise, Once, StopAt, Told, Work, equal
from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.models.batch_norm import grouped
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.run import Run
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.training.loop import LOOK, Stateful, Stopped, train
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


# A loss that is looked at later


@pytest.mark.parametrize(("bad", "steps"), [(1, 3), (3, 3), (LOOK, LOOK + 2), (LOOK + 1, LOOK + 2)])
def test_a_loss_that_was_not_finite_is_told_later_with_its_step_and_rows(bad: int, steps: int) -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    fuse(optimizer)
    made, before = 0, torch.zeros(1)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        nonlocal made, before
        made += 1
        before = layer.weight.detach().clone() if made == bad else before
        loss = layer(torch.ones(1, 1)).square().sum()
        run.step(loss * torch.inf if made == bad else loss, optimizer)
        assert made != bad or torch.equal(layer.weight, before)
        return {"number": torch.tensor(float(made))}

    def batches(_: int) -> Batches:
        rows = [torch.tensor([number % 12]) for number in range(1, steps + 1)]
        return Batches(Noise(), torch.zeros(12), rows, size=(4, 2), augmentation="none", name="x", run=run)

    run = Run()
    with pytest.raises(NotFiniteError) as told:
        train(step, batches, epochs=1, parts={"layer": layer}, name="x", run=run)
    assert str(told.value).startswith(f"x: epoch 1, step {bad}: the loss was not finite, and no update was made ")
    before_it = f"the step before number {bad - 1}; " if bad > 1 else ""
    assert f"; it had number {bad}; {before_it}rows [{bad % 12}]; what is saved stays; lower" in str(told.value)
    assert made == (LOOK if bad <= LOOK < steps else steps)


@pytest.mark.parametrize("rollbacks", [0, 1])
def test_what_fails_behind_a_loss_that_is_not_finite_is_that_losses_fault(rollbacks: int) -> None:
    layer, bad, made = nn.Linear(1, 1), Once(2), 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step(_: int) -> Mapping[str, Tensor]:
        nonlocal made
        made += 1
        loss = layer(torch.ones(1, 1)).square().sum() * (torch.nan if bad(None) else 1)
        run.step(loss, optimizer)
        if torch.isnan(loss):
            raise ValueError("no eigenvalues of that")
        return {"loss": loss}

    parts: dict[str, Stateful] = {"layer": layer, "optimizer": optimizer}
    run = Run(rollbacks=rollbacks)
    if not rollbacks:
        with pytest.raises(
            NotFiniteError, match=r"epoch 1, step 2: the loss was not finite, .*; the step before loss "
        ):
            train(step, lambda _: [1, 2, 3], epochs=1, parts=parts, name="x", run=run)
        before = layer.weight.detach().clone()
        run.step(layer(torch.ones(1, 1)).sum(), optimizer)  # nothing of it is left
        assert not torch.equal(layer.weight, before)
        made = 2
    train(step, lambda _: [1, 2, 3], epochs=1, parts=parts, name="x", run=run)
    assert made == 5 and run.updates.halved == rollbacks


def test_nothing_is_kept_of_a_stop_behind_a_loss_that_was_not_finite() -> None:
    spoilt, memory = Work(fused=True), Memory()
    spoilt.bad = Once(1)
    with pytest.raises(NotFiniteError, match="epoch 1, step 1: the loss was not finite"):
        spoilt.train(Run(store=memory, stop=StopAt(2)))
    assert not memory.states


# A batch that is too large


def too_large(
    size: int, fits: int, *, name: str = "daam/epoch/0", error: type[BaseException], side: bool = False
) -> str:
    held: list[weakref.ref[Tensor]] = []
    tried: list[int] = []

    def step(batch: Batch | tuple[Batch, ...]) -> Mapping[str, Tensor]:
        parts = (batch,) if isinstance(batch, Batch) else batch
        tried.append(max(len(part.images) for part in parts))
        assert all(len(part.images) == len(part.labels) == len(part.rows) for part in parts)
        assert not held or held[-1]() is None, "what a batch has filled the memory with is still there"
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        if tried[-1] > fits:
            raise error("CUDA out of memory")
        return {}

    def batches(_: int) -> Iterable[Any]:
        images = torch.zeros(size, 3, 4, 2)
        batch = Batch(images, torch.zeros(size), torch.arange(size))
        return [(batch, batch) if side else batch]

    with pytest.raises(OutOfMemoryError) as told:
        train(step, batches, epochs=1, parts={}, name=name, run=Run())
    assert tried == [size >> times for times in range(len(tried))]
    return str(told.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("side", [False, True])
def test_batch_that_does_not_fit_names_one_that_was_tried(error: type[BaseException], side: bool) -> None:
    told = too_large(32, 5, error=error, side=side)
    assert told == (
        "daam/epoch/0: epoch 1: a batch of 32 images does not fit into memory, 4 fit; use --set adapt.batch=4, "
        "or --precision bf16; what is saved stays"
    )
    assert "--set pretrain.batch=16" in too_large(32, 16, error=error, side=side, name="pretrain")


def test_parts_of_a_batch_that_are_tried_hold_whole_identities() -> None:
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        if len(batch.rows) > 8:
            raise MemoryError
        return {}

    batch = Batch(torch.zeros(36, 3, 4, 2), torch.arange(9).repeat_interleave(4), torch.arange(36))
    with pytest.raises(OutOfMemoryError, match=r"36 images does not fit into memory, 8 fit; use --set adapt.batch=8,"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())
    assert sizes == [36, 16, 8]


@pytest.mark.parametrize(("instances", "group", "fits"), [(4, 0, 12), (4, 6, 12), (1, 8, 8)])
def test_no_part_of_a_batch_is_tried_that_nobody_could_ask_for(instances: int, group: int, fits: int) -> None:
    """Two identities at least, and whole groups of batch norm."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    grouped(net, group)
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        raise MemoryError

    labels = torch.arange(48 // instances).repeat_interleave(instances)
    batch = Batch(torch.zeros(48, 3, 4, 2), labels, torch.arange(48))
    with pytest.raises(OutOfMemoryError, match=f"48 images does not fit .*, and neither do {fits}; use smaller"):
        train(step, lambda _: [batch], epochs=1, parts={"net": net}, name="x", run=Run())
    assert sizes[-1] == fits and all(size % max(group, 1) == 0 for size in sizes)
    small = Batch(torch.zeros(8, 3, 4, 2), torch.arange(2).repeat_interleave(4), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match=r"and no smaller one can be made of it; use smaller images, or"):
        train(step, lambda _: [small], epochs=1, parts={}, name="x", run=Run())


def test_memory_that_is_full_before_a_step_is_told_too() -> None:
    def batches(_: int) -> Iterable[Batch]:
        yield Batch(torch.zeros(8, 3, 4, 2), torch.arange(8), torch.arange(8))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match=r"^pretrain: epoch 1: its next batch .* smaller --set pretrain\.batch="):
        train(lambda _: {"loss": torch.zeros(())}, batches, epochs=1, parts={}, name="pretrain", run=Run())


def test_memory_that_is_full_while_images_are_embedded_is_told_too() -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    encoder = build(EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none"))
    encoder.register_forward_pre_hook(full)
    with pytest.raises(OutOfMemoryError, match="features: blocks of 128 images do not fit"):
        extract(encoder, Noise())


def test_a_full_machine_is_told_as_a_full_gpu_is_and_other_errors_as_they_are() -> None:
    def step(batch: Batch) -> Mapping[str, Tensor]:
        torch.empty(len(batch.rows) * 2**50, dtype=torch.uint8)  # what torch's own allocator says of it
        return {}

    batch = Batch(torch.zeros(8, 3, 4, 2), torch.zeros(8), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match="a batch of 8 images does not fit into memory, and neither do 2"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())

    def broken(_: Batch) -> Mapping[str, Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot"):
        train(broken, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())


def test_a_part_of_a_batch_fits_where_its_update_does_too() -> None:
    """Optimizers take memory of their own at their first update, which waits where losses are accumulated."""
    layer = nn.Linear(1, 1)
    sizes: list[int] = []

    class Full(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if sizes[-1] > 4:
                raise MemoryError

    optimizer = Full(layer.parameters())
    run = Run(accumulate=2)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        if sizes[-1] > 8:
            raise MemoryError
        run.step(layer(torch.ones(1, 1)).sum(), optimizer)
        return {}

    batch = Batch(torch.zeros(16, 3, 4, 2), torch.arange(16), torch.arange(16))
    with pytest.raises(OutOfMemoryError, match="16 images does not fit into memory, 4 fit"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=run)
    assert sizes == [16, 8, 4]


def test_where_nothing_could_be_tried_it_says_so() -> None:
    assert "32 images does not fit into memory, and neither do 2; use" in too_large(32, 0, error=torch.OutOfMemoryError)


def test_a_step_that_takes_no_other_number_is_not_tried_further() -> None:
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        raise (torch.OutOfMemoryError if len(sizes) == 1 else ValueError)("no")

    batch = Batch(torch.zeros(8, 3, 4, 2), torch.zeros(8), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match="4 may fit"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())
    assert sizes == [8, 4]
