from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from uda_reid.errors import RecipeError
from uda_reid.matrix.plan import Plan, Planned, plan_runs
from uda_reid.matrix.ray_pool import CLUSTERS, RayPool
from uda_reid.matrix.workers import Ended, Processes, make
from uda_reid.report import Record

WITH_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")  # not imported: a pool sets what it reads


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


@pytest.mark.usefixtures("clean")
def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r'needs Ray; install it with: pip install "uda_reid\[ray\]"$'):
        RayPool(1, 1)


class FakeRay(ModuleType):
    """A Ray that notes how a cluster is started, and in which environment."""

    def __init__(self, listens: str, connected: bool = False) -> None:
        super().__init__("ray")
        self.asked: list[dict[str, Any]] = []
        self.seen: dict[str, str] = {}
        self.ended = 0
        self.connected = connected
        self.util = SimpleNamespace(get_node_ip_address=lambda: listens)

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        self.asked.append(options)
        self.seen = dict(os.environ)
        if "_temp_dir" in options:
            Path(options["_temp_dir"]).mkdir(mode=0o777)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        return lambda function: function

    def shutdown(self) -> None:
        self.ended += 1

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == "ray" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self

    def exec_module(self, module: ModuleType) -> None:
        pass


def install(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Let `import ray` give the fake, which is not imported yet."""
    monkeypatch.setitem(sys.modules, "ray", fake)
    del sys.modules["ray"]
    monkeypatch.setattr(sys, "meta_path", [fake, *sys.meta_path])
    return fake


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment as it was, whatever a pool puts there."""
    for name in (CLUSTERS, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
def test_cluster_of_this_machine_is_closed_to_other_machines_and_users(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(FakeRay("127.0.0.1"), monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")  # of somebody else
    pool = RayPool(0, 1)
    (options,) = fake.asked
    private = Path(options["_temp_dir"]).parent
    assert options["address"] == "local" and private.stat().st_mode & 0o777 == 0o700
    assert (fake.seen[CLUSTERS], fake.seen["RAY_AUTH_MODE"]) == ("0", "token") and len(
        fake.seen["RAY_AUTH_TOKEN"]
    ) == 64
    pool.close()
    assert fake.ended == 1 and not private.exists()


@pytest.mark.usefixtures("clean")
def test_token_of_the_user_and_named_clusters_stay_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(FakeRay("192.0.2.1"), monkeypatch)
    RayPool(0, 1, address="192.0.2.7:6379")
    assert fake.asked[-1]["address"] == "192.0.2.7:6379" and "_temp_dir" not in fake.asked[-1]
    assert CLUSTERS not in fake.seen and "RAY_AUTH_TOKEN" not in fake.seen
    install(FakeRay("127.0.0.1"), monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    RayPool(0, 1).close()
    assert "RAY_AUTH_TOKEN" not in os.environ and os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.usefixtures("clean")
def test_cluster_that_other_machines_reach_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay("192.0.2.1")  # imported before, with another environment
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(
        RecipeError, match=r"listens on 192\.0\.2\.1, which other machines reach; set RAY_ENABLE_WINDOWS"
    ):
        RayPool(0, 1)
    assert fake.ended == 1 and not Path(fake.asked[0]["_temp_dir"]).parent.exists()
    assert CLUSTERS not in os.environ and "RAY_AUTH_MODE" not in os.environ
    fake = install(FakeRay("127.0.0.1"), monkeypatch)
    with pytest.raises(RecipeError, match="the Ray cluster has 2 CPUs and 0 GPUs, and a run asks for 3 and 0"):
        RayPool(0, 3)
    assert fake.ended == 1 and not Path(fake.asked[0]["_temp_dir"]).parent.exists()


LISTENING = """
import socket, psutil
from uda_reid.matrix.ray_pool import RayPool
pool = RayPool(1, 1)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
for process in processes:
    for each in process.net_connections(kind="inet"):
        if each.status == psutil.CONN_LISTEN:
            print("listens", each.laddr.ip.removeprefix("::ffff:"))
pool.close()
"""


@WITH_RAY
@pytest.mark.slow  # starts a Ray cluster on this machine
def test_every_process_of_a_cluster_of_this_machine_listens_on_loopback_alone(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, text=True, capture_output=True, timeout=300,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")) == {"listens 127.0.0.1", ""}
    assert not (tmp_path / ".ray").exists()  # where Ray writes a token that all users can read


@WITH_RAY
@pytest.mark.slow  # a minute: starts a Ray cluster on this machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_runs_of_a_ray_cluster_are_those_of_this_machine(planned: Planned, data: Path) -> None:
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


@WITH_RAY
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"^--address auto: no Ray cluster is there \("):
        RayPool(1, 1, address="auto")
