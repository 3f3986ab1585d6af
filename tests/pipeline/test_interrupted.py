from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from uda_reid.errors import CheckpointError
from uda_reid.evaluation import Evaluator, Features
from uda_reid.job import Job
from uda_reid.pipeline import one
from uda_reid.types import Encoder, Scores

T = TypeVar("T")


class Stopper:
    """A reporter that interrupts the run when a line holds some text."""

    def __init__(self, text: str = "\0") -> None:
        self.text = text
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)
        if self.text in message:
            raise KeyboardInterrupt

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        return items


@pytest.mark.parametrize("line", ["pretrained on alpha+gamma", "PUL: round 1"])
def test_interrupted_run_from_two_sources_goes_on_to_the_same_weights(joint: Job, tmp_path: Path, line: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        one(joint, reporter=Stopper(line))
    record, folder, finished = one(joint)
    assert not finished
    whole, other, _ = one(replace(joint, out=tmp_path / "whole"))
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert (record.history, record.curve, record.validation) == (whole.history, whole.curve, whole.validation)


@pytest.mark.parametrize("line", ["pretrained on alpha", "PUL: round 1", "PUL: round 2", "scored afterwards"])
def test_interrupted_run_goes_on_to_the_same_weights(job: Job, tmp_path: Path, line: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        one(job, reporter=Stopper(line))
    record, folder, finished = one(job)
    assert not finished
    whole, other, _ = one(replace(job, out=tmp_path / "whole"))
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert record.history == whole.history
    assert record.curve == whole.curve


@pytest.mark.parametrize("write", [1, 3, 5, 8])
def test_run_on_a_full_disk_loses_nothing_and_goes_on_once_there_is_room(
    job: Job, tmp_path: Path, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other, _ = one(replace(job, out=tmp_path / "whole"))
    flush, left = os.fsync, write

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("uda_reid.training.checkpoint.os.fsync", full)
        with pytest.raises(CheckpointError, match=r"^.* cannot be written \(No space left on device\); make room .*$"):
            one(job)
    assert list(job.out.rglob("*.tmp")) == []
    record, folder, _ = one(job)
    assert (folder / "adapted.safetensors").read_bytes() == (other / "adapted.safetensors").read_bytes()
    assert (record.history, record.curve) == (whole.history, whole.curve)


def test_interrupted_audit_scores_nothing_twice(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = one(replace(job, out=job.out / "whole"))
    scored: list[str] = []
    score = Evaluator.score

    def counted(self: Evaluator, encoder: Encoder | Features) -> Scores:
        scored.append(type(encoder).__name__)
        return score(self, encoder)

    monkeypatch.setattr(Evaluator, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        one(job, reporter=Stopper("after step 2 (scored afterwards)"))
    # Before and after from their features, the first snapshot; the last is the adapted model itself.
    assert scored == ["Features", "Features", "Embedder"]
    scored.clear()
    record, _, _ = one(job)
    assert scored == ["Features", "Features"]
    assert record.curve == whole.curve


@pytest.mark.slow  # about a minute: starts the program eight times and kills it seven times
def test_run_killed_between_any_two_saves_ends_with_the_same_weights(job: Job, tmp_path: Path) -> None:
    settings = ("adapt.rounds=4", "adapt.epochs=3", "pretrain.epochs=8")
    _, expected, _ = one(replace(job, threads=1, settings=settings))
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "uda_reid", "adapt", "--recipe", job.recipe, "--src", "alpha", "--tgt", "beta",
        "--data", str(job.data), "--out", str(out), "--profile", "paper", "--threads", "1", "--json",
        *(word for setting in settings for word in ("--set", setting)),
    ]  # fmt: skip
    run = out / expected.name
    awaited = [
        *[next(iter((job.out / "sources").iterdir())).name + "/pretrain.safetensors"] * 2,
        *["state/pul+round.safetensors", "state/pul.safetensors"] * 2,
        "adapted.safetensors",
    ]
    for name in awaited:
        path = out / "sources" / name if "pretrain" in name else run / name
        before = path.stat().st_mtime_ns if path.is_file() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (path.is_file() and path.stat().st_mtime_ns > before):
            time.sleep(0.001)
        assert process.poll() is None or name == "adapted.safetensors", process.communicate()[1].decode()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finished = subprocess.run(command, capture_output=True, check=True)
    assert (run / "adapted.safetensors").read_bytes() == (expected / "adapted.safetensors").read_bytes()
    record, whole = json.loads(finished.stdout), json.loads((expected / "record.json").read_text())
    assert record["history"] == whole["history"]
    assert record["curve"] == whole["curve"]
    assert not (run / "state").exists()
