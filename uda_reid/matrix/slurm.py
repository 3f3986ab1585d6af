"""The runs of a matrix as one array job of a Slurm cluster, through submitit."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uda_reid.errors import RecipeError
from uda_reid.job import Job
from uda_reid.matrix.workers import answer_in

USUAL: Mapping[str, Any] = {"timeout_min": 720, "mem_gb": 16}
"""What an array asks for unless told otherwise."""


def options_of(settings: Sequence[str], *, jobs: int, threads: int, gpus: int) -> dict[str, Any]:
    """Return what an array asks for, by submitit's names.

    Args:
        settings: `name=value`, over the others: `partition=gpu`, `timeout_min=240`, `mem_gb=32`, `account=me`.
        jobs: runs at a time; 0 for as many as the cluster lets.
        threads: processors of each.
        gpus: graphics processors of each.

    Raises:
        RecipeError: a setting has no name or no value.

    >>> options_of(["partition=gpu", "timeout_min=30"], jobs=4, threads=2, gpus=1)["slurm_partition"]
    'gpu'
    """
    found = {**USUAL, "cpus_per_task": threads, "gpus_per_node": gpus, "tasks_per_node": 1, "nodes": 1}
    if jobs:
        found["slurm_array_parallelism"] = jobs
    for setting in settings:
        name, _, text = setting.partition("=")
        if not (name and text):
            raise RecipeError(f"--slurm {setting}: write a name and a value, such as --slurm partition=gpu")
        shared = name in found or name.startswith("slurm_")
        found[name if shared else f"slurm_{name}"] = int(text) if text.isdecimal() else text
    return found


def submit(
    jobs: Sequence[Job], folder: Path, options: Mapping[str, Any], *, cluster: str | None = None
) -> tuple[Any, ...]:
    """Submit an array with one task for every run, and return submitit's jobs; their logs go to `folder`.

    Args:
        jobs: the runs.
        folder: for scripts, pickled arguments and logs; the machines see it under the same path. No other user may
            read it or write to it: a pickle that is loaded is a program.
        options: as of `options_of`.
        cluster: `slurm`; `local` makes the runs in processes of this machine, all at once; None looks for Slurm.

    Raises:
        RecipeError: submitit is not installed, there is no Slurm here, it knows an option not, or others may write to
            the folder or put another in its place.
    """
    try:
        import submitit
    except ImportError as error:
        raise RecipeError('--executor slurm needs submitit; install it with: pip install "uda_reid[slurm]"') from error
    make_private(folder)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster or "slurm")
        known = options if cluster != "local" else {key: options[key] for key in ("timeout_min", "cpus_per_task")}
        executor.update_parameters(name="uda-reid", **known)
        return tuple(executor.map_array(answer_in, [os.getcwd()] * len(jobs), jobs))  # noqa: PTH109
    except (RuntimeError, NameError, FileNotFoundError) as error:
        told = " ".join(str(error).split())
        remedy = "use a machine with sbatch, and options that submitit knows"
        raise RecipeError(f"--executor slurm: the array cannot be submitted ({told}); {remedy}") from error


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can read and write, or see to it that there is one.

    Raises:
        RecipeError: it is not a folder of this user, or any user may put another in its place.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            raise RecipeError(f"{folder}: is a link or belongs to another user; remove it, or choose another --out")
        written = stat.S_IMODE(folder.stat().st_mode) & 0o022
        if written and any(folder.iterdir()):
            raise RecipeError(
                f"{folder}: other users may write to it, and its pickles are programs; remove it, or use another --out"
            )
        folder.chmod(0o700)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be made private ({error.strerror}); choose another --out") from error
    for above in folder.absolute().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise RecipeError(
                f"{above}: every user may write to it, and so put another folder in the place of {folder}; "
                f"take that right away (chmod o-w {above}), or choose another --out"
            )
