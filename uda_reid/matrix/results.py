"""What a matrix says: methods, each with a result for every pair, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from uda_reid.matrix.gaps import Gaps
from uda_reid.matrix.plan import Pair
from uda_reid.matrix.published import Published
from uda_reid.matrix.selected import Selected
from uda_reid.ops.bootstrap import Estimate, Interval
from uda_reid.report import BOUND, SOURCE_ONLY


class Spread(NamedTuple):
    """A mean over seeds and its sample standard deviation, NaN with one seed; of no seed, both are NaN."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one number for every seed.

        >>> Spread.of([1.0, 3.0]), Spread.of([2.0])
        (Spread(mean=2.0, deviation=1.4142135623730951, seeds=2), Spread(mean=2.0, deviation=nan, seeds=1))
        """
        numbers = np.array(values, dtype=np.float64)  # NaN where the protocol has no such number
        deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
        return cls(float(numbers.mean()) if len(numbers) else math.nan, deviation, len(numbers))


@dataclass(frozen=True)
class Result:
    """One method on one pair.

    Args:
        pair: source and target.
        seeds: whose runs have finished.
        values: metric -> one number in percent for every seed.
        level: mAP, a fraction, and how sure it is; None where queries have no AP or no names.
        gain: of the same seed's source-only model, query by query; None for source-only itself.
        gains: mAP beyond source-only in points, for every seed; empty for source-only.
        shares: share of the gap closed for every seed, None where the rule gives none; empty where there is no bound.
        share: interval of the share, drawn by person and seed like the gain; None where a seed has no share, or where
            more than one draw of forty has a gap of under 2 points.
        forgotten: mAP on the source's own test images, after - before, in points, for every seed; empty if not scored.
    """

    pair: Pair
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    level: Estimate | None
    gain: Estimate | None = None
    gains: tuple[float, ...] = ()
    shares: tuple[float | None, ...] = ()
    share: Interval | None = None
    forgotten: tuple[float, ...] = ()

    def spread(self, metric: str) -> Spread:
        """Return mean and deviation of a metric."""
        return Spread.of(self.values[metric])

    @property
    def negative(self) -> bool:
        """Whether all of the interval of the gain is below zero: negative transfer."""
        return self.gain is not None and self.gain.below_zero

    @property
    def unsure(self) -> bool:
        """Whether the interval does not mean what it says: too few people, or one seed."""
        return self.gain is not None and not (self.gain.reliable and self.gain.seeds > 1)


@dataclass(frozen=True)
class Method:
    """One line of the matrix.

    Args:
        name: `source-only`, a recipe, or `supervised`.
        start: number of the source model that it starts from: recipes that were pretrained alike have the same.
        recipes: the recipes that were pretrained so.
        cells: by pair; a pair without any finished run is missing.
        averages: metric -> its mean in percent over the pairs, for every seed that has all of them.
        average_gain: points of mAP beyond source-only over the pairs, for every seed that has all of them.
        interval: of the average gain, a fraction; None where a pair has none.
        rank: mean place among the methods that start alike, 1 for the best, over pairs and seeds; NaN outside.
    """

    name: str
    start: int
    recipes: tuple[str, ...]
    cells: Mapping[Pair, Result]
    averages: Mapping[str, tuple[float, ...]]
    average_gain: tuple[float, ...] = ()
    interval: Interval | None = None
    rank: float = math.nan

    @property
    def average(self) -> tuple[float, ...]:
        """The averages of mAP."""
        return self.averages["mAP"]

    @property
    def adapts(self) -> bool:
        """Whether this is a recipe, and neither of the two rows that frame them."""
        return self.name not in (SOURCE_ONLY, BOUND)


@dataclass(frozen=True)
class Summary:
    """The whole matrix.

    Args:
        pairs: in their order.
        seeds: that were asked for.
        methods: per source model source-only, its recipes, and the bound.
        missing: runs that are not there, one line each.
        any_camera: targets whose images were searched in whatever camera, since cameras are unknown.
        selected: what other rules than the last checkpoint would have chosen, by recipe.
        gaps: how far apart the pairs were, by every source model of which that was measured.
        published: what others have published for these pairs.
    """

    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    missing: tuple[str, ...] = ()
    any_camera: tuple[str, ...] = ()
    selected: tuple[Selected, ...] = ()
    gaps: tuple[Gaps, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def starts(self) -> int:
        """How many different source models the recipes start from."""
        return len({method.start for method in self.methods})
