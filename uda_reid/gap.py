"""How far a target is from a source in the eyes of the source model, before any adaptation and without any label."""

from __future__ import annotations

import torch
from torch import Tensor

from uda_reid.models.batch_norm import batch_norms
from uda_reid.ops.distance import normalise
from uda_reid.ops.gap import maximum_mean_discrepancy, normal_divergence, proxy_a_distance
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.training.units import with_statistics
from uda_reid.types import Source, Target

MEASURES = ("batch norm", "MMD", "proxy-A")
"""Names of the measures; each is larger for domains that are further apart."""
LAYER = "batch norm, layer "
SAMPLE = 1024
"""Images of either side at most: the discrepancy needs all pairs of them."""


def domain_gap(source: Source, target: Target, *, run: Run = QUIET) -> dict[str, float]:
    """Return how far the target is from the source's training images, as the source model sees them.

    Args:
        source: the source and its model.
        target: its images.
        run: the surroundings; at most `SAMPLE` images of either side are drawn.

    Returns:
        `MMD` and `proxy-A` of the normalised embeddings (`ops.gap`); `batch norm`, the mean over the encoder's layers
        of the divergence between what a channel does on the source and on the target, and the same of every layer, as
        `batch norm, layer 01` and so on; an encoder without batch norm has none of these.

    Raises:
        DataError: either side has less than four images.
    """
    mine, theirs = source.training, torch.arange(len(target.images))
    drawn = [_sample(rows, run.stream(f"gap/{name}")) for name, rows in (("source", mine), ("target", theirs))]
    known = normalise(extract(source.encoder, source.images, rows=drawn[0], run=run, description="gap, source"))
    seen = normalise(extract(source.encoder, target.images, rows=drawn[1], run=run, description="gap, target"))
    found = {
        "MMD": maximum_mean_discrepancy(known, seen),
        "proxy-A": proxy_a_distance(known, seen, generator=run.stream("gap/halves")),
    }
    here = with_statistics(source.encoder, source.images, drawn[0], name="gap/source/statistics", run=run)
    there = with_statistics(source.encoder, target.images, drawn[1], name="gap/target/statistics", run=run)
    layers = [
        normal_divergence(*_statistics(one), *_statistics(other))
        for one, other in zip(batch_norms(here), batch_norms(there), strict=True)
    ]
    if layers:
        found["batch norm"] = sum(layers) / len(layers)
    return found | {f"{LAYER}{number:02d}": each for number, each in enumerate(layers, 1)}


def _sample(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:SAMPLE].sort().values]


def _statistics(layer: torch.nn.Module) -> tuple[Tensor, Tensor]:
    return layer.get_buffer("running_mean").cpu(), layer.get_buffer("running_var").cpu()
