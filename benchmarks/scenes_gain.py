"""How far strategies carry a model between two built-in scenes, beside source-only and the supervised bound.

    python benchmarks/scenes_gain.py --seeds 0,1,2 --recipes adabn,pul,cluster --pairs plaza:campus,campus:plaza

Finished runs and source models are found again, so it can be stopped and started at will. `adabn` is the control of all
others: it learns nothing, and only the batch-norm statistics see the target.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uda_reid.job import Job
from uda_reid.pipeline import one
from uda_reid.report import BOUND, SOURCE_ONLY, Record, gap_closed
from uda_reid.terminal import RichReporter
from uda_reid.types import Scores


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", default="plaza:campus,campus:plaza")
    parser.add_argument("--recipes", default="adabn,pul,cluster")
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`")
    parser.add_argument("--threads", type=int, default=0)
    return parser


def main() -> None:
    """Run every pair with every recipe and seed, and print mean and spread."""
    options = arguments().parse_args()
    reporter = RichReporter(Console(stderr=True))
    output = Console(width=110, highlight=False)
    for pair in options.pairs.split(","):
        source, target = pair.split(":")
        runs: dict[str, list[Record]] = {}
        for recipe in options.recipes.split(","):
            for seed in map(int, options.seeds.split(",")):
                job = Job(
                    recipe=recipe,
                    source=source,
                    target=target,
                    seed=seed,
                    out=options.out,
                    threads=options.threads,
                    settings=tuple(options.set),
                    bound=True,
                    command=shlex.join(["python", *sys.argv]),
                )
                runs.setdefault(recipe, []).append(one(job, reporter=reporter)[0])
        output.print(table(f"{source} -> {target}, seeds {options.seeds}", runs))
        for recipe, records in runs.items():
            output.print(verdict(recipe, records))


def table(title: str, runs: dict[str, list[Record]]) -> Table:
    """Return mean and standard deviation over seeds, in points."""
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    result.add_column("model")
    for column in ("mAP", "rank-1", "rank-5", "rank-10", "mINP"):
        result.add_column(column, justify="right")
    first = next(iter(runs.values()))  # source-only and the bound are the same models in the runs of every recipe
    rows = [(SOURCE_ONLY, first), *runs.items(), (BOUND, first)]
    for name, records in rows:
        scores = [scored(record, name) for record in records]
        columns = [
            [score.mean_ap for score in scores],
            *([score.cmc[rank] for score in scores] for rank in (1, 5, 10)),
            [score.mean_inp for score in scores],
        ]
        result.add_row(name, *map(spread, columns))
    return result


def scored(record: Record, name: str) -> Scores:
    """Return the scores of the row called `name`; a recipe's row is the adapted one."""
    row = record.row(name)
    return (record.adapted if row is None else row).scored


def spread(values: list[float]) -> str:
    """Return mean +- sample standard deviation, in points."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def verdict(recipe: str, records: list[Record]) -> str:
    """Return the gain of every seed, what share of the gap it closes, and how large the gap is."""
    gains, shares, ratios = [], [], []
    for record in records:
        start, bound = (scored(record, name).mean_ap for name in (SOURCE_ONLY, BOUND))
        gains.append(record.adapted.scored.mean_ap - start)
        shares.append(gap_closed(record))
        ratios.append(start / bound)
    return (
        f"{recipe}: gain in mAP {spread(gains)} points; by seed: "
        + ", ".join(f"{100 * gain:+.1f}" for gain in gains)
        + "; share of the gap closed: "
        + ", ".join("n/a" if share is None else f"{share:.0%}" for share in shares)
        + "; source-only / bound: "
        + ", ".join(f"{ratio:.0%}" for ratio in ratios)
    )


if __name__ == "__main__":
    main()
