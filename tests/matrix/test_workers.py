from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.report.examples import RECORD
from uda_reid.job import Job
from uda_reid.matrix import workers
from uda_reid.matrix.plan import Cell, Place, Plan, plan_runs
from uda_reid.matrix.workers import Answer, Began, Ended, Postponed, Processes, Worker, answer_in, answer_to, make
from uda_reid.pipeline import Busy


class Dying(Worker):
    """A process that ends before it has answered."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=os._exit, args=(9,), daemon=True)
        self.process.start()
        theirs.close()


def test_a_process_that_dies_is_a_failure_and_no_hang() -> None:
    assert Dying().answer() == Answer(None, failure="its process ended with code 9; start again to go on")


def test_jobs_can_be_handed_to_another_process() -> None:
    here, there = get_context("spawn").Pipe()
    job = Job(recipe="pul", source="a", target="b")
    here.send(job)
    assert there.recv() == job


def test_what_goes_wrong_in_a_run_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    job = Job(recipe="nobody", source="alpha", target="beta", data=data)
    assert answer_to(job).failure.startswith("recipe 'nobody'")

    def broken(_: Job) -> None:
        raise ValueError("two\n  lines")

    monkeypatch.setattr(workers, "one", broken)
    assert answer_to(job) == Answer(None, failure="ValueError: two lines")

    def busy(_: Job) -> None:
        raise Busy("another process")

    monkeypatch.setattr(workers, "one", busy)
    assert answer_to(job) == Answer(None, failure="another process", busy=True)


class Scripted:
    """A pool that answers at once what the script says, recipe by recipe."""

    def __init__(self, script: Mapping[str, list[Answer]], size: int = 1) -> None:
        self.script, self.size, self.begun = script, size, list[str]()
        self.ready: dict[int, Answer] = {}
        self.closed, self.slept = 0, 0.0

    def begin(self, slot: int, job: Job) -> None:
        assert slot not in self.ready and 1 <= slot <= self.size
        self.begun.append(job.recipe)
        self.ready[slot] = self.script[job.recipe].pop(0)

    def wait(self, slots: Sequence[int], seconds: float | None) -> list[int]:
        if not slots:
            assert seconds is not None, "nobody would ever wake it"
            self.slept += seconds
            time.sleep(seconds)
        return list(slots)[:1]

    def answer(self, slot: int) -> Answer:
        return self.ready.pop(slot)

    def close(self) -> None:
        self.closed += 1


def jobs_of(*names: str) -> dict[Cell, Job]:
    return {Cell(name, Place("x", "y", 0)): Job(recipe=name, source="x", target="y") for name in names}


FAILED = Answer(None, failure="no space left")


def test_a_run_that_another_command_makes_is_asked_for_again_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.05)
    busy = Answer(None, failure="busy", busy=True)
    pool = Scripted({"a": [busy, busy, FAILED], "b": [FAILED], "c": [FAILED]})
    events = list(make(jobs_of("a", "b", "c"), pool))
    assert pool.begun == ["a", "b", "c", "a", "a"] and pool.closed == 1
    assert [event.cell.recipe for event in events if isinstance(event, Ended)] == ["b", "c", "a"]
    assert [event.worker for event in events if isinstance(event, Began)] == [1] * 5
    assert [event.cell.recipe for event in events if isinstance(event, Postponed)] == ["a", "a"]
    assert pool.slept > 0.04  # once nothing else is left, it does not ask without a pause


def test_run_whose_source_model_is_being_trained_waits_for_others() -> None:
    def cell(name: str, *models: str) -> Cell:
        return Cell(name, Place("x", "y", 0), frozenset(models))

    first, second, third = cell("a", "m"), cell("b", "m"), cell("c", "n")
    jobs = {each: Job(recipe=each.recipe, source="x", target="y") for each in (first, second, third)}
    pool = Scripted({"a": [Answer(RECORD)], "b": [FAILED], "c": [FAILED]}, size=2)
    list(make(jobs, pool))
    assert pool.begun == ["a", "c", "b"]
    trained = Scripted({"a": [Answer(RECORD)], "b": [FAILED], "d": [FAILED], "c": [FAILED]})
    jobs = {each: Job(recipe=each.recipe, source="x", target="y") for each in (first, cell("d", "m"), second, third)}
    list(make(jobs, trained))
    assert trained.begun == ["a", "d", "b", "c"]  # in their order, once the model is there


def test_time_of_runs_that_were_found_is_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Scripted({"a": [Answer(RECORD, found=True)], "b": [FAILED]})
    ended = [event for event in make(jobs_of("a", "b"), pool) if isinstance(event, Ended)]
    assert [event.left for event in ended] == [0.0, 0.0]


def test_process_that_was_killed_is_replaced(data: Path) -> None:
    pool = Processes(1, 1)
    try:
        pool.workers[1].process.kill()
        pool.workers[1].process.join()
        pool.begin(1, Job(recipe="nobody", source="alpha", target="beta", data=data))
        assert pool.wait([1], 60) == [1] and "nobody" in pool.answer(1).failure
        processes = [worker.process for worker in pool.workers.values()]
    finally:
        pool.close()
    for process in processes:
        process.join(10)
        assert not process.is_alive()


def test_what_nobody_expected_is_written_down_for_those_who_mend_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: Job) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(workers, "one", broken)
    answer_to(Job(recipe="pul", source="a", target="b", out=tmp_path, command="uda-reid adapt"))
    text = (tmp_path / "failures.log").read_text()
    assert "uda-reid adapt" in text and "Traceback" in text and "ValueError: odd" in text


def test_environment_of_the_caller_stays_as_it_is() -> None:
    before = dict(os.environ)
    Processes(1, 3).close()
    assert dict(os.environ) == before


def test_slots_are_filled_and_refilled_and_the_time_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    done = Answer(RECORD)
    pool = Scripted({name: [done] for name in "abc"}, size=2)
    events = list(make(jobs_of("a", "b", "c"), pool))
    kinds = [(type(event).__name__, event.cell.recipe) for event in events]
    assert kinds[:3] == [("Began", "a"), ("Began", "b"), ("Ended", "a")] and kinds[3] == ("Began", "c")
    ended = [event for event in events if isinstance(event, Ended)]
    assert ended[0].seconds > 0 and ended[0].left == ended[0].seconds  # two more, two at a time
    assert ended[-1].left == 0


def test_pool_is_closed_when_nobody_listens_any_more() -> None:
    pool = Scripted({"a": [FAILED], "b": [FAILED]})
    events = make(jobs_of("a", "b"), pool)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert pool.closed == 1


def test_all_runs_are_made_and_found_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `make` sets these for its processes; here they are put back
    for name in workers.POOLS:
        monkeypatch.setenv(name, "1")
    tiny = str(data / "tiny.yaml")
    plan = Plan(pairs=(("alpha", "beta"),), recipes=(tiny,), seeds=(0,), data=data, out=data / "runs", profile="paper")
    jobs = plan_runs(plan).jobs
    for found in (False, True):
        began, ended = make(jobs, Processes(1, 1))
        assert isinstance(began, Began) and isinstance(ended, Ended)
        assert began.cell == ended.cell and ended.answer.found == found
        record = ended.answer.record
        assert record is not None and record.environment["threads"] == 1
        assert record.row("supervised") is not None


def test_paths_of_a_job_begin_in_the_folder_it_is_made_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(recipe="tiny.yaml", source="alpha", target="beta", data=Path(), out=Path("runs"), profile="paper")
    assert answer_in(str(data), job).record is not None
    assert list((data / "runs").glob("tiny-alpha-beta-s0-*/record.json")) and not (tmp_path / "runs").exists()


def test_a_process_of_a_matrix_imports_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("multiprocessing", "torch", "typer"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    pool = Processes(1, 1)
    try:
        (slot,) = pool.workers
        pool.begin(slot, Job(recipe="nothing.yaml", source="a", target="b"))
        pool.wait([slot], 60)
        assert "nothing.yaml does not exist" in pool.answer(slot).failure
    finally:
        pool.close()
    assert not (tmp_path / "ran").exists()
