"""`adapt` on two real processes: what ends one of them ends both, and is told once."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.together import free_port, launch
from uda_reid.job import Job
from uda_reid.pipeline import source_model

SPOILT = """
import os, signal, sys, time
from uda_reid import cli
from uda_reid.errors import DataError
from uda_reid.strategies import pul
real, steps = pul.identification, 0
def spoilt(*args, **kwargs):
    global steps
    steps += 1
    if steps == 3 and os.environ.get("RANK", "0") in {ranks!r}:
        {act}
    return real(*args, **kwargs)
pul.identification = spoilt
cli.main()
"""
Ended = list[tuple[int, str, str, float]]


@pytest.fixture
def prepared(data: Path) -> Path:
    """The data folder with the source model of the tests trained, so that they start with the adaptation."""
    threads = torch.get_num_threads()
    try:
        job = Job(recipe=str(data / "tiny.yaml"), source="alpha", data=data, out=data / "runs", profile="paper",
                  device="cpu", threads=1)  # fmt: skip
        source_model(job)
    finally:
        torch.set_num_threads(threads)
    return data


def words(data: Path, *more: str) -> list[str]:
    files = ["--recipe", str(data / "tiny.yaml"), "--data", str(data), "--out", str(data / "runs")]
    return ["adapt", "--src", "alpha", "--tgt", "beta", "--profile", "paper", "--device", "cpu", "--threads", "1",
            *files, *more]  # fmt: skip


def ends(started: list[subprocess.Popen[str]], *, within: float) -> Ended:
    """Return the code, the output, the errors and the time of every process; those that go on too long are killed."""
    began, found = time.monotonic(), []
    try:
        for process in started:
            out, err = process.communicate(timeout=max(1.0, within - (time.monotonic() - began)))
            found.append((process.returncode, out, err, time.monotonic() - began))
    finally:
        for process in started:
            process.kill()
    return found


def spoilt(data: Path, ranks: str, act: str, *more: str, **variables: str) -> list[subprocess.Popen[str]]:
    return launch(["-c", SPOILT.format(ranks=ranks, act=act), *words(data, *more)], 2, **variables)


def errors(found: Ended) -> list[str]:
    return [line for _, _, err, _ in found for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.slow  # the tests below start the program on two processes, a quarter of a minute each
def test_two_processes_make_one_run_and_one_finds_it(prepared: Path) -> None:
    found = ends(launch(["-m", "uda_reid", *words(prepared)], 2), within=300)
    assert [code for code, *_ in found] == [0, 0], found
    (_, out, err, _), (_, silent, quiet, _) = found
    assert "adapted.safetensors" in out and "PUL: round 2/2" in err and (silent, quiet) == ("", "")
    [again] = ends(launch(["-m", "uda_reid", *words(prepared)], 1), within=300)
    assert again[0] == 0 and "This run was finished before" in again[1]


def outline(value: Any) -> Any:
    """What a record is made of: its keys, and how many there are of each part."""
    if isinstance(value, dict):
        return {key: outline(each) for key, each in value.items()}
    return [outline(each) for each in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.slow
def test_two_processes_make_all_parts_of_a_record_that_one_makes(prepared: Path) -> None:
    alone = prepared / "alone"
    shutil.copytree(prepared / "runs", alone)
    parts = ["--bound", "--forgetting", "--gap", "--selection", "--map"]
    found = ends(launch(["-m", "uda_reid", *words(prepared, *parts)], 2), within=300)
    found += ends(launch(["-m", "uda_reid", *words(prepared, *parts), "--out", str(alone)], 1), within=300)
    assert [code for code, *_ in found] == [0, 0, 0], found
    records = [next(folder.glob("*/record.json")) for folder in (prepared / "runs", alone)]
    ours, expected = (json.loads(path.read_text()) for path in records)
    assert outline(ours) == outline(expected)
    assert ours["rows"][0] == expected["rows"][0] and ours["gap"] == pytest.approx(expected["gap"], rel=1e-3)
    assert [row["name"] for row in ours["rows"]] == ["source-only", "tiny", "supervised"] and ours["on_source"]
    files = [{path.name for path in path.parent.iterdir()} for path in records]
    assert files[0] == files[1] and "embedding_map.json" in files[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_that_one_process_has_is_told_once_and_ends_both(prepared: Path, rank: str) -> None:
    found = ends(spoilt(prepared, rank, "raise DataError('of one process')"), within=120)
    assert all(code == 2 for code, *_ in found), found
    assert errors(found) == ["error: of one process"]
    assert found[int(rank)][2].endswith("error: of one process\n")


@pytest.mark.slow
def test_an_error_of_both_is_told_once(prepared: Path) -> None:
    found = ends(spoilt(prepared, "01", "raise DataError('of both')"), within=120)
    assert [code for code, *_ in found] == [2, 2] and errors(found) == ["error: of both"], found
    found = ends(launch(["-m", "uda_reid", *words(prepared, "--set", "adapt.lrr=1")], 2), within=120)
    assert [code for code, *_ in found] == [2, 2]
    assert errors(found) == ["error: --set adapt.lrr=1: unknown option; did you mean 'lr'?"]


@pytest.mark.slow
def test_a_mistake_in_the_program_shows_where_it_is_and_ends_both(prepared: Path) -> None:
    found = ends(spoilt(prepared, "1", "raise KeyError('a mistake')"), within=120)
    assert found[1][0] == 1 and found[0][0] != 0
    assert "Traceback" in found[1][2] and "KeyError: 'a mistake'" in found[1][2]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_with_a_message(prepared: Path) -> None:
    found = ends(spoilt(prepared, "1", "os.kill(os.getpid(), signal.SIGKILL)"), within=60)
    assert [code for code, *_ in found] == [2, -signal.SIGKILL]
    [message] = errors(found)
    assert message.startswith("error: another process of this run has ended; what is saved stays (")


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_no_longer_than_told(prepared: Path) -> None:
    started = spoilt(prepared, "1", "time.sleep(300)", UDA_REID_TIMEOUT="5")
    try:
        out, err = started[0].communicate(timeout=60)
        assert started[0].returncode == 2, (out, err)
        assert "error: another process of this run has not answered in time; what is saved stays (" in err
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_waits_for_another_one_ends_when_it_is_asked(
    prepared: Path, number: signal.Signals, code: int
) -> None:
    stuck = prepared / "stuck"
    started = spoilt(prepared, "1", f"(open({str(stuck)!r}, 'w').close(), time.sleep(300))")
    try:
        deadline = time.monotonic() + 60
        while not stuck.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)  # the first process has come to where it waits
        started[0].send_signal(number)
        began = time.monotonic()
        _, err = started[0].communicate(timeout=60)
        assert started[0].returncode == code and time.monotonic() - began < 30
        assert err.endswith("interrupted, and ended before it had come to a point to end at; what is saved stays\n")
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_finds_no_other_one_ends_when_it_is_asked(prepared: Path, number: signal.Signals) -> None:
    port = free_port()
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}
    [alone] = launch(["-m", "uda_reid", *words(prepared)], 1, **launched)
    try:
        deadline, waits = time.monotonic() + 60, False
        while not waits and time.monotonic() < deadline:
            time.sleep(0.1)
            with socket.socket() as asking:
                waits = asking.connect_ex(("127.0.0.1", port)) == 0
        alone.send_signal(number)
        began = time.monotonic()
        alone.communicate(timeout=60)
        assert alone.returncode == -number and time.monotonic() - began < 5
    finally:
        alone.kill()


@pytest.mark.slow
def test_sigterm_of_all_processes_keeps_the_step_and_the_same_command_goes_on(prepared: Path) -> None:
    act = "os.kill(os.getpid(), signal.SIGTERM)"
    found = ends(spoilt(prepared, "01", act), within=60)
    assert [code for code, *_ in found] == [143, 143], found
    [message] = [line for _, _, err, _ in found for line in err.splitlines() if "stopped" in line]
    assert message.startswith("pul/round/0: epoch 1: stopped after step 3, which is kept; the same")
    again = ends(launch(["-m", "uda_reid", *words(prepared)], 2), within=120)
    assert [code for code, *_ in again] == [0, 0] and "goes on after step 3" in again[0][2]
    first = load_file(next((prepared / "runs").glob("*/adapted.safetensors")))
    whole = prepared / "whole"
    shutil.copytree(prepared / "runs" / "sources", whole / "sources")  # one process has made it
    found = ends(launch(["-m", "uda_reid", *words(prepared, "--out", str(whole))], 2), within=120)
    other = load_file(next(whole.glob("*/adapted.safetensors")))
    assert all(torch.equal(first[key], other[key]) for key in other), found


@pytest.mark.slow
def test_sigterm_of_one_process_ends_all_of_them_as_asked(prepared: Path) -> None:
    found = ends(spoilt(prepared, "1", "os.kill(os.getpid(), signal.SIGTERM)"), within=60)
    assert [code for code, *_ in found] == [143, 143], found
    assert list(prepared.glob("runs/*/state/step.safetensors")), "the step is kept"


@pytest.mark.slow
def test_sigterm_in_training_of_a_real_process_exits_within_seconds(prepared: Path) -> None:
    program = SPOILT.format(ranks="0", act="os.kill(os.getpid(), signal.SIGTERM)")
    [(code, _, err, _)] = ends(launch(["-c", program, *words(prepared)], 1), within=60)
    assert code == 143
    assert err.splitlines()[-1].startswith("pul/round/0: epoch 1: stopped after step 3, which is kept; the same")
    [(code, _, err, _)] = ends(launch(["-m", "uda_reid", *words(prepared)], 1), within=120)
    assert code == 0 and "pul/round/0: epoch 1: goes on after step 3" in err
    whole = words(prepared, "--out", str(prepared / "whole"))
    assert ends(launch(["-m", "uda_reid", *whole], 1), within=120)[0][0] == 0
    one, other = (load_file(next((prepared / out).glob("*/adapted.safetensors"))) for out in ("runs", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
