"""What ends a command before its work is done: Ctrl-C and SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import run
from uda_reid.cli import ending


@pytest.mark.slow  # half a minute: starts the program three times
def test_run_that_is_asked_to_end_ends_at_once_and_goes_on_to_the_same_weights(data: Path) -> None:
    def start(out: str) -> subprocess.Popen[str]:
        words = ["adapt", "--recipe", str(data / "tiny.yaml"), "--src", "alpha", "--tgt", "beta", "--data", str(data)]
        words += ["--profile", "paper", "--threads", "1", "--out", str(data / out)]
        return subprocess.Popen([sys.executable, "-m", "uda_reid", *words], stderr=subprocess.PIPE, text=True)

    first = start("whole")
    first.communicate(timeout=300)
    assert first.returncode == 0
    running, seen = start("ended"), ""
    assert running.stderr is not None
    for line in running.stderr:
        seen += line
        if "PUL: round 2" in line:  # by then the state of the first is there
            break
    assert "PUL: round 2" in seen
    running.send_signal(signal.SIGTERM)
    began = time.monotonic()
    rest = running.communicate(timeout=60)[1]
    assert running.returncode == 143 and time.monotonic() - began < 30
    assert "interrupted; the same command goes on from the last finished epoch or round" in rest.splitlines()
    again = start("ended")
    told = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "PUL: round 1" not in told
    one, other = (path.read_bytes() for path in sorted(data.glob("*/*/adapted.safetensors")))
    assert one == other


# SIGTERM while a model is trained


def after_steps(monkeypatch: pytest.MonkeyPatch, place: str, steps: int, act: Callable[[], object]) -> None:
    """Do something in a step of a training, once."""
    real, made = getattr(import_module(f"uda_reid.{place}"), "identification"), 0  # noqa: B009

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made == steps:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(f"uda_reid.{place}.identification", counted)


@pytest.mark.parametrize(
    ("place", "steps", "where"),
    [
        ("pretraining", 3, "pretrain: epoch 2: stopped after step 1"),
        ("strategies.pul", 5, "pul/round/1: epoch 1: stopped after step 2"),
    ],
)
def test_sigterm_in_training_keeps_the_step_and_the_same_command_ends_with_the_same_model(
    place: str, steps: int, where: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(out: str) -> list[str]:
        files = ["--recipe", str(data / "tiny.yaml"), "--data", str(data), "--out", str(data / out)]
        return ["adapt", "--src", "alpha", "--tgt", "beta", "--profile", "paper", *files]

    assert run(monkeypatch, capsys, *words("whole"))[0] == 0
    with monkeypatch.context() as patch:
        after_steps(patch, place, steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
        began = time.monotonic()
        code, out, err = run(patch, capsys, *words("ended"))
        assert (code, out) == (143, "") and time.monotonic() - began < 30
    assert err.splitlines()[-1].startswith(f"{where}, which is kept; the same command goes on from there")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    code, _, err = run(monkeypatch, capsys, *words("ended"))
    name, step = where.split(": stopped ")
    assert code == 0 and f"{name}: goes on {step}" in err
    assert ("goes on with what an earlier start of this run kept in" in err) == (place != "pretraining")
    assert not list(data.glob("ended/**/step*"))  # of finished work nobody needs it
    for file in ("adapted", "source"):
        one, other = (load_file(next((data / out).glob(f"**/{file}.safetensors"))) for out in ("whole", "ended"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    records = [json.loads(next((data / out).glob("*/record.json")).read_text()) for out in ("whole", "ended")]
    assert records[0]["history"] == records[1]["history"] and records[0]["rows"] == records[1]["rows"]


def test_sigterm_that_training_does_not_notice_ends_it_after_a_while(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending, "GRACE", 0.2)

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)  # one long step

    after_steps(monkeypatch, "pretraining", 2, hang)
    began = time.monotonic()
    code, _, err = run(monkeypatch, capsys, "adapt", "--src", "alpha", "--tgt", "beta", *base)
    assert code == 143 and time.monotonic() - began < 15
    assert err.splitlines()[-1].startswith("interrupted; the same command goes on")


def test_a_second_sigterm_ends_training_at_once_and_one_that_comes_twice_does_not(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    for at_once, message in ((60.0, "epoch 1: stopped after step 2"), (0.1, "interrupted")):
        with monkeypatch.context() as patch:
            patch.setattr(ending, "AT_ONCE", at_once)
            after_steps(patch, "pretraining", 2, twice)
            code, _, err = run(patch, capsys, "pretrain", "--src", "alpha", *base)
        assert code == 143 and f"{message}" in err and "the same command goes on" in err
