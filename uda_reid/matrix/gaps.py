"""How far apart the pairs were before any adaptation, and whether that tells how well a model carries over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uda_reid.gap import LAYER, MEASURES
from uda_reid.matrix.plan import Pair, Place
from uda_reid.report import Record
from uda_reid.selection import rank_correlation


@dataclass(frozen=True)
class Gaps:
    """How far apart the pairs are in the eyes of one source model.

    Args:
        start: number of the source model, as of `summary.Method`.
        measured: pair -> measure -> one number for every seed.
        levels: pair -> source-only mAP, a fraction, mean of the same seeds.
        layers: pair -> mean over seeds of the divergence in every batch-norm layer, first layer first.
        correlation: measure -> Spearman's correlation with the source-only mAP over the pairs, each the mean of its
            seeds; NaN for fewer than three pairs, or where either is constant. A gap that goes with how well a model
            carries over has a negative one. Pairs differ in how hard their targets are, too: it mixes both.
    """

    start: int
    measured: Mapping[Pair, Mapping[str, tuple[float, ...]]]
    levels: Mapping[Pair, float]
    layers: Mapping[Pair, tuple[float, ...]]
    correlation: Mapping[str, float]


def gaps(records: Mapping[Place, Record], pairs: Sequence[Pair], start: int = 0) -> Gaps:
    """Return the gaps of the runs of one source model, all of which have theirs."""
    measured: dict[Pair, dict[str, tuple[float, ...]]] = {}
    layers: dict[Pair, tuple[float, ...]] = {}
    levels: dict[Pair, float] = {}
    for pair in pairs:
        own = [record for place, record in sorted(records.items()) if place.pair == pair]
        if own:
            known = [name for name in MEASURES if all(name in record.gap for record in own)]
            measured[pair] = {name: tuple(record.gap[name] for record in own) for name in known}
            names = [name for name in own[0].gap if name.startswith(LAYER)]
            layers[pair] = tuple(statistics.fmean(record.gap.get(name, math.nan) for record in own) for name in names)
            levels[pair] = statistics.fmean(record.start.scored.mean_ap for record in own)
    points = [
        {"mean_ap": levels[pair], **{name: statistics.fmean(values) for name, values in measured[pair].items()}}
        for pair in measured
    ]
    return Gaps(start, measured, levels, layers, {name: rank_correlation(points, name) for name in MEASURES})
