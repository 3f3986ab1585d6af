from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.data.images import AUGMENTATIONS
from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.launch import Stop
from uda_reid.run import Run, Silent
from uda_reid.sharing import Alone
from uda_reid.training.batches import Batches, SideBySide, ahead
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.loop import LOOK, PARTIAL, Draws, Stateful, Stopped, train
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


# Stopped in the middle of an epoch


class StopAt(Stop):
    """Asks to stop while a step runs, by its number; the steps count themselves."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def count(self) -> None:
        assert self.noticing
        self.left -= 1
        self.asked = self.left == 0


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


class Work:
    """A small training with everything in it that is drawn or remembered; three steps in an epoch of 12 images."""

    def __init__(self, *, fused: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
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
            images = torch.cat([part.images for part in parts]) + torch.rand(1, generator=self.draws.generator)
            loss = nn.functional.cross_entropy(self.model(images), torch.cat([part.labels for part in parts]))
            if self.bad(parts[0]):
                loss = loss * torch.inf
            run.step(loss, self.optimizer)
            if isinstance(run.stop, StopAt):
                run.stop.count()
            return {"loss": loss, "noise": torch.rand(())}

        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "draws": self.draws}
        given: Callable[[int], Iterable[Any]] = batches
        return train(step, given, epochs=epochs, parts=parts, name="work", run=run, keep=keep)


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("step", range(1, 10))
def test_training_stopped_after_any_step_ends_bit_identical(step: int, side: bool) -> None:
    whole, told = Work(), Told()
    history = whole.train(Run(), side=side)
    memory, first, second = Memory(), Work(), Work()
    epoch, within = (step - 1) // 3 + 1, (step - 1) % 3 + 1
    with pytest.raises(Stopped, match=rf"^work: epoch {epoch}: stopped after step {within}$"):
        first.train(Run(store=memory, stop=StopAt(step)), side=side)
    assert second.train(Run(store=memory, reporter=told), side=side) == history
    assert (equal(whole.model, second.model) and not equal(whole.model, first.model)) or step == 9
    assert f"work: epoch {epoch}: goes on after step {within}" in told.lines
    assert memory.states[PARTIAL] == {"name": "", "epoch": 0}


def test_training_stopped_after_every_step_in_turn_ends_bit_identical(tmp_path: Any) -> None:
    whole, last = Work(), Work()
    history = whole.train(Run())
    for _ in range(9):
        last = Work()
        with pytest.raises(Stopped):
            last.train(Run(store=CheckpointFolder(tmp_path), stop=StopAt(1)))
    last = Work()
    assert last.train(Run(store=CheckpointFolder(tmp_path))) == history and equal(whole.model, last.model)


def test_stopped_training_whose_caller_keeps_epochs_goes_on_in_the_same_epoch() -> None:
    whole = Work()
    history = whole.train(Run(), epochs=1, keep=False)
    memory, second = Memory(), Work()
    with pytest.raises(Stopped):
        Work().train(Run(store=memory, stop=StopAt(2)), epochs=1, keep=False)
    assert list(memory.states) == [PARTIAL]
    assert second.train(Run(store=memory), epochs=1, keep=False) == history and equal(whole.model, second.model)
    assert "work" not in memory.states


def test_what_another_training_was_stopped_at_is_left_alone() -> None:
    memory = Memory()
    with pytest.raises(Stopped):
        Work().train(Run(store=memory, stop=StopAt(5)))  # in the second epoch
    kept = dict(memory.states)
    trained(Run(store=memory))
    assert memory.states[PARTIAL] is kept[PARTIAL]


def test_stop_waits_until_no_gradient_waits() -> None:
    whole, memory, second = Work(), Memory(), Work()
    history = whole.train(Run(accumulate=2))
    with pytest.raises(Stopped, match="epoch 1: stopped after step 2"):
        Work().train(Run(store=memory, stop=_Stays(1), accumulate=2))
    assert second.train(Run(store=memory, accumulate=2)) == history and equal(whole.model, second.model)
    assert not equal(whole.model, Work().model)
    with pytest.raises(Stopped, match="epoch 2: stopped after step 2"):  # an epoch of three steps ends with a flush
        Work().train(Run(store=Memory(), stop=_Stays(3), accumulate=2))


class _Stays(StopAt):
    """Asks from a step on."""

    def count(self) -> None:
        self.left -= 1
        self.asked = self.left <= 0


def test_nobody_is_watched_outside_of_training() -> None:
    stop = StopAt(2)
    assert not stop.noticing
    with pytest.raises(Stopped):
        Work().train(Run(stop=stop))
    assert not stop.noticing


def test_steps_that_report_nothing_can_be_stopped() -> None:
    layer, seen = nn.Linear(1, 1), []

    def step(batch: int) -> Mapping[str, Tensor]:
        seen.append(batch)
        stop.count()
        return {}

    memory, stop = Memory(), StopAt(2)
    run = Run(store=memory, stop=stop)
    with pytest.raises(Stopped):
        train(step, lambda _: [1, 2, 3], epochs=1, parts={"layer": layer}, name="x", run=run)
    assert train(step, lambda _: [1, 2, 3], epochs=1, parts={"layer": layer}, name="x", run=run) == [{}]
    assert seen == [1, 2, 3]


class Many(Alone):
    """Two processes that are one: what is asked of all."""

    count = 2

    def __init__(self) -> None:
        self.asked = 0

    def any(self, here: bool) -> bool:
        self.asked += 1
        return here


@pytest.mark.parametrize(("steps", "stopped"), [(25, 10), (4, 4)])
def test_several_processes_agree_now_and_then_and_at_the_end_of_an_epoch(steps: int, stopped: int) -> None:
    stop, processes = _Stays(3), Many()

    def step(_: int) -> Mapping[str, Tensor]:
        stop.count()
        return {"loss": torch.zeros(())}

    run = Run(processes=processes, stop=stop)
    with pytest.raises(Stopped, match=f"stopped after step {stopped}$"):
        train(step, lambda _: list(range(steps)), epochs=1, parts={}, name="x", run=run)
    assert processes.asked == 1


# Back to the beginning of an epoch


class Once:
    """Says yes in the given steps only."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.number = steps, 0

    def __call__(self, _: object) -> bool:
        self.number += 1
        return self.number in self.steps


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
    assert warning.startswith("warning: work: epoch 1, step 2: the loss ")
    assert warning.endswith("; back to the beginning of the epoch, with half the learning rate")


def test_rollbacks_are_of_one_epoch_and_used_up() -> None:
    spoilt, run = Work(), Run(rollbacks=2, store=Memory())
    spoilt.bad = Once(5, 8, 10)  # in the second epoch, in its second attempt, in its third
    with pytest.raises(
        NotFiniteError, match=r"^work: epoch 2, step 2: the loss became .*; all rollbacks \(2\) are used up$"
    ):
        spoilt.train(run)
    assert run.updates.halved == 2
    assert len(run.store.states["work"]["history"]) == 1  # type: ignore[attr-defined]
    with pytest.raises(NotFiniteError, match="epoch 1, step 1"):
        other = Work()
        other.bad = Once(1)
        other.train(Run())


def test_halved_rates_outlast_an_interruption_also_into_the_next_training_of_the_slot() -> None:
    memory, spoilt = Memory(), Work()
    spoilt.bad = Once(1)
    spoilt.train(Run(store=memory, rollbacks=1), epochs=1)
    assert memory.states["updates"]["halved"] == 1  # for the ledger of a run whose training is over
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
    again = Run(store=memory, rollbacks=1)
    Work().train(again, epochs=1, keep=False)
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
        first.train(Run(store=memory, rollbacks=1, stop=StopAt(3)), epochs=epochs, keep=keep)
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
    assert str(told.value).startswith(f"x: epoch 1, step {bad}: the loss was not finite; every update that it would ")
    had = f"number {bad - 1}" if bad > 1 else "nothing to tell"
    assert f"; the step before had {had}; rows [[{bad % 12}]; " in str(told.value).replace("rows [", "rows [[")
    assert made == (LOOK if bad <= LOOK < steps else steps)


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


def test_where_nothing_could_be_tried_it_says_so() -> None:
    assert "32 images does not fit into memory, 16 may fit; use" in too_large(32, 0, error=torch.OutOfMemoryError)


def test_a_step_that_takes_no_other_number_is_not_tried_further() -> None:
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        raise (torch.OutOfMemoryError if len(sizes) == 1 else ValueError)("no")

    batch = Batch(torch.zeros(8, 3, 4, 2), torch.zeros(8), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match="4 may fit"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())
    assert sizes == [8, 4]


# Batches that begin later


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_batches_behind_those_left_out_are_the_same_and_the_others_are_not_read(augmentation: str, start: int) -> None:
    read: list[list[int]] = []

    class Counted(Noise):
        def read(self, rows: Tensor, height: int, width: int) -> Tensor:
            read.append(rows.tolist())
            return super().read(rows, height, width)

    def made() -> Batches:
        rows = torch.split(torch.arange(12), 5)
        return Batches(
            Counted(), torch.arange(12), rows, size=(16, 8), augmentation=augmentation, name="x", run=Run()
        )  # fmt: skip

    whole = list(made())
    read.clear()
    later = made()
    later.skip(start)
    found = list(later)
    assert len(read) == len(found) == 3 - start
    for one, other in zip(whole[start:], found, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.rows, other.rows)
    assert all(torch.equal(one.images, other.images) for one, other in zip(whole, later, strict=True))  # once more


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_image_is_changed_the_same_however_the_rows_are_dealt(augmentation: str) -> None:
    rows = torch.randint(0, 12, (30,), generator=torch.Generator().manual_seed(0))

    def made(size: int) -> Tensor:
        options: dict[str, Any] = {"size": (16, 8), "augmentation": augmentation, "run": Run()}
        batches = Batches(Noise(), torch.arange(12), torch.split(rows, size), name="x", **options)
        return torch.cat([batch.images for batch in batches])

    whole = made(30)
    assert torch.equal(made(4), whole)
    again = [torch.nonzero(rows == row).flatten()[:2].tolist() for row in range(1, 12)]  # row 0 is black
    pairs = torch.tensor([places for places in again if len(places) == 2])
    same = (whole[pairs[:, 0]] == whole[pairs[:, 1]]).flatten(1).all(1)
    assert bool(same.all()) is bool(same.any()) is (augmentation == "none")  # each time in another way


def test_side_by_side_skips_in_every_domain() -> None:
    def made() -> SideBySide:
        options: dict[str, Any] = {"size": (16, 8), "augmentation": "reid", "run": Run()}
        plans = torch.split(torch.arange(12), 4), torch.split(torch.arange(6), 2)
        return SideBySide(
            *(Batches(Noise(), torch.arange(12), plan, name=f"{len(plan[0])}", **options) for plan in plans)
        )

    whole, later = list(made()), made()
    later.skip(2)
    [found] = later
    for one, other in zip(whole[2], found, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


class One(Alone):
    """One of several processes, seen from the plan of its batches."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("start", [0, 1])
def test_processes_have_the_images_of_their_shares_and_the_labels_of_all(augmentation: str, start: int) -> None:
    def made(run: Run) -> list[Batch]:
        rows = torch.split(torch.randperm(12, generator=torch.Generator().manual_seed(0)), 5)
        batches = Batches(
            Noise(), torch.arange(12), rows[:2], size=(16, 8), augmentation=augmentation, name="x", run=run
        )
        batches.skip(start)
        return list(batches)

    shares = zip(*(made(Run(processes=One(rank, 3))) for rank in range(3)), strict=True)
    for whole, parts in zip(made(Run()), shares, strict=True):
        assert [len(part.images) for part in parts] == [2, 2, 1]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert all(torch.equal(part.labels, whole.labels) and torch.equal(part.rows, whole.rows) for part in parts)


# Reading ahead


def rows_of(count: int) -> list[Tensor]:
    return list(torch.arange(count).reshape(-1, 1))


@pytest.mark.parametrize("many", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_what_is_read_ahead_comes_in_order(many: int, count: int) -> None:
    assert [int(each) for each in ahead(lambda rows: rows * 10, rows_of(count), many=many)] == [
        10 * number for number in range(count)
    ]


@pytest.mark.parametrize("many", [1, 3])
def test_a_thread_reads_while_somebody_works_but_never_far_ahead(many: int) -> None:
    begun: list[int] = []
    read = threading.Condition()

    def note(rows: Tensor) -> Tensor:
        assert threading.current_thread() is not threading.main_thread()
        with read:
            begun.append(int(rows))
            read.notify()
        return rows

    def waited_for(count: int) -> bool:
        with read:
            return read.wait_for(lambda: len(begun) >= count, timeout=5)

    for number, rows in enumerate(ahead(note, rows_of(8), many=many)):
        assert int(rows) == number
        assert waited_for(min(number + 1 + many, 8)), "nothing is read meanwhile"
        time.sleep(0.002)
        assert len(begun) <= number + 1 + many


def test_errors_of_reading_come_out_where_the_batch_would() -> None:
    def read(rows: Tensor) -> Tensor:
        if int(rows) == 2:
            raise OSError("gone")
        return rows

    def all_of(items: Iterator[Tensor]) -> None:
        found.extend(int(each) for each in items)

    found: list[int] = []
    with pytest.raises(OSError, match="gone"):
        all_of(ahead(read, rows_of(6)))
    assert found == [0, 1]


def test_draws_are_put_back() -> None:
    draws = Draws(torch.Generator().manual_seed(3))
    torch.rand(2, generator=draws.generator)
    kept = draws.state_dict()
    first = torch.rand(4, generator=draws.generator)
    again = Draws(torch.Generator())
    again.load_state_dict(kept)
    assert torch.equal(torch.rand(4, generator=again.generator), first)
