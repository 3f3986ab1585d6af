"""One table of all strategies: pairs of domains x recipes x seeds, beside source-only and the supervised bound.

    python benchmarks/results.py --write docs/results.md                       # six pairs of scenes, three seeds
    python benchmarks/results.py --pairs cuhk03:pku --data DIR --seeds 0       # photographs, one pair, one seed

Two runs at a time with one thread each, through the same pipeline as `uda-reid adapt --bound --threads 1`, which finds
these runs again with the same `--out`. It can be stopped and started at will: finished runs and source models are
found, others go on from where they were. A run that fails is reported, the others are made, and the exit code is 1.
`--write` puts the tables between two marks of a Markdown file and leaves the rest of the file as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from benchmarks.results_page import Made, Place, page, put
from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.job import Job, Prepared, open_domain
from uda_reid.pipeline import one
from uda_reid.recipe import load
from uda_reid.report import Record
from uda_reid.run import Silent
from uda_reid.training.devices import check_threads

PAIRS = "plaza:campus,campus:plaza,plaza:station,station:plaza,campus:station,station:campus"
RECIPES = "adabn,pul,cluster,daam_v1,daam_v2,adda,guided_dropout"
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What the libraries read on import, once: how many threads they may start."""


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs",
        default=PAIRS,
        help="source:target, separated by commas, of names without colons and commas (default: %(default)s)",
    )
    parser.add_argument("--recipes", default=RECIPES, help="names or YAML files (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for runs and source models")
    parser.add_argument("--profile", choices=("paper", "small", "scenes"), help="default: chosen by the domains")
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`, for every recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--write", type=Path, help="a Markdown file; its part about the same profile is replaced")
    return parser


class Cell(NamedTuple):
    """One run.

    Args:
        recipe: its recipe.
        place: its pair and seed.
        models: source models that it trains or waits for: its own, and that of the bound.
    """

    recipe: str
    place: Place
    models: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return what the run is called."""
        return f"{self.place.source} -> {self.place.target}, {self.recipe}, seed {self.place.seed}"


def choose(waiting: Sequence[Cell], running: Iterable[Cell], trained: Iterable[str]) -> Cell:
    """Return the run to begin next: the first that no running one holds up by training a source model of its.

    >>> first, second, third = (
    ...     Cell(recipe, Place("a", "b", seed), frozenset([f"a{seed}", f"b{seed}"]))
    ...     for recipe, seed in (("pul", 0), ("adda", 0), ("pul", 1))
    ... )
    >>> choose([second, third], [first], []) == third  # `a0` and `b0` are being trained
    True
    >>> choose([second, third], [first], ["a0", "b0"]) == second
    True
    >>> choose([second], [first], []) == second  # nothing else is left: it waits
    True
    """
    busy = {model for cell in running for model in cell.models} - set(trained)
    return next((cell for cell in waiting if not busy & cell.models), waiting[0])


def seconds_left(todo: Iterable[Cell], took: Mapping[str, Sequence[float]], jobs: int) -> float:
    """Return how long the rest will take: as long for every recipe as it took so far.

    >>> cells = [Cell("pul", Place("a", "b", 0)), Cell("adda", Place("a", "b", 0))]
    >>> seconds_left(cells, {"pul": [20.0, 40.0]}, jobs=2)  # of adda nothing is known yet
    30.0
    """
    usual = statistics.mean(second for seconds in took.values() for second in seconds)
    return sum(statistics.mean(took[cell.recipe]) if cell.recipe in took else usual for cell in todo) / jobs


class Answer(NamedTuple):
    """What came of a run: its record, and whether it was found finished; or what went wrong."""

    record: Record | None
    found: bool = False
    failure: str = ""


def serve(pipe: Connection) -> None:
    """Make the runs that come through a pipe, until nobody is at its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            record, _, found = one(job)
            answer = Answer(record, found)
        except Exception as error:
            kind = "" if isinstance(error, UdaReidError) else f"{type(error).__name__}: "
            answer = Answer(None, failure=" ".join(f"{kind}{error}".split()))
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


class Worker:
    """A process that makes one run after another; libraries and their threads begin anew in it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.began = time.monotonic()

    def begin(self, job: Job) -> None:
        """Hand a run over."""
        self.began = time.monotonic()
        self.pipe.send(job)

    def answer(self) -> Answer:
        """Return what came of the run; a process that was killed has failed."""
        try:
            found: Answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Answer(None, failure=f"its process ended with code {self.process.exitcode}; start again to go on")
        return found


def make(cells: Sequence[Cell], job_of: Mapping[Cell, Job], jobs: int) -> dict[Cell, Answer]:
    """Make all runs, some at a time, and tell of each as it ends."""
    answers: dict[Cell, Answer] = {}
    took: dict[str, list[float]] = {}
    trained: set[str] = set()
    waiting, running = list(cells), dict[Cell, Worker]()
    idle = [Worker() for _ in range(min(jobs, len(cells)))]
    try:
        while waiting or running:
            while idle and waiting:
                cell = choose(waiting, running, trained)
                waiting.remove(cell)
                worker = idle.pop()
                running[cell] = worker if worker.process.is_alive() else Worker()  # somebody may have killed it
                running[cell].begin(job_of[cell])
            ready = wait([worker.pipe for worker in running.values()])
            for cell, worker in [pair for pair in running.items() if pair[1].pipe in ready]:
                answers[cell] = answer = worker.answer()
                idle.append(worker if worker.process.is_alive() else Worker())
                del running[cell]
                seconds = time.monotonic() - worker.began
                if answer.record:
                    trained |= cell.models
                if answer.record and not answer.found:
                    took.setdefault(cell.recipe, []).append(seconds)
                left = seconds_left([*waiting, *running], took, jobs) if took else 0.0
                say(f"[{len(answers)}/{len(cells)}] {cell}: {outcome(answer, seconds)}{until(left)}")
    finally:
        for worker in (*idle, *running.values()):
            worker.process.terminate()
    return answers


def outcome(answer: Answer, seconds: float) -> str:
    """Return what came of a run, for a line on progress."""
    if answer.record is None:
        return f"FAILED: {answer.failure}"
    before, after = (100 * row.scored.mean_ap for row in (answer.record.start, answer.record.adapted))
    return f"mAP {before:.1f} -> {after:.1f}, {'found' if answer.found else f'{seconds:.0f} s'}"


def until(left: float) -> str:
    """Return when the end is to be expected, some seconds from now; nothing where that is not known."""
    return f"; end at about {time.strftime('%H:%M', time.localtime(time.time() + left))}" if left else ""


def say(line: str) -> None:
    """Print a line on progress, at once, where results do not go."""
    print(line, file=sys.stderr, flush=True)


def plan(options: argparse.Namespace) -> tuple[dict[Cell, Job], str]:
    """Return the runs in their order, and the profile; everything typed wrong is found here, before any training.

    Raises:
        UdaReidError: a domain, a recipe or a setting is wrong, or the runs have different profiles.
    """
    pairs = [tuple(pair.split(":")) for pair in options.pairs.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise RecipeError(f"--pairs {options.pairs}: a pair is source:target; separate pairs by commas")
    if not all(seed.isdecimal() for seed in options.seeds.split(",")):
        raise RecipeError(f"--seeds {options.seeds}: give numbers from 0, separated by commas")
    if options.jobs < 1 or options.threads < 1:
        raise RecipeError("--jobs and --threads must be at least 1")
    check_threads(options.threads)
    if options.write and (options.write.is_dir() or not options.write.absolute().parent.is_dir()):
        raise RecipeError(f"--write {options.write}: give a file in a folder that is there")
    recipes = options.recipes.split(",")
    names = [load(recipe, settings=tuple(options.set)).name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise RecipeError(f"--recipes {options.recipes}: two are called {twice}; copy one to a file of another name")
    say("reading the domains; scenes that are not there yet are drawn")
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        open_domain(name, options.data)
    cells, profiles = {}, set()
    for seed in map(int, options.seeds.split(",")):
        for source, target in pairs:
            for recipe in recipes:
                job = Job(
                    recipe=recipe, source=source, target=target, data=options.data, out=options.out, seed=seed,
                    profile=options.profile, settings=tuple(options.set), device=options.device,
                    threads=options.threads, bound=True, pictures=False,
                )  # fmt: skip
                prepared = Prepared(job, Silent())
                profiles.add(prepared.recipe.profile)
                models = (prepared.source_folder(domain).name for domain in (prepared.source, prepared.target))
                cell = Cell(prepared.recipe.name, Place(source, target, seed), frozenset(models))
                cells[cell] = dataclasses.replace(job, command=alone(job))
    if len(profiles) > 1:
        raise RecipeError(f"the runs have profiles {', '.join(sorted(profiles))}: give --profile, or a table for each")
    return cells, profiles.pop()


def alone(job: Job) -> str:
    """Return the command that makes one run alone.

    >>> alone(Job(recipe="pul", source="plaza", target="campus", seed=1, threads=1))
    'uda-reid adapt --recipe pul --src plaza --tgt campus --seed 1 --bound --no-pictures --threads 1 --device auto'
    """
    words = ["uda-reid", "adapt", "--recipe", job.recipe, "--src", job.source, "--tgt", str(job.target)]
    words += ["--seed", str(job.seed), "--bound", "--no-pictures", "--threads", str(job.threads)]
    words += ["--device", job.device]
    words += ["--data", str(job.data)] if job.data != Path("data") else []
    words += ["--profile", job.profile] if job.profile else []
    return shlex.join([*words, *(word for setting in job.settings for word in ("--set", setting))])


def command_line(options: argparse.Namespace) -> str:
    """Return the command line without what only matters on this machine: where data and runs lie.

    >>> command_line(arguments().parse_args(["--seeds", "0", "--data", "/home/me/sets", "--out", "elsewhere"]))
    'python benchmarks/results.py --seeds 0 --data DIR'
    """
    usual = vars(arguments().parse_args([]))
    words = ["python", "benchmarks/results.py"]
    for name, value in vars(options).items():
        if value == usual[name] or name in ("out", "write"):
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name}", "DIR" if name == "data" else str(each)]
    return shlex.join(words)


def interrupted(_: int, __: FrameType | None) -> None:
    """Let a polite `kill` end the work as Ctrl-C does."""
    raise KeyboardInterrupt


def collect(answers: Mapping[Cell, Answer]) -> dict[str, dict[Place, Record]]:
    """Return the records by recipe and place; a recipe whose runs have all failed has none."""
    runs: dict[str, dict[Place, Record]] = {cell.recipe: {} for cell in answers}
    for cell, answer in answers.items():
        if answer.record:
            runs[cell.recipe][cell.place] = answer.record
    return runs


def main() -> int:
    """Make the runs, print the tables and write them down; return the exit code."""
    options = arguments().parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    os.environ.update(dict.fromkeys(POOLS, str(options.threads)))  # for the processes to come; this one does not count
    began = time.monotonic()
    try:
        job_of, profile = plan(options)
        ended = make(list(job_of), job_of, options.jobs)
    except UdaReidError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    answers = {cell: ended[cell] for cell in job_of}  # in the order asked for
    found, minutes = sum(answer.found for answer in answers.values()), f"{(time.monotonic() - began) / 60:.0f} minutes"
    made = Made(
        pairs=list(dict.fromkeys(cell.place.pair for cell in answers)),
        seeds=list(dict.fromkeys(cell.place.seed for cell in answers)),
        command=command_line(options),
        jobs=options.jobs,
        took=f"{minutes}, {found} of {len(answers)} runs found finished" if found else f"{minutes} in all",
        failed=[f"{cell}: {answer.failure}" for cell, answer in answers.items() if not answer.record],
    )
    text = page(collect(answers), made)
    print(text)
    if options.write and len(made.failed) < len(answers):
        document = options.write.read_text(encoding="utf-8") if options.write.is_file() else "# Results\n"
        options.write.write_text(put(document, text, profile), encoding="utf-8")
        say(f"written: {options.write}")
    return 1 if made.failed else 0


if __name__ == "__main__":
    sys.exit(main())
