"""How sure a mean over queries and seeds is: the bootstrap over identities and seeds."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uda_reid.errors import DataError, RecipeError

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
FEW = 30
"""Below so many identities the interval is unreliable: a handful of people decides it, and it comes out too narrow."""
ENTRIES = 1 << 20
"""How many drawn numbers are held at a time."""


class Interval(NamedTuple):
    """From where to where; NaN where nothing can be said."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean over seeds and queries, and how sure it is.

    Args:
        mean: over the seeds, of each seed's mean over its counted queries.
        spread: standard deviation of these means (divisor S - 1); NaN with one seed.
        by_identity: interval where identities and seeds are drawn: the one to believe, since the queries of one person
            succeed and fail together.
        by_query: interval where queries and seeds are drawn, as if every query were an independent trial.
        identities: people with a counted query.
        seeds: number of seeds; with one, no interval knows of the spread of training.
    """

    mean: float
    spread: float
    by_identity: Interval
    by_query: Interval
    identities: int
    seeds: int

    @property
    def reliable(self) -> bool:
        """Whether there are people enough for the interval to mean what it says."""
        return self.identities >= FEW

    @property
    def below_zero(self) -> bool:
        """Whether all of the interval is below 0: of a gain, negative transfer."""
        return self.by_identity.high < 0


def estimate(
    values: Floats,
    identities: npt.NDArray[Any],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    name: str = "",
) -> Estimate:
    """Return the mean of a value of every query, over queries and seeds, with its intervals.

    For a gain the values are differences, after - before, query by query and seed by seed: the comparison is paired.

    Args:
        values: (S, Q) of S seeds and Q queries, NaN where a query is not counted.
        identities: (Q,) whom each query shows.
        resamples: how many means are drawn.
        level: share of the drawn means that an interval holds, in (0, 1).
        seed: root of the random numbers.
        name: whose people are drawn: the same ones under one name, for the same queries. Seeds are drawn alike under
            every name, as if all that was made with one seed rose and fell together: true of what shares a source
            model, and wider than need be elsewhere.

    Raises:
        DataError: shapes do not match, or a seed has no counted query.
        RecipeError: `resamples` or `level` is out of range.

    Source: percentile bootstrap, Efron and Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13; whole
    clusters are drawn as by Field and Welsh: Bootstrapping clustered data, J. R. Statist. Soc. B 69, 2007.

    >>> found = estimate(np.array([[0.1, 0.3, 0.5, 0.7], [0.3, 0.5, 0.7, 0.9]]), np.array([1, 1, 2, 2]))
    >>> round(found.mean, 3), round(found.spread, 3), found.reliable
    (0.5, 0.141, False)
    """
    drawn = resampled_means(values, identities, resamples=resamples, seed=seed, name=name)
    one_by_one = resampled_means(values, np.arange(values.shape[1]), resamples=resamples, seed=seed, name=name)
    means = np.nanmean(values, axis=1)
    return Estimate(
        mean=float(means.mean()),
        spread=float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
        by_identity=interval(drawn, level),
        by_query=interval(one_by_one, level),
        identities=len(np.unique(identities[~np.isnan(values).all(0)])),
        seeds=len(means),
    )


def interval(drawn: Floats, level: float = LEVEL) -> Interval:
    """Return between which two numbers the middle share `level` of drawn means (R,) lies; NaN among them are left out.

    >>> interval(np.arange(101.0), 0.5)
    Interval(low=25.0, high=75.0)
    """
    if not 0 < level < 1:
        raise RecipeError(f"level {level} is not between 0 and 1; 0.95 is usual")
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def resampled_means(
    values: Floats, clusters: npt.NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 0, name: str = ""
) -> Floats:
    """Return means of `values` as other draws of people and seeds would have given them; arguments as of `resampled`.

    Returns:
        (R,) float64; NaN where a seed that was drawn has no counted query in the clusters that were drawn.
    """
    weights, means = resampled(values, clusters, resamples=resamples, seed=seed, name=name)
    return over_seeds(weights, means)


def over_seeds(weights: Floats, values: Floats) -> Floats:
    """Return the mean of a value of every seed over the seeds that were drawn, how often each was: (R, S) to (R,)."""
    found: Floats = np.where(weights > 0, weights * values, 0.0).sum(1) / weights.sum(1)
    return found


def resampled(
    values: Floats, clusters: npt.NDArray[Any], *, resamples: int = RESAMPLES, seed: int = 0, name: str = ""
) -> tuple[Floats, Floats]:
    """Return what other draws of people and seeds would have given, seed by seed.

    For each, as many clusters as there are are drawn with replacement, each with all of its queries, and as many seeds.

    Args:
        values: (S, Q), NaN where a query is not counted.
        clusters: (Q,) what is drawn together.
        resamples: how many means, R.
        seed: as of `estimate`.
        name: as of `estimate`.

    Returns:
        (R, S) float64, how often each seed was drawn; and (R, S) float64, its mean over the queries of the clusters
        that were drawn, NaN where none of them is counted.

    Raises:
        DataError: shapes do not match, or a seed has no counted query.
        RecipeError: `resamples` is not positive.
    """
    if values.ndim != 2 or clusters.shape != values.shape[1:]:
        raise DataError(f"values and clusters must be (S, Q) and (Q,), not {values.shape} and {clusters.shape}")
    if resamples < 1:
        raise RecipeError(f"resamples {resamples} is not a positive number of draws; 10,000 is usual")
    known = ~np.isnan(values)
    if not len(values) or not known.any(1).all():
        raise DataError("a seed has no counted query; there is nothing to draw from")
    used = known.any(0)  # people without a counted query are not in the study
    number = np.unique(clusters[used], return_inverse=True)[1]
    count = int(number.max()) + 1

    def per_cluster(each: npt.NDArray[Any]) -> Floats:
        return np.stack([np.bincount(number, row[used], count) for row in each], axis=1)

    sums, sizes = per_cluster(np.where(known, values, 0.0)), per_cluster(known)
    seeds = np.random.default_rng([seed, 0]).multinomial(len(values), [1 / len(values)] * len(values), size=resamples)
    draws = np.random.default_rng([seed, 1, zlib.crc32(name.encode())])
    means = np.empty((resamples, len(values)))
    rows = max(1, ENTRIES // count)
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        chosen = draws.integers(count, size=(size, count))
        chosen += np.arange(size)[:, None] * count
        times = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0: a mean over no query
            means[first : first + size] = (times @ sums) / (times @ sizes)
    return seeds.astype(np.float64), means
