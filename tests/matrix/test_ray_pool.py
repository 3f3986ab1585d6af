from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uda_reid.errors import RecipeError
from uda_reid.matrix.plan import Plan, Planned, plan_runs
from uda_reid.matrix.ray_pool import RayPool
from uda_reid.matrix.workers import Ended, Processes, make
from uda_reid.report import Record


@pytest.fixture
def planned(data: Path) -> Planned:
    tiny = str(data / "tiny.yaml")
    plan = Plan(
        pairs=(("alpha", "beta"), ("beta", "alpha")), recipes=(tiny,), data=data, out=data / "out", profile="paper"
    )
    return plan_runs(plan)


def records(events: Iterator[Any]) -> dict[str, Record]:
    found = {}
    for event in events:
        if isinstance(event, Ended):
            assert event.answer.record is not None, event.answer.failure
            found[str(event.cell)] = event.answer.record
    return found


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r'needs Ray; install it with: pip install "uda_reid\[ray\]"$'):
        RayPool(1, 1)


@pytest.mark.slow  # a minute: starts a Ray cluster on this machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_runs_of_a_ray_cluster_are_those_of_this_machine(planned: Planned, data: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(RecipeError, match="a run asks for 1000 and 0; ask for fewer threads"):
        RayPool(1, 1000)
    pool = RayPool(0, 1)
    assert pool.size >= 1
    pool.size = min(pool.size, 2)
    mine = records(make(planned.jobs, pool))
    (data / "out").rename(data / "ray")
    theirs = records(make(planned.jobs, Processes(2, 1)))
    assert mine.keys() == theirs.keys() and len(mine) == 2
    for name, one in mine.items():
        other = theirs[name]
        assert one.environment["threads"] == other.environment["threads"] == 1
        for row, twin in zip(one.rows, other.rows, strict=True):
            assert row.scored.average_precision.tolist() == twin.scored.average_precision.tolist()
        assert (one.history, one.recipe, one.command) == (other.history, other.recipe, other.command)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_cluster_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("ray")
    with pytest.raises(RecipeError, match=r"^--address auto: no Ray cluster is there \("):
        RayPool(1, 1, address="auto")
