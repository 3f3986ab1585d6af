"""The command that makes a transfer matrix."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uda_reid.cli.arguments import (
    AllowCode,
    Data,
    Device,
    Pictures,
    Precision,
    PrecisionOption,
    ProfileOption,
    Protocol,
    Settings,
    SkipDamaged,
    Weights,
    data_folder,
    output,
    path,
    resumable,
    screen,
)
from uda_reid.errors import RecipeError
from uda_reid.terminal import RichReporter

if TYPE_CHECKING:
    from uda_reid.matrix.plan import Planned
    from uda_reid.matrix.workers import Ended, Pool

app = typer.Typer()


class Executor(StrEnum):
    """Where runs are made."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


RECIPES = "source_only,pul,daam,adda,guided_dropout"


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid matrix --domains plaza,campus,station --recipes source_only,pul,daam --seeds 0,1,2 --out runs/first`\n\n"
    "`uda-reid matrix --domains plaza,campus --dry-run` what would be made, and how long it would take\n\n"
    "`uda-reid matrix --domains market,duke,msmt17 --data ~/datasets --device cuda --out runs/real`\n\n"
    "`uda-reid matrix --domains market,duke --data /shared/sets --out /shared/one --executor ray --address auto`\n\n"
    "`uda-reid matrix --domains plaza,campus --only '*:*:daam'` of this matrix, the runs of one recipe now"
)
def matrix(
    domains: Annotated[
        str, typer.Option("--domains", help="Two or more domains with commas between: every ordered pair of them.")
    ] = "",
    pairs: Annotated[
        str, typer.Option("--pairs", help="Instead of --domains: source:target, with commas between.")
    ] = "",
    recipes: Annotated[str, typer.Option("--recipes", help="Shipped recipes or YAML files.")] = RECIPES,
    seeds: Annotated[str, typer.Option("--seeds", help="Of every pair and recipe.")] = "0,1,2",
    data: Data = Path("data"),
    out: Annotated[
        Path, typer.Option("--out", parser=path, help="Folder of the matrix: runs, source models, tables.")
    ] = Path("runs/matrix"),
    profile: ProfileOption = None,
    set_: Settings = None,
    bound: Annotated[
        bool, typer.Option("--bound/--no-bound", help="Make the supervised bound of targets that have labels.")
    ] = True,
    forgetting: Annotated[
        bool, typer.Option("--forgetting/--no-forgetting", help="Score models on their source's test images too.")
    ] = True,
    gap: Annotated[bool, typer.Option("--gap/--no-gap", help="Measure how far apart the domains are.")] = True,
    selection: Annotated[
        bool, typer.Option("--selection/--no-selection", help="Measure what could be chosen by without target labels.")
    ] = True,
    embedding_map: Annotated[
        bool,
        typer.Option("--map/--no-map", help="Map where images lie before and after (t-SNE), for the first seed."),
    ] = True,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only these now: source:target:recipe:seed, or the first of these; * for any."),
    ] = None,
    executor: Annotated[
        Executor, typer.Option("--executor", help="Processes of this machine, a Ray cluster, or an array of Slurm.")
    ] = Executor.local,
    address: Annotated[
        str, typer.Option("--address", help="Of the Ray cluster; auto: the one this machine belongs to.")
    ] = "",
    slurm: Annotated[
        list[str] | None, typer.Option("--slurm", help="What the array asks for: partition=gpu, timeout_min=240.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            min=0,
            help="Runs at a time; 0: one for every core, one on a GPU, or what a cluster takes.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and how long it will take, and stop.")
    ] = False,
    pictures: Pictures = True,
    protocol: Protocol = "auto",
    device: Device = "auto",
    precision: PrecisionOption = Precision.fp32,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each run.")] = 1,
    weights: Weights = None,
    allow_code: AllowCode = False,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Carry models between domains by several recipes and seeds, and tabulate how far, how surely, at what cost.

    Finished runs are found again, interrupted ones go on, and one that fails does not stop the others.
    """
    from uda_reid.matrix.folder import MATRIX, known_failures, matrix_of, replaced, write_matrix, write_tables
    from uda_reid.matrix.plan import Plan, every_pair, plan_runs
    from uda_reid.matrix.ray_pool import RayPool
    from uda_reid.matrix.slurm import options_of
    from uda_reid.matrix.tables import show
    from uda_reid.matrix.workers import Processes
    from uda_reid.pipeline import make_folder
    from uda_reid.training.devices import pick_device

    if bool(domains) == bool(pairs):
        both = "both are given: " if domains else ""
        raise RecipeError(f"{both}give the domains of a matrix, as --domains plaza,campus, or its --pairs plaza:campus")
    plan = Plan(
        pairs=_pairs(pairs) if pairs else every_pair(_names(domains)),
        recipes=_names(recipes),
        seeds=_seeds(seeds),
        data=data,
        out=out,
        profile=profile.value if profile else None,
        settings=tuple(set_ or ()),
        device=device,
        precision=precision.value,
        threads=threads,
        weights=weights,
        protocol=protocol,
        bound=bound,
        forgetting=forgetting,
        gap=gap,
        selection=selection,
        embedding_map=embedding_map,
        pictures=pictures,
        allow_code=allow_code,
        skip_damaged=skip_damaged,
    )
    reporter = RichReporter(screen)
    reporter.log("reading the domains; scenes that are not there yet are drawn")
    planned = plan_runs(plan, reporter)
    chosen, gpus = planned.only(only or []), int(pick_device(device) != "cpu")
    asked = options_of(slurm or [], jobs=jobs, threads=threads, gpus=gpus)
    if executor is Executor.local:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = min(jobs or (1 if gpus else max(1, cores // threads)), len(chosen.jobs))
    if dry_run:
        _print_plan(chosen, out, jobs)
        if executor is Executor.slurm:
            wanted = ", ".join(f"{name}={value}" for name, value in asked.items())
            output().say(f"array of {len(chosen.jobs)} tasks: {wanted}")
        return
    make_folder(out)
    words = _repeatable(sys.argv[1:])
    command = shlex.join(["uda-reid", *words, *data_folder(words)])
    earlier = known_failures(out, planned)
    for line in replaced(out, planned):
        screen.say(line)
    write_matrix(matrix_of(planned, out, command, failed=earlier))
    if executor is Executor.slurm:
        _submit(chosen, out, asked)
        return
    local = executor is Executor.local
    pool: Pool = Processes(jobs, threads) if local else RayPool(jobs, threads, gpus=gpus, address=address)
    with resumable():
        failed = {event.cell: event.answer.failure for event in _make(chosen, pool)}
        others = {cell: failure for cell, failure in earlier.items() if cell not in chosen.jobs}
        made = matrix_of(planned, out, command, failed={**others, **failed})
        write_matrix(made)
        summary, files = write_tables(made, pictures=pictures)
    table = output()
    table.print(show(summary))
    for file in (out / MATRIX, *files):
        table.say(f"written: {file}")
    if failed:
        raise typer.Exit(1)


def _make(chosen: Planned, pool: Pool) -> tuple[Ended, ...]:
    """Make the runs; show how far they are; return those that failed."""
    from rich.live import Live

    from uda_reid.matrix.board import Board
    from uda_reid.matrix.workers import make

    board = Board(list(chosen.jobs))
    screen.say(f"{len(chosen.jobs)} runs, {pool.size} at a time")
    if screen.is_terminal:
        with Live(board, console=screen, refresh_per_second=2, transient=True):
            for event in make(chosen.jobs, pool):
                board.take(event)
    else:
        for event in make(chosen.jobs, pool):
            line = board.take(event)
            if line:
                screen.say(line)
    for event in board.failed:
        screen.say(f"failed: {event.cell}: {event.answer.failure}")
    return board.failed


def _submit(chosen: Planned, out: Path, options: Mapping[str, Any]) -> None:
    """Submit the runs as an array of Slurm, and say how to go on."""
    from uda_reid.matrix.slurm import submit

    found = submit(list(chosen.jobs.values()), out.absolute() / "slurm", options)
    array = str(found[0].job_id).split("_")[0]
    told = (
        f"submitted {len(found)} runs as array {array}; logs: {out / 'slurm'}; when it has ended: uda-reid report {out}"
    )
    screen.say(f"{told}; a line like this one submits what is missing")


def _print_plan(chosen: Planned, out: Path, jobs: int) -> None:
    from uda_reid.matrix.board import duration
    from uda_reid.matrix.left import expected_seconds, finished

    table = output()
    done = 0
    for cell, folder in chosen.folders.items():
        whole = finished(folder, chosen.jobs[cell])
        done += whole
        state = "finished" if whole else "begun" if folder.is_dir() else "to do"
        table.say(f"{state:9s} {cell}: {folder}")
    models = {model for cell in chosen.jobs for model in cell.models}
    there = sum((out / "sources" / model / "source.safetensors").is_file() for model in models)
    seconds = expected_seconds(chosen, out, jobs)
    told = "unknown before the first run has ended" if seconds is None else f"about {duration(seconds)}"
    how = f"with {jobs} at a time" if jobs else "one after another"  # what a cluster has room for is not asked
    table.say(
        f"profile {chosen.profile}: {len(chosen.jobs)} runs, {done} finished; {len(models)} source models, {there} "
        f"there; time left {how}: {told}"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for pair in _names(text):
        source, _, target = pair.partition(":")
        if not (source and target) or ":" in target:
            raise RecipeError(f"--pairs {text}: {pair!r} is no pair; write source:target, with commas between pairs")
        found.append((source, target))
    return tuple(found)


def _seeds(text: str) -> tuple[int, ...]:
    if not all(seed.isdecimal() for seed in _names(text)):
        raise RecipeError(f"--seeds {text}: give whole numbers from 0, with commas between")
    return tuple(map(int, _names(text)))


def _repeatable(words: list[str]) -> list[str]:
    """Return the command line without what only says which part is made now."""
    kept, skip = [], False
    for word in words:
        if skip or word.startswith("--only="):
            skip = False
        elif word == "--only":
            skip = True
        else:
            kept.append(word)
    return kept
