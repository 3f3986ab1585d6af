"""How far apart the pairs were before any adaptation, and whether that tells how well a model carries over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uda_reid.gap import LAYER, MEASURES
from uda_reid.matrix.plan import Place
from uda_reid.report import Record
from uda_reid.selection import rank_correlation

Pair = tuple[str, str]


@dataclass(frozen=True)
class Gaps:
    """The gaps of a matrix.

    Args:
        measured: pair -> measure -> one number for every seed.
        layers: pair -> mean over seeds of the divergence in every batch-norm layer, first layer first.
        correlation: measure -> Spearman's correlation with the source-only mAP over pairs and seeds; NaN for fewer than
            three or where either is constant. A gap that foretells how well a model carries over has a negative one.
        runs: how many pairs and seeds that is.
    """

    measured: Mapping[Pair, Mapping[str, tuple[float, ...]]]
    layers: Mapping[Pair, tuple[float, ...]]
    correlation: Mapping[str, float]
    runs: int


def gaps(records: Mapping[Place, Record], pairs: Sequence[Pair]) -> Gaps:
    """Return the gaps of the runs of one source model for every pair and seed; runs without any are passed over."""
    found = {place: record for place, record in sorted(records.items()) if record.gap}
    measured: dict[Pair, dict[str, tuple[float, ...]]] = {}
    layers: dict[Pair, tuple[float, ...]] = {}
    for pair in pairs:
        own = [record.gap for place, record in found.items() if place.pair == pair]
        if own:
            known = [name for name in MEASURES if all(name in gap for gap in own)]
            measured[pair] = {name: tuple(gap[name] for gap in own) for name in known}
            names = [name for name in own[0] if name.startswith(LAYER)]
            layers[pair] = tuple(statistics.fmean(gap.get(name, math.nan) for gap in own) for name in names)
    points = [{**record.gap, "mean_ap": record.start.scored.mean_ap} for record in found.values()]
    return Gaps(measured, layers, {name: rank_correlation(points, name) for name in MEASURES}, len(points))
