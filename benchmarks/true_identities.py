"""What strategies that cluster would reach if their clusters were the target's identities: an oracle, for diagnosis.

    python benchmarks/true_identities.py --src station --tgt plaza --recipes cluster,daam_v1,daam_v2,guided_dropout

A strategy that gains nothing with its own clusters and much with the true ones is held up by its clusters; one that
gains with neither has another fault. Source models are kept in --out and found again; nothing else is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from uda_reid.data.images import Photographs, unlabelled
from uda_reid.evaluation import Evaluator
from uda_reid.job import Job, Prepared
from uda_reid.ops.clustering import cluster_means
from uda_reid.ops.distance import normalise
from uda_reid.pipeline import train_source
from uda_reid.run import Run, Silent
from uda_reid.training.devices import use_threads
from uda_reid.training.pseudo_labels import PseudoLabels
from uda_reid.types import Domain, Encoder, Source, Strategy, Target


def with_true_identities(strategy: Strategy, source: Source, domain: Domain, run: Run) -> Encoder:
    """Return the encoder that a strategy makes whose clusters are the target's identities."""
    train = domain.train
    labels = torch.from_numpy(np.unique(train.pids, return_inverse=True)[1])
    known = Target(domain.name, Photographs(train, name="target"))  # in the order of the folder, as its identities

    def assign(features: torch.Tensor, **_: object) -> PseudoLabels:
        return PseudoLabels(labels, normalise(cluster_means(normalise(features), labels, int(labels.max()) + 1)))

    with patch.object(sys.modules[type(strategy).__module__], "assign", assign):
        return strategy.adapt(source, known, run=run).encoder


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help="names or YAML files, separated by commas")
    parser.add_argument("--src", default="plaza")
    parser.add_argument("--tgt", default="campus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`, for every recipe")
    return parser


def main() -> None:
    """Adapt with every recipe twice, and print a line each."""
    parser = arguments()
    options = parser.parse_args()
    use_threads(1)
    print(f"{options.src} -> {options.tgt}, seed {options.seed}, mAP: source-only, own clusters, true identities")
    for recipe in options.recipes.split(","):
        job = Job(
            recipe=recipe, source=options.src, target=options.tgt, seed=options.seed, out=options.out, threads=1,
            settings=tuple(options.set),
        )  # fmt: skip
        prepared = Prepared(job, Silent())
        strategy, run = prepared.recipe.strategy, Run(seed=options.seed)
        if not hasattr(sys.modules[type(strategy).__module__], "assign"):
            parser.error(f"--recipes: {recipe} does not label the target by `assign`")
        source = train_source(prepared, prepared.source, Silent())
        own = strategy.adapt(source, unlabelled(prepared.target), run=run).encoder
        oracle = with_true_identities(strategy, source, prepared.target, run)
        evaluator = Evaluator(prepared.target, "market", run)
        scores = (100 * evaluator.score(each).mean_ap for each in (source.encoder, own, oracle))
        print(f"{prepared.recipe.name:20s}", *(f"{score:5.1f}" for score in scores), flush=True)


if __name__ == "__main__":
    main()
