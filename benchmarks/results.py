"""One table of all strategies: pairs of domains x recipes x seeds, beside source-only and the supervised bound.

    python benchmarks/results.py --write docs/results.md                       # six pairs of scenes, three seeds
    python benchmarks/results.py --pairs cuhk03:pku --data DIR --seeds 0       # photographs, one pair, one seed
    python benchmarks/results.py --matrix runs/first --write docs/results.md   # of what `uda-reid matrix` has made

Two runs at a time with one thread each, through the same pipeline as `uda-reid adapt --bound --threads 1`, which finds
these runs again with the same `--out`. It can be stopped and started at will: finished runs and source models are
found, others go on from where they were. A run that fails is reported, the others are made, and the exit code is 1.
`--write` puts the tables between two marks of a Markdown file and leaves the rest of the file as it is; those of a
matrix have marks of their own.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from benchmarks.results_page import Made, page, put
from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.matrix.board import Board
from uda_reid.matrix.folder import read_matrix, write_tables
from uda_reid.matrix.plan import Cell, Place, Plan, Planned, plan_runs
from uda_reid.matrix.workers import Answer, Processes, make
from uda_reid.report import Record

PAIRS = "plaza:campus,campus:plaza,plaza:station,station:plaza,campus:station,station:campus"
RECIPES = "adabn,pul,cluster,daam_v1,daam_v2,adda,guided_dropout"


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
    parser.add_argument("--matrix", type=Path, help="make nothing; take the tables of this matrix instead")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for runs and source models")
    parser.add_argument("--profile", choices=("paper", "small", "scenes"), help="default: chosen by the domains")
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`, for every recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--write", type=Path, help="a Markdown file; its part about the same profile is replaced")
    return parser


def say(line: str) -> None:
    """Print a line on progress, at once, where results do not go."""
    print(line, file=sys.stderr, flush=True)


def plan(options: argparse.Namespace) -> Planned:
    """Return the runs in their order; everything typed wrong is found here, before any training.

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
    if options.write and (options.write.is_dir() or not options.write.absolute().parent.is_dir()):
        raise RecipeError(f"--write {options.write}: give a file in a folder that is there")
    say("reading the domains; scenes that are not there yet are drawn")
    return plan_runs(
        Plan(
            pairs=tuple((source, target) for source, target in pairs),
            recipes=tuple(options.recipes.split(",")),
            seeds=tuple(map(int, options.seeds.split(","))),
            data=options.data,
            out=options.out,
            profile=options.profile,
            settings=tuple(options.set),
            device=options.device,
            threads=options.threads,
        )
    )


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


def made_of(planned: Planned, options: argparse.Namespace) -> dict[Cell, Answer]:
    """Make all runs and tell of each as it ends."""
    board = Board(list(planned.jobs))
    for event in make(planned.jobs, Processes(min(options.jobs, len(planned.jobs)), options.threads)):
        line = board.take(event)
        if line:
            say(line)
    return {cell: event.answer for cell, event in board.ended.items()}


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
    if options.matrix:
        return of_matrix(options)
    signal.signal(signal.SIGTERM, interrupted)
    began = time.monotonic()
    try:
        planned = plan(options)
        ended = made_of(planned, options)
    except UdaReidError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    answers = {cell: ended[cell] for cell in planned.jobs}  # in the order asked for
    found, minutes = sum(answer.found for answer in answers.values()), f"{(time.monotonic() - began) / 60:.0f} minutes"
    made = Made(
        pairs=list(dict.fromkeys(cell.place.pair for cell in answers)),
        seeds=list(dict.fromkeys(cell.place.seed for cell in answers)),
        command=command_line(options),
        took=f"{options.jobs} at a time; "
        + (f"{minutes}, {found} of {len(answers)} runs found finished" if found else f"{minutes} in all"),
        failed=[f"{cell}: {answer.failure}" for cell, answer in answers.items() if not answer.record],
    )
    tell(page(collect(answers), made), planned.profile, options.write if len(made.failed) < len(answers) else None)
    return 1 if made.failed else 0


def of_matrix(options: argparse.Namespace) -> int:
    """Print the tables of a matrix that is there, and write them down; return the exit code."""
    try:
        matrix = read_matrix(options.matrix)
        summary, _ = write_tables(matrix, pictures="--no-pictures" not in matrix.command)
    except UdaReidError as error:
        say(f"error: {error}")
        return 2
    names = ", ".join(method.name for method in summary.methods if method.adapts)
    text = (options.matrix / "matrix.md").read_text(encoding="utf-8")
    tell(f"### A matrix of {names}\n\n{text}", "matrix", options.write)
    return 1 if summary.missing else 0


def tell(text: str, name: str, path: Path | None) -> None:
    """Print the tables, and put them into a file."""
    print(text)
    if path:
        document = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
        path.write_text(put(document, text, name), encoding="utf-8")
        say(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
