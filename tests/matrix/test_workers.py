from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from uda_reid.job import Job
from uda_reid.matrix import workers
from uda_reid.matrix.plan import Cell, Place, Plan, plan_runs
from uda_reid.matrix.workers import Answer, Began, Ended, Worker, answer_to, make
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
    """A worker that answers at once what the script says, job by job."""

    script: dict[str, list[Answer]] = {}  # noqa: RUF012 - the test's own
    begun: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.here, self.pipe = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=os._exit, args=(0,))
        self.process.terminate = lambda: None  # type: ignore[method-assign]
        self.process.is_alive = lambda: True  # type: ignore[method-assign]
        self.began = 0.0

    def begin(self, job: Job) -> None:
        self.begun.append(job.recipe)
        self.here.send(self.script[job.recipe].pop(0))

    def answer(self) -> Answer:
        found: Answer = self.pipe.recv()
        return found


def test_a_run_that_another_command_makes_is_asked_for_again_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "Worker", Scripted)
    monkeypatch.setattr(workers, "PATIENCE", 0.05)
    busy, failed = Answer(None, failure="busy", busy=True), Answer(None, failure="no space left")
    monkeypatch.setattr(Scripted, "script", {"a": [busy, busy, failed], "b": [failed], "c": [failed]})
    monkeypatch.setattr(Scripted, "begun", [])
    jobs = {Cell(name, Place("x", "y", 0)): Job(recipe=name, source="x", target="y") for name in ("a", "b", "c")}
    events = list(make(jobs, jobs=1, threads=1))
    assert Scripted.begun == ["a", "b", "c", "a", "a"]
    assert [event.cell.recipe for event in events if isinstance(event, Ended)] == ["b", "c", "a"]
    assert [event.worker for event in events if isinstance(event, Began)] == [1] * 5


def test_all_runs_are_made_and_found_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `make` sets these for its processes; here they are put back
    for name in workers.POOLS:
        monkeypatch.setenv(name, "1")
    tiny = str(data / "tiny.yaml")
    plan = Plan(pairs=(("alpha", "beta"),), recipes=(tiny,), seeds=(0,), data=data, out=data / "runs", profile="paper")
    jobs = plan_runs(plan).jobs
    for found in (False, True):
        began, ended = make(jobs, jobs=3, threads=1)
        assert isinstance(began, Began) and isinstance(ended, Ended)
        assert began.cell == ended.cell and ended.answer.found == found
        record = ended.answer.record
        assert record is not None and record.environment["threads"] == 1
        assert record.row("supervised") is not None
