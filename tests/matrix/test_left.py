from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from tests.report.examples import RECORD
from tests.report.test_embedding_map import small
from uda_reid.job import Job
from uda_reid.matrix.left import SCENES_CELL, choose, expected_seconds, finished, lacks, record_in
from uda_reid.matrix.plan import Cell, Place, Plan, Planned, plan_runs
from uda_reid.report import BOUND, Lists, Row, write, write_lists, write_map
from uda_reid.selection import LABEL_FREE


@pytest.fixture
def plan(data: Path) -> Plan:
    pairs, out = (("alpha", "beta"), ("beta", "alpha")), data.parent / "runs"
    return Plan(pairs=pairs, recipes=("adabn", "pul"), seeds=(0, 1), data=data, out=out, profile="scenes")


def held_up(choose: Callable[[Sequence[Cell], Iterable[Cell], Iterable[str]], Cell]) -> int:
    """Play a table with two workers, whose runs end in the order of their beginning; count the runs that wait."""
    waiting = [
        Cell(recipe, Place(source, target, seed), frozenset([f"{source}{seed}", f"{target}{seed}"]))
        for seed in range(3)
        for source, target in permutations("abc", 2)
        for recipe in ("adabn", "pul", "cluster")
    ]
    trained, ended, waits = set[str](), list[Cell](), 0
    running = [choose(waiting, [], trained)]
    waiting.remove(running[0])
    while waiting:
        running.append(choose(waiting, running, trained))
        waiting.remove(running[1])
        waits += bool(running[0].models & running[1].models - trained)
        ended.append(running.pop(0))
        trained |= ended[-1].models
    assert len({*ended, *running}) == 54
    return waits


def test_two_workers_hardly_ever_wait_for_one_source_model() -> None:
    assert held_up(choose) <= 1  # the last model of all
    assert held_up(lambda waiting, *_: waiting[0]) > 3  # in their order


def test_expected_time_is_that_of_runs_that_are_there(plan: Plan) -> None:
    planned = plan_runs(plan)
    assert expected_seconds(planned, plan.out, 2) == (8 * SCENES_CELL + 4 * SCENES_CELL) / 2
    assert expected_seconds(Planned(planned.jobs, planned.folders, "paper"), plan.out, 2) is None
    seconds = {"pretrain": 60.0, "adapt": 30.0, "evaluate": 10.0}
    cells = [cell for cell in planned.jobs if cell.recipe == "pul" and cell.place.seed == 0]
    for number, cell in enumerate(cells):
        recipe = {**RECORD.recipe, "name": "pul"}
        folder = planned.folders[cell]
        folder.mkdir(parents=True)
        took = {**seconds, "pretrain": 60.0 * (1 - number)}  # the second one found its model
        made = replace(RECORD, profile="scenes", recipe=recipe, seconds=took)
        write(made.with_row(Row(BOUND, made.start.scores, {}), command=""), folder / "record.json")
        (folder / "adapted.safetensors").touch()
        write_lists(Lists("", 0, ()), folder / "ranked.json")
    model = sorted(cells[0].models)[0]
    (plan.out / "sources" / model).mkdir(parents=True)
    (plan.out / "sources" / model / "source.safetensors").touch()
    assert expected_seconds(planned, plan.out, 1) == 6 * 40.0 + 3 * 60.0  # of adabn nothing is known but that
    assert expected_seconds(planned.only(["beta:alpha:pul:0"]), plan.out, 1) == 0.0
    other = replace(RECORD, profile="small", recipe={**RECORD.recipe, "name": "adabn"}, seconds={"adapt": 9999.0})
    (plan.out / "other").mkdir()
    write(other, plan.out / "other" / "record.json")  # of another profile, and no measure for these
    assert expected_seconds(planned, plan.out, 1) == 6 * 40.0 + 3 * 60.0
    (planned.folders[cells[0]] / "record.json").write_text("{}")
    assert record_in(planned.folders[cells[0]]) is None


def test_run_is_finished_when_it_has_its_model_and_all_that_is_wanted(tmp_path: Path) -> None:
    job, folder = Job(recipe="pul", source="a", target="b"), tmp_path
    assert not finished(folder, job)
    write(RECORD, folder / "record.json")
    assert not finished(folder, job)  # its model is missing
    (folder / "adapted.safetensors").touch()
    assert not finished(folder, job)  # its ranked lists are
    (folder / "ranked.json").write_text("{")
    assert not finished(folder, job)
    write_lists(Lists("", 0, ()), folder / "ranked.json")
    assert finished(folder, job)
    for wanting in (replace(job, bound=True), replace(job, forgetting=True), replace(job, gap=True)):
        assert not finished(folder, wanting)
    assert finished(folder, replace(job, selection=True))  # too late for that
    assert not finished(folder, replace(job, embedding_map=True))
    (folder / "embedding_map.json").touch()
    assert not finished(folder, replace(job, embedding_map=True))  # damaged
    write_map(small(), folder / "embedding_map.json")
    assert finished(folder, replace(job, embedding_map=True))
    whole = replace(RECORD, gap={"MMD": 1.0}, on_source=(RECORD.start.scored,) * 2)
    whole = whole.with_row(Row(BOUND, RECORD.start.scores, {}), command="")
    assert lacks(whole, ("bound", "forgetting", "gap", "selection")) == ("selection",)
    measured = replace(whole, curve=tuple({**entry, **dict.fromkeys(LABEL_FREE, 0.0)} for entry in RECORD.curve))
    assert lacks(measured, ("selection",)) == () == lacks(RECORD, ())
    write(whole, folder / "record.json")
    assert finished(folder, replace(job, bound=True, forgetting=True, gap=True))
