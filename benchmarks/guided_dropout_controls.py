"""What domain-guided dropout owes to its masks, its clusters and batch norm, on two built-in scenes.

    python benchmarks/guided_dropout_controls.py --src plaza --tgt campus --seed 0

Three runs of the recipe: as it is; with nothing masked; and with the target's true identities in place of clusters, an
oracle, to see whether the rest works. Each is scored on the target twice: as it is, and after `adabn` has given its
batch norm the target's statistics alone; and once, as it is, on the source's held-out people. Source models are kept in
--out and found again.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.true_identities import with_true_identities
from uda_reid.data.images import unlabelled
from uda_reid.evaluation import Evaluator
from uda_reid.job import Job, Prepared
from uda_reid.pipeline import train_source
from uda_reid.pretraining import validate
from uda_reid.run import Run, Silent
from uda_reid.strategies.adabn import AdaBN
from uda_reid.strategies.guided_dropout import GuidedDropout
from uda_reid.training.devices import use_threads
from uda_reid.types import Source, Target


class Unmasked(GuidedDropout):
    """Keeps every unit of every image."""

    def mask(self, scores: Tensor, domains: Tensor, chance: Tensor | torch.Generator, *, first: bool) -> Tensor:
        """Return ones."""
        return scores.new_ones(len(domains), scores.shape[1])


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", default="plaza")
    parser.add_argument("--tgt", default="campus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], help="as of `uda-reid adapt`")
    return parser


def main() -> None:
    """Run the three, and print a line each."""
    options = arguments().parse_args()
    use_threads(1)
    job = Job(
        recipe="guided_dropout",
        source=options.src,
        target=options.tgt,
        seed=options.seed,
        out=options.out,
        threads=1,
        settings=tuple(options.set),
    )
    prepared = Prepared(job, Silent())
    source, run = train_source(prepared, prepared.source, Silent()), Run(seed=options.seed)
    evaluator, strategy = Evaluator(prepared.target, "market", run), prepared.recipe.strategy
    target = unlabelled(prepared.target)
    chosen = {field.name: getattr(strategy, field.name) for field in fields(GuidedDropout)}
    print(f"{options.src} -> {options.tgt}, seed {options.seed}, mAP: target, with its statistics, people held out")
    report("source-only", source, target, evaluator, run)
    for name, each in (("guided_dropout", GuidedDropout(**chosen)), ("unmasked", Unmasked(**chosen))):
        report(name, replace(source, encoder=each.adapt(source, target, run=run).encoder), target, evaluator, run)
    encoder = with_true_identities(strategy, source, prepared.target, run)
    report("true identities (oracle)", replace(source, encoder=encoder), target, evaluator, run)


def report(name: str, source: Source, target: Target, evaluator: Evaluator, run: Run) -> None:
    """Print how well an encoder does, as it is and with the target's statistics."""
    renewed = AdaBN().adapt(source, target, run=run).encoder
    scores = [100 * evaluator.score(encoder).mean_ap for encoder in (source.encoder, renewed)]
    scores.append(100 * validate(source, run=run).get("mean_ap", math.nan))
    print(f"{name:26s}", *(f"{score:5.1f}" for score in scores), flush=True)


if __name__ == "__main__":
    main()
