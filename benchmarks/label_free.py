"""Which of several recipes to prefer when nobody labelled the target: measures that need no label of it.

    python benchmarks/label_free.py --recipes daam_v1,daam_v2

Finished runs of the same `--out` are found, others are made. Of every adapted encoder it tells: mAP on identities of
the source that were held out of its training, the soft-neighbourhood density of its target embeddings, and the
silhouette of their k-means clusters. Each is higher for the better, as a rule; none is proof. A recipe's rank by each,
averaged over pairs, seeds and measures, is the verdict. No number of the target's test enters.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from uda_reid.data.images import unlabelled
from uda_reid.job import Job, Prepared
from uda_reid.ops.clustering import kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.quality import silhouette, soft_neighbourhood_density
from uda_reid.pipeline import one, train_source
from uda_reid.pretraining import validate
from uda_reid.run import Run, Silent
from uda_reid.terminal import RichReporter, Screen
from uda_reid.training.encoders import load_encoder
from uda_reid.training.features import extract

MEASURES = ("source mAP", "density", "silhouette")
IMAGES_PER_CLUSTER = 8


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help="names or YAML files, separated by commas")
    parser.add_argument("--pairs", default="plaza:campus,campus:plaza")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1, help="as of the runs that are to be found")
    return parser


def main() -> None:
    """Measure every adapted encoder and print the ranks."""
    options = arguments().parse_args()
    reporter = RichReporter(Screen(stderr=True))
    recipes = options.recipes.split(",")
    ranks: dict[str, list[float]] = {recipe: [] for recipe in recipes}
    table = Table(box=SIMPLE_HEAD)
    for column in ("pair", "seed", "recipe", *MEASURES):
        table.add_column(column, justify="right" if column in MEASURES else "left")
    for pair in options.pairs.split(","):
        source, target = pair.split(":")
        for seed in map(int, options.seeds.split(",")):
            found = {}
            for recipe in recipes:
                job = Job(
                    recipe=recipe, source=source, target=target, seed=seed, data=options.data, out=options.out,
                    threads=options.threads, device="cpu", command="benchmarks/label_free.py",
                )  # fmt: skip
                _, folder, _ = one(job, reporter=reporter)
                found[recipe] = measured(job, folder)
                table.add_row(pair, str(seed), recipe, *(f"{value:.4f}" for value in found[recipe]))
            for measure in range(len(MEASURES)):
                values = [found[recipe][measure] for recipe in recipes]
                for recipe, value in zip(recipes, values, strict=True):
                    ranks[recipe].append(place(value, values))
    output = Console(width=110, highlight=False)
    output.print(table)
    for recipe in recipes:
        each = [statistics.mean(ranks[recipe][measure :: len(MEASURES)]) for measure in range(len(MEASURES))]
        told = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(MEASURES, each, strict=True))
        output.print(f"{recipe}: mean rank {statistics.mean(ranks[recipe]):.2f} ({told})")


def place(value: float, values: Sequence[float]) -> float:
    """Return the rank of a value among the values, 1 for the highest; equals share theirs, NaN is the lowest.

    >>> [place(value, [0.5, 0.9, 0.5, math.nan]) for value in (0.5, 0.9, math.nan)]
    [2.5, 1.0, 4.0]
    """
    known, own = [-math.inf if math.isnan(each) else each for each in values], -math.inf if math.isnan(value) else value
    return 1 + sum(each > own for each in known) + (known.count(own) - 1) / 2


def measured(job: Job, folder: Path) -> tuple[float, float, float]:
    """Return the three measures of a finished run's adapted encoder."""
    prepared, run = Prepared(job, Silent()), Run(seed=job.seed)
    encoder = load_encoder(folder)
    source = train_source(prepared, prepared.source, Silent())
    known = validate(replace(source, encoder=encoder), run=run).get("mean_ap", math.nan)  # none may be held out
    features = normalise(extract(encoder, unlabelled(prepared.target).images, run=run))
    clusters = kmeans(features, len(features) // IMAGES_PER_CLUSTER, generator=run.stream("label_free/kmeans"))
    apart = silhouette(features, clusters.labels, generator=run.stream("label_free/silhouette"))
    return known, soft_neighbourhood_density(features), apart.value


if __name__ == "__main__":
    main()
