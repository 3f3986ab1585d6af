from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import RECIPES, arguments, command_line, plan
from tests.conftest import RECIPE, write_manifest
from tests.matrix.examples import runs
from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.matrix.folder import Entry, Matrix, write_matrix
from uda_reid.matrix.plan import Place
from uda_reid.recipe import load
from uda_reid.report import read, write

ROOT = Path(__file__).resolve().parents[2]


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(results).failed == 0
    assert doctest.testmod(results).attempted > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "alpha"], r"^--pairs alpha: a pair is source:target; separate pairs by commas$"),
        (["--seeds", "0,-1"], r"^--seeds 0,-1: give numbers from 0, separated by commas$"),
        (["--jobs", "0"], r"^--jobs and --threads must be at least 1$"),
        (["--recipes", "pull"], r"recipe 'pull' .*did you mean 'pul'"),
        (["--set", "adapt.passes=-1"], r"adapt.passes"),
        (["--pairs", "alpha:nowhere"], r"nowhere"),
        (["--threads", "1000"], r"^1000 threads are too many for \d+ cores"),
        (["--write", "no/such/folder/page.md"], r"^--write no/such/folder/page.md: give a file in a folder"),
        (["--recipes", "pul,adabn,pul"], r"^--recipes pul,adabn,pul: two are called pul; copy one to a file"),
    ],
)
def test_what_is_typed_wrong_is_said_before_any_training(data: Path, words: list[str], message: str) -> None:
    usual = ["--pairs", "alpha:beta", "--data", str(data), "--recipes", "adabn", "--out", str(data / "runs")]
    with pytest.raises(UdaReidError, match=message):
        plan(arguments().parse_args([*usual, *words]))
    assert not (data / "runs").exists()


def test_recipes_that_it_takes_by_itself_are_there() -> None:
    assert [load(name).name for name in RECIPES.split(",")] == RECIPES.split(",")


def test_runs_of_two_profiles_are_no_table(data: Path) -> None:
    (data / "other.yaml").write_text(f"profile: paper\n{RECIPE}")
    words = [
        "--pairs",
        "alpha:beta",
        "--data",
        str(data),
        "--recipes",
        f"adabn,{data}/other.yaml",
        "--profile",
        "scenes",
    ]
    with pytest.raises(
        RecipeError, match=r"^the runs have profiles paper, scenes: give --profile, or a table for each$"
    ):
        plan(arguments().parse_args(words))


def test_plan_is_of_every_pair_recipe_and_seed_with_its_bound(data: Path) -> None:
    words = ["--pairs", "alpha:beta,beta:alpha", "--data", str(data), "--recipes", "adabn,pul", "--seeds", "0,1"]
    planned = plan(arguments().parse_args([*words, "--profile", "scenes"]))
    assert planned.profile == "scenes"
    assert len(planned.jobs) == 8
    job = next(job for cell, job in planned.jobs.items() if cell[:2] == ("pul", Place("alpha", "beta", 1)))
    assert (job.bound, job.threads, job.seed, job.device, job.pictures) == (True, 1, 1, "cpu", False)


def test_command_line_keeps_what_numbers_depend_on() -> None:
    words = ["--pairs", "a:b", "--set", "adapt.lr=1", "--set", "adapt.epochs=2", "--threads", "2", "--write", "x.md"]
    options = arguments().parse_args(words)
    found = "python benchmarks/results.py --pairs a:b --set adapt.lr=1 --set adapt.epochs=2 --threads 2"
    assert command_line(options) == found
    again = arguments().parse_args(found.split()[2:])
    assert {**vars(again), "write": options.write} == vars(options)


def test_tables_are_those_of_a_matrix_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for recipe, places in runs().items():
        for place, record in places.items():
            made.append(Entry(recipe, place, f"{recipe}-{place.source}-s{place.seed}", "x"))
            (tmp_path / made[-1].folder).mkdir()
            write(record, tmp_path / made[-1].folder / "record.json")
    write_matrix(Matrix(tmp_path, "uda-reid matrix --domains a,b", "scenes", tuple(made)))
    page = tmp_path / "results.md"
    monkeypatch.setattr(sys, "argv", ["results.py", "--matrix", str(tmp_path), "--write", str(page)])
    assert results.main() == 0
    text = page.read_text()
    assert capsys.readouterr().out.strip() in text and "<!-- matrix: made by" in text
    assert "### A matrix of up, down" in text and "uda-reid matrix --domains a,b" in text
    assert "| up | 33.0 ± 0.7 | 43.0 ± 0.7 | 38.0 ± 0.7 | 1.0 |" in text and "| up | +10.0 [+10.0, +10.0] |" in text
    (tmp_path / made[-1].folder / "record.json").unlink()
    assert results.main() == 1 and "missing: b -> a, down, seed 1 (not made yet)" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["results.py", "--matrix", str(tmp_path / "nowhere")])
    assert results.main() == 2 and "run `uda-reid matrix` again" in capsys.readouterr().err


@pytest.mark.slow  # half a minute: starts the script three times
def test_a_run_that_fails_is_told_and_the_others_are_made_and_found_again(data: Path, tmp_path: Path) -> None:
    write_manifest(data / "gamma", seed=2)
    broken = sorted((data / "gamma").glob("gallery_*.png"))[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    small = ["pretrain.epochs=1", "encoder.height=32", "encoder.width=16"]
    command = [
        sys.executable, "-W", "error", "benchmarks/results.py", "--pairs", "alpha:beta,alpha:gamma", "--seeds", "0",
        "--recipes", "adabn,source_only", "--profile", "scenes", "--data", str(data), "--out", str(tmp_path / "runs"),
        "--write", str(tmp_path / "page.md"), *(word for option in small for word in ("--set", option)),
    ]  # fmt: skip

    def start() -> tuple[int, str, str]:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout, done.stderr

    code, page, told = start()
    assert code == 1, told
    assert "alpha -> gamma, adabn, seed 0: FAILED: " in told and broken.name in told
    assert "Failed and missing below: alpha -> gamma, source_only, seed 0: " in page
    broken.write_bytes(whole)
    code, page, told = start()
    assert code == 0, told
    assert told.count(", found") == 2  # of alpha -> beta
    assert page.strip() in (tmp_path / "page.md").read_text()
    assert str(tmp_path) not in page
    records = [read(path) for path in tmp_path.glob("runs/*/record.json")]
    assert len(records) == 4  # a run that failed has none
    assert {record.environment["threads"] for record in records} == {1}
    assert start()[2].count(", found") == 4
