from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops import Memory, StopAt, Told, Work, equal, trained
from uda_reid.run import Run
from uda_reid.sharing import Alone
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.loop import PARTIAL, Stopped, train


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
    whole, memory, another, second = Work(), Memory(), Memory(), Work()
    history = whole.train(Run(accumulate=2))
    with pytest.raises(Stopped, match="epoch 1: stopped after step 2"):
        Work().train(Run(store=memory, stop=_Stays(1), accumulate=2))
    assert second.train(Run(store=memory, accumulate=2)) == history and equal(whole.model, second.model)
    assert not equal(whole.model, Work().model)
    with pytest.raises(Stopped, match="epoch 2: stopped before its first step"):  # one of three steps ends with a flush
        Work().train(Run(store=another, stop=_Stays(3), accumulate=2))
    third = Work()
    assert third.train(Run(store=another, accumulate=2)) == history and equal(whole.model, third.model)


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
    stop.asked = False
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
    assert processes.asked == 2  # at the beginning of the epoch, too


@pytest.mark.parametrize(
    ("accumulate", "steps", "where"), [(4, 18, "after step 12"), (16, 10, "before its first step")]
)
def test_several_processes_agree_once_no_gradient_waits(accumulate: int, steps: int, where: str) -> None:
    stop, layer = _Stays(3), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters())

    def step(_: int) -> Mapping[str, Tensor]:
        stop.count()
        run.step(layer(torch.ones(1, 1)).sum(), optimizer)
        return {"loss": torch.zeros(())}

    run = Run(processes=Many(), stop=stop, accumulate=accumulate)
    with pytest.raises(Stopped, match=f"stopped {where}$"):
        train(step, lambda _: list(range(steps)), epochs=9, parts={}, name="x", run=run)
    assert stop.left > 3 - 2 * steps
