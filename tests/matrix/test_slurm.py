from __future__ import annotations

import sys
from pathlib import Path

import pytest

from uda_reid.errors import RecipeError
from uda_reid.job import Job
from uda_reid.matrix.plan import Plan, plan_runs
from uda_reid.matrix.slurm import options_of, submit


def test_array_asks_for_what_was_said_by_the_names_of_submitit() -> None:
    found = options_of(["partition=gpu", "mem_gb=32", "slurm_qos=high"], jobs=4, threads=2, gpus=1)
    assert found == {
        "timeout_min": 720, "mem_gb": 32, "cpus_per_task": 2, "gpus_per_node": 1, "tasks_per_node": 1, "nodes": 1,
        "slurm_array_parallelism": 4, "slurm_partition": "gpu", "slurm_qos": "high",
    }  # fmt: skip
    assert "slurm_array_parallelism" not in options_of([], jobs=0, threads=1, gpus=0)


@pytest.mark.parametrize("setting", ["partition", "=gpu", "partition="])
def test_setting_without_name_or_value_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=f"--slurm {setting}: write a name and a value"):
        options_of([setting], jobs=0, threads=1, gpus=0)


def test_without_submitit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RecipeError, match=r'needs submitit; install it with: pip install "uda_reid\[slurm\]"$'):
        submit([], tmp_path, {})


def test_machine_without_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Job(recipe="pul", source="plaza", target="campus")
    with pytest.raises(
        RecipeError, match=r"^--executor slurm: the array cannot be submitted \(.*use a machine with sbatch"
    ):
        submit([job], tmp_path / "logs", options_of([], jobs=1, threads=1, gpus=0))


def test_array_script_asks_slurm_for_one_task_for_every_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An `sbatch` that keeps the script it is given, and answers as Slurm does."""
    pytest.importorskip("submitit")
    kept = tmp_path / "script.sh"
    command = tmp_path / "sbatch"
    command.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "$last" {kept}\necho "Submitted batch job 4711"\n')
    command.chmod(0o755)
    for name in ("srun", "squeue", "sacct", "scancel"):
        (tmp_path / name).symlink_to(command)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    jobs = [Job(recipe="pul", source="plaza", target="campus", seed=seed) for seed in range(3)]
    options = options_of(["partition=gpu", "timeout_min=90"], jobs=2, threads=4, gpus=1)
    found = submit(jobs, tmp_path / "logs", options)
    assert [job.job_id for job in found] == ["4711_0", "4711_1", "4711_2"]
    script = kept.read_text()
    for part in (
        "--array=0-2%2", "--partition=gpu", "--time=90", "--cpus-per-task=4", "--gpus-per-node=1", "--mem=16GB",
        "--job-name=uda-reid", "--ntasks-per-node=1",
    ):  # fmt: skip
        assert f"#SBATCH {part}" in script, part
    assert [job.submission().args[1] for job in found] == jobs


def accepting(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put an `sbatch` on the path that accepts everything."""
    command = folder / "sbatch"
    command.write_text('#!/bin/sh\necho "Submitted batch job 4711"\n')
    command.chmod(0o755)
    for name in ("srun", "squeue", "sacct", "scancel"):
        (folder / name).symlink_to(command)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_pickles_of_an_array_are_closed_to_other_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    accepting(monkeypatch, tmp_path)
    folder = tmp_path / "out" / "slurm"
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # but empty
    job = Job(recipe="pul", source="plaza", target="campus")
    for _ in range(2):
        submit([job], folder, options_of([], jobs=1, threads=1, gpus=0))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert any(path.suffix == ".pkl" for path in folder.iterdir())


def test_folder_that_others_may_write_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    accepting(monkeypatch, tmp_path)
    job, options = Job(recipe="pul", source="plaza", target="campus"), options_of([], jobs=1, threads=1, gpus=0)
    open_to_all = tmp_path / "all"
    open_to_all.mkdir()
    (open_to_all / "slurm").mkdir()
    (open_to_all / "slurm" / "theirs.pkl").touch()
    (open_to_all / "slurm").chmod(0o775)
    with pytest.raises(
        RecipeError, match=r"slurm: other users may write to it, and its pickles are programs; remove it"
    ):
        submit([job], open_to_all / "slurm", options)
    open_to_all.chmod(0o777)
    with pytest.raises(
        RecipeError, match=r"all: every user may write to it.*\(chmod o-w .*all\), or choose another --out"
    ):
        submit([job], open_to_all / "new" / "slurm", options)
    open_to_all.chmod(0o1777)  # as /tmp: there only its owner may rename a folder
    assert submit([job], open_to_all / "new" / "slurm", options)
    (tmp_path / "link").symlink_to(open_to_all / "new" / "slurm")
    with pytest.raises(
        RecipeError, match=r"link: is a link or belongs to another user; remove it, or choose another --out"
    ):
        submit([job], tmp_path / "link", options)
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    with pytest.raises(RecipeError, match=r"is a link or belongs to another user"):
        submit([job], open_to_all / "new" / "slurm", options)


@pytest.mark.slow  # half a minute: each run is a process of its own
def test_runs_submitted_on_this_machine_are_made(data: Path) -> None:
    pytest.importorskip("submitit")
    plan = Plan(
        pairs=(("alpha", "beta"),), recipes=(str(data / "tiny.yaml"),), data=data, out=data / "out", profile="paper"
    )
    planned = plan_runs(plan)
    options = options_of([], jobs=1, threads=1, gpus=0)
    (job,) = submit(list(planned.jobs.values()), data / "logs", options, cluster="local")
    answer = job.result()
    assert answer.record is not None, answer.failure
    (folder,) = planned.folders.values()
    assert (folder / "record.json").is_file()
