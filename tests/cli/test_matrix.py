from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uda_reid.cli import main
from uda_reid.matrix import workers
from uda_reid.report import read

FILES = {".lock", "matrix.json", "matrix.md", "matrix.csv", "matrix.tex", "records.jsonl", "report.html"}


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["uda-reid", *words])
    for name in workers.POOLS:
        monkeypatch.setenv(name, "1")  # `make` sets these; here they are put back
    with pytest.raises(SystemExit) as exit:
        main()
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


@pytest.fixture
def base(data: Path) -> list[str]:
    recipes = f"{data}/tiny.yaml,{data}/still.yaml"
    (data / "still.yaml").write_text((data / "tiny.yaml").read_text().replace("pul", "source_only").split("adapt:")[0])
    return [
        "matrix", "--domains", "alpha,beta", "--data", str(data), "--out", str(data / "out"), "--profile", "paper",
        "--recipes", recipes, "--seeds", "0", "--jobs", "1",
    ]  # fmt: skip


def test_matrix_is_made_found_and_reported(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, *base, "--dry-run")
    assert code == 0 and "4 runs, 0 finished; 2 source models, 0 there; time left with 1 at a time: unknown" in out, err
    assert out.count("to do") == 4 and not (data / "out").exists()
    code, out, err = run(monkeypatch, capsys, *base, "--only", "alpha")
    assert code == 0, err
    assert "[2/2] alpha -> beta" in err and "missing: beta -> alpha, tiny, seed 0 (not made yet)" in out
    code, out, err = run(monkeypatch, capsys, *base)
    assert code == 0, err
    assert err.count(", found") == 2 and "missing" not in out
    root = data / "out"
    assert {path.name for path in root.iterdir() if path.is_file()} == FILES
    matrix = json.loads((root / "matrix.json").read_text())
    assert "--only" not in matrix["command"] and len(matrix["runs"]) == 4
    for each in matrix["runs"]:
        record = read(root / each["folder"] / "record.json")  # the very folders that the plan named
        assert record.row("supervised") is not None and len(record.on_source) == 2
        assert (root / each["folder"] / "embedding_map.json").is_file()
    for part in ("mAP on the target", "Gain over source-only", "Kept on the source", "one seed", "written: "):
        assert part in out, part
    code, out, _ = run(monkeypatch, capsys, *base, "--dry-run")
    assert code == 0 and "4 runs, 4 finished; 2 source models, 2 there; time left with 1 at a time: about 0 s" in out
    before = (root / "report.html").read_text()
    (root / "report.html").unlink()
    code, out, _ = run(monkeypatch, capsys, "report", str(root))
    assert code == 0 and "mAP on the target" in out and (root / "report.html").read_text() == before


def test_array_of_slurm_is_told_and_refused_where_there_is_none(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    words = [*base, "--executor", "slurm", "--slurm", "partition=gpu"]
    code, out, _ = run(monkeypatch, capsys, *words, "--dry-run")
    assert code == 0 and "array of 4 tasks: timeout_min=720" in out and "slurm_partition=gpu" in out
    code, out, _ = run(monkeypatch, capsys, *words, "--dry-run", "--jobs", "0", "--profile", "scenes")
    assert code == 0 and "time left one after another: about" in out and "slurm_array_parallelism" not in out
    monkeypatch.setenv("PATH", str(data))
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2 and "the array cannot be submitted" in err
    code, _, err = run(monkeypatch, capsys, *base, "--executor", "slurm", "--slurm", "gpu")
    assert code == 2 and "--slurm gpu: write a name and a value" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--domains", "alpha"], "--domains alpha: a matrix needs at least two names"),
        (["--domains", "alpha,alpha"], "--domains alpha,alpha: alpha is there twice"),
        (["--domains", "alpha,gamma"], "gamma"),
        (["--domains", "", "--pairs", ""], "give the domains of a matrix"),
        (["--pairs", "alpha:beta"], "give the domains of a matrix, as --domains plaza,campus, or its --pairs"),
        (["--domains", "", "--pairs", "alpha"], "--pairs alpha: 'alpha' is no pair; write source:target"),
        (["--domains", "", "--pairs", "alpha:beta:x"], "'alpha:beta:x' is no pair"),
        (["--seeds", "0,x"], "--seeds 0,x: give whole numbers from 0"),
        (["--recipes", "pull"], "did you mean 'pul'"),
        (["--only", "beta:beta"], "--only beta:beta: no run is called so"),
        (["--threads", "0"], "--threads"),
        (["--device", "cuda:99"], "cuda"),
    ],
)
def test_what_is_typed_wrong_is_one_line_before_anything_is_made(
    words: list[str], message: str, base: list[str], data: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, out, err = run(monkeypatch, capsys, *base, *words)
    assert code == 2 and message in err and "Traceback" not in err
    assert not out and not (data / "out").exists()


def test_run_that_fails_is_told_and_the_others_are_made(
    base: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sorted((data / "beta").glob("gallery_*.png"))[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    words = [*base, "--only", "*:*:still", "--no-bound"]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 1
    assert "failed: alpha -> beta, still, seed 0: " in err and broken.name in err
    lines = " ".join(out.split())  # paths are long, and lines end where the screen does
    assert "missing: alpha -> beta, still, seed 0 (" in lines and broken.name in lines
    assert "missing: of beta -> alpha, still, seed 0: it has no scores on its source, gap, map (" in lines
    broken.write_bytes(whole)
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0 and "alpha -> beta, still, seed 0 (" not in out, err


@pytest.mark.slow  # under a minute
def test_matrix_that_was_killed_or_is_made_twice_at_once_has_the_same_numbers(base: list[str], data: Path) -> None:
    command = [sys.executable, "-m", "uda_reid", *base]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    first = {path.parent.name: path for path in (data / "out").glob("*/record.json")}
    (data / "out").rename(data / "first")
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list((data / "out").glob("*/log.txt")):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [each.communicate(timeout=300) and each.returncode for each in both] == [0, 0]
    assert len(first) == 4
    for name in first:
        one, other = (read(data / part / name / "record.json") for part in ("first", "out"))
        for mine, theirs in zip(one.rows, other.rows, strict=True):
            assert mine.scored.average_precision.tolist() == theirs.scored.average_precision.tolist()
        assert one.history == other.history and one.identities == other.identities
