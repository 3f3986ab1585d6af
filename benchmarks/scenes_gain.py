"""How far PUL carries a model between two built-in scenes: source-only, PUL and the supervised bound, several seeds.

    python benchmarks/scenes_gain.py --out runs/scenes --seeds 0,1,2 --pairs plaza:campus,campus:plaza

Finished runs are found again, so it can be stopped and started at will. About 2 minutes per seed and pair on 2 cores.
With `--set adapt.lr=0 --set adapt.rounds=1` nothing is learned and only batch-norm statistics move: the control.
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


def main() -> None:
    """Run every pair with every seed and print mean and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", default="plaza:campus,campus:plaza")
    parser.add_argument("--recipe", default="pul")
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`; adapt.lr=0 is a control")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    reporter = RichReporter(Console(stderr=True))
    output = Console(width=110, highlight=False)
    for pair in options.pairs.split(","):
        source, target = pair.split(":")
        records = []
        for seed in map(int, options.seeds.split(",")):
            job = Job(
                recipe=options.recipe,
                source=source,
                target=target,
                seed=seed,
                out=options.out,
                threads=options.threads,
                settings=tuple(options.set),
                bound=True,
                command=shlex.join(["python", *sys.argv]),
            )
            records.append(one(job, reporter=reporter)[0])
        output.print(table(f"{source} -> {target}, seeds {options.seeds}", options.recipe, records))
        output.print(verdict(records))


def table(title: str, recipe: str, records: list[Record]) -> Table:
    """Return mean and standard deviation over seeds, in points."""
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    result.add_column("model")
    for column in ("mAP", "rank-1", "rank-5", "rank-10", "mINP"):
        result.add_column(column, justify="right")
    for name in (SOURCE_ONLY, recipe, BOUND):
        scores = [row.scored for record in records if (row := record.row(name)) is not None]
        columns = [
            [score.mean_ap for score in scores],
            *([score.cmc[rank] for score in scores] for rank in (1, 5, 10)),
            [score.mean_inp for score in scores],
        ]
        result.add_row(name, *map(spread, columns))
    return result


def spread(values: list[float]) -> str:
    """Return mean +- sample standard deviation, in points."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def verdict(records: list[Record]) -> str:
    """Return the gain of every seed, what share of the gap it closes, and how large the gap is."""
    gains, shares, ratios = [], [], []
    for record in records:
        start, bound = record.row(SOURCE_ONLY), record.row(BOUND)
        assert start is not None and bound is not None
        gains.append(record.adapted.scored.mean_ap - start.scored.mean_ap)
        shares.append(gap_closed(record))
        ratios.append(start.scored.mean_ap / bound.scored.mean_ap)
    return "\n".join(
        (
            f"gain in mAP: {spread(gains)} points; by seed: " + ", ".join(f"{100 * gain:+.1f}" for gain in gains),
            "share of the gap closed: " + ", ".join("n/a" if share is None else f"{share:.0%}" for share in shares),
            "source-only / bound: " + ", ".join(f"{ratio:.0%}" for ratio in ratios),
        )
    )


if __name__ == "__main__":
    main()
