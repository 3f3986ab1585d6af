from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment without what concerns Ray, and afterwards as it was."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


class Ray:
    """What Ray would read when it is imported and started."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def init(self, **_: object) -> None:
        self.seen = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        raise ConnectionError("far enough")


def importable(monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    """Let `import ray` give this, as if nobody had imported it before."""

    class Finder(MetaPathFinder, Loader):
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            return ModuleSpec(name, self) if name == "ray" else None

        def create_module(self, spec: ModuleSpec) -> Any:
            return ray

        def exec_module(self, module: ModuleType) -> None:
            pass

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


@pytest.mark.usefixtures("environment")
def test_a_cluster_of_this_machine_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray()
    importable(monkeypatch, ray)
    with pytest.raises(RecipeError, match="far enough"):
        RayPool(1, 1)
    assert ray.seen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0" and ray.seen["RAY_AUTH_MODE"] == "token"
    assert len(ray.seen["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    importable(monkeypatch, ray)
    with pytest.raises(RecipeError, match="far enough"):
        RayPool(1, 1)
    assert ray.seen["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in ray.seen, "what was chosen stays"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("by", ["address", "environment"])
def test_a_cluster_that_is_there_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    ray = Ray()
    importable(monkeypatch, ray)
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(RecipeError, match="far enough"):
        RayPool(1, 1, address="10.0.0.1:6379" if by == "address" else "")
    assert ray.seen.keys() <= {"RAY_ADDRESS"}


def listening() -> set[str]:
    """Addresses, with ports, that processes of this machine listen on, as hexadecimal digits."""
    found = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        found |= {row[1] for row in rows if row[3] == "0A"}
    return found


@pytest.mark.slow  # a minute: starts a Ray cluster on this machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_runs_of_a_ray_cluster_are_those_of_this_machine(planned: Planned, data: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    before = listening()
    with pytest.raises(RecipeError, match="a run asks for 1000 and 0; ask for fewer threads"):
        RayPool(1, 1000)
    pool = RayPool(0, 1)
    opened = {address.partition(":")[0] for address in listening() - before}
    assert opened and opened <= {"0100007F", "0000000000000000FFFF00000100007F"}, "not on the loopback alone"
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
