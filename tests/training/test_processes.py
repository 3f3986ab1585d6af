from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.exchanges import CHECKS
from tests.threads import all_of, together
from tests.together import STRATEGIES, VARIANTS, launch
from uda_reid.sharing import Processes
from uda_reid.training.checkpoint import load
from uda_reid.training.processes import Lost, Several

EXACT = 1e-8
"""What float64 leaves between one process and two, after 20 steps; up to 1.7e-10 is measured, and printed by `-s`."""


FACTOR = 10
"""How much further apart two processes may be in float32 than a changed last bit puts one."""


def weights(folder: Path, count: int, **options: Any) -> list[dict[str, Any]]:
    """Run every strategy on some processes; return what each of them ends with."""
    folder.mkdir(parents=True)
    started = launch(["-m", "tests.together", json.dumps(options), str(folder)], count)
    told = [process.communicate(timeout=600)[1] for process in started]
    assert all(process.returncode == 0 for process in started), told
    return [load(folder / f"{rank}.safetensors") for rank in range(count)]


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return how far states are apart: the root of the sum of all squared differences."""
    assert one.keys() == other.keys()
    floating = [name for name, value in one.items() if value.is_floating_point()]
    squares = [(one[name].double() - other[name].double()).square().sum() for name in floating]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 4])
def test_two_processes_and_one_end_with_the_same_weights_for_every_strategy(tmp_path: Path, group: int) -> None:
    names = list(STRATEGIES if group else VARIANTS)
    options = {"double": True, "group": group, "names": names}
    [alone] = weights(tmp_path / "one", 1, **options)
    first, second = weights(tmp_path / "two", 2, **options)
    for name in names:
        shared = {key: value for key, value in alone[name].items() if key in alone["pretrain"]}
        moved = {key: alone["pretrain"][key] for key in shared}
        assert apart(shared, moved) > 1, f"{name} hardly trained"
        for one, other in ((alone, first), (alone, second)):
            print(f"{name}, bn_group {group}: {apart(one[name], other[name]):.1e}")
            assert apart(one[name], other[name]) < EXACT, name
        mine, theirs = (json.loads(each[f"{name} history"]) for each in (alone, first))
        for entry, twin in zip(mine, theirs, strict=True):
            assert entry == pytest.approx(twin, rel=1e-6, abs=1e-7), name  # losses are kept as float32


@pytest.mark.slow
def test_in_float32_two_processes_differ_from_one_as_a_changed_last_bit_does(tmp_path: Path) -> None:
    names = [*STRATEGIES, "adda-alternating"]
    options = {"double": False, "group": 0, "names": names}
    [alone] = weights(tmp_path / "one", 1, **options)
    [nudged] = weights(tmp_path / "nudged", 1, **options, nudged=True)
    first, second = weights(tmp_path / "two", 2, **options)
    assert all(apart(first[name], second[name]) == 0 for name in names)
    for name in names:
        by_processes, by_last_bits = (apart(alone[name], other[name]) for other in (first, nudged))
        print(f"{name}: by two processes {by_processes:.1e}, by last bits {by_last_bits:.1e}")
        assert by_processes < FACTOR * by_last_bits, name
    # Where no rounding decides - no ReLU's batch norm moves, no hardest pair is looked for - float32 is near, too.
    assert apart(alone["adda-alternating"], first["adda-alternating"]) < 1e-4
    assert apart(alone["adabn"], first["adabn"]) < 1e-4


# What processes tell each other


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_in_threads(check: Callable[[Processes], None]) -> None:
    all_of(2, check)


def test_in_two_real_processes() -> None:
    started = launch(["-m", "tests.exchanges"], 2)
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert all(out.splitlines() == [f"{check.__name__} passed" for check in CHECKS] for out, _ in told)


def test_three_processes_gather_uneven_rows() -> None:
    whole = torch.arange(10.0)[:, None]

    def work(processes: Processes) -> tuple[torch.Tensor, torch.Tensor]:
        mine = whole[[slice(0, 4), slice(4, 7), slice(7, 10)][processes.rank]].clone().requires_grad_()
        found = processes.gather(mine, 10)
        (found * torch.arange(10.0)[:, None]).sum().backward()  # type: ignore[no-untyped-call]
        assert mine.grad is not None
        return found.detach(), mine.grad / 3

    results = all_of(3, work)
    assert all(torch.equal(found, whole) for found, _ in results)
    assert torch.equal(torch.cat([gradient for _, gradient in results]), whole)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Timed out waiting 5000ms for recv operation to complete", "another process of this run has not answered in"),
        (
            "[pair.cc:547] Connection closed by peer [127.0.0.1]:1",
            "another process of this run has ended;",
        ),
        (
            "ncclRemoteError: remote process exited or so",
            "another process of this run has ended;",
        ),
        ("Invalid scalar type", r"another process of this run cannot be reached; .* \(Invalid scalar type\)$"),
        ("CUDA error: out of memory", "CUDA error: out of memory$"),
    ],
)
def test_what_became_of_another_process_is_what_the_message_says(
    said: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError(said)

    for name, answer in {"get_rank": 0, "get_world_size": 2, "get_backend": "gloo"}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda answer=answer: answer)
    monkeypatch.setattr("torch.distributed.all_reduce", fail)
    with pytest.raises(RuntimeError if expected.startswith("CUDA") else Lost, match=f"^{expected}"):
        Several().add(torch.zeros(1))


def test_who_waits_for_one_that_has_ended_says_so() -> None:
    def work(processes: Processes) -> bool:
        if processes.rank:
            raise KeyError("an error of its own")
        return processes.any(True)

    found: list[Any] = [*together(2, work)]
    first, second = found
    assert isinstance(second, KeyError)
    assert isinstance(first, Lost)
    assert str(first).startswith("another process of this run has ended; what is saved stays (")
