"""DBSCAN on features, in blocks: memory grows with N and not with N x N."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from uda_reid.errors import RecipeError
from uda_reid.ops.clustering.points import BLOCK, centred, check_points, row_blocks, squared_norms

Rows = npt.NDArray[np.int64]
Pairs = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]
"""The first and the second row of every pair."""
SHARE = 1.6e-3
"""The share of the nearest pairs whose mean distance is a radius; Song et al. and MMT."""


def dbscan(features: Tensor, *, eps: float, min_samples: int = 4) -> Tensor:
    """Cluster features by density: cores within `eps` of one another belong together, whatever lies between is noise.

    A core has at least `min_samples` rows within `eps`, itself among them. A row that is no core belongs to the first
    cluster that has a core within `eps` of it. Clusters are numbered by their first core. All of this as in
    scikit-learn's DBSCAN, whose labels these are. A pair whose float32 distance lies too near to `eps` to be sure of
    is measured again in float64, so the labels depend on no block size and no summation order. Every pair is measured
    twice instead of remembered, so that a radius that reaches all pairs takes no more memory than a small one.

    Args:
        features: (N, D) floating, finite; compared by Euclidean distance as they are.
        eps: the radius, at least 0; a distance equal to it is within.
        min_samples: at least 1.

    Returns:
        (N,) int64 on the CPU: clusters 0..C-1, -1 for noise.

    Raises:
        DataError: the features are no finite matrix.
        RecipeError: an option is out of range.

    Source:
        Ester, Kriegel, Sander and Xu 1996; scikit-learn's DBSCAN for the order of clusters and rows between two.

    >>> dbscan(torch.tensor([[9.0], [0.0], [1.0], [2.0], [40.0], [8.0]]), eps=1.0, min_samples=2).tolist()
    [0, 1, 1, 1, -1, 0]
    """
    check_points(features)
    if not 0 <= eps < math.inf or min_samples < 1:
        raise RecipeError(f"DBSCAN with eps {eps} and min_samples {min_samples} cannot be; use at least 0 and 1")
    return cluster_pairs(len(features), lambda: _close_pairs(features, eps), min_samples=min_samples)


def cluster_pairs(rows: int, close: Callable[[], Iterable[Pairs]], *, min_samples: int) -> Tensor:
    """Cluster rows by density, given which pairs are close, in two passes over the pairs and O(rows) memory.

    Args:
        rows: N.
        close: returns the pairs of different rows within the radius, in blocks, each pair once; called twice.
        min_samples: how many rows within the radius make a core, itself among them.

    Returns:
        (N,) int64 on the CPU: clusters 0..C-1 in the order of their first cores, -1 for noise; a row that is no core
        belongs to the first cluster that has a core close to it.

    >>> cluster_pairs(4, lambda: [(np.array([0, 2]), np.array([3, 3]))], min_samples=2).tolist()
    [0, -1, 0, 0]
    """
    neighbours = np.ones(rows, dtype=np.int64)
    for pairs in close():
        neighbours += sum(np.bincount(side, minlength=rows) for side in pairs)
    core = neighbours >= min_samples
    first = np.arange(rows)  # of each row's cluster, as far as it is known
    edges: list[Pairs] = [(first[:0], first[:0])]
    for one, other in close():
        both = core[one] & core[other]
        first = _join(first, (one[both], other[both]))
        for inner, outer in ((one, other), (other, one)):
            # Few: a row that is no core has less than min_samples neighbours.
            mixed = core[inner] & ~core[outer]
            edges.append((inner[mixed], outer[mixed]))
    first[~core] = rows
    inner, outer = (np.concatenate(side) for side in zip(*edges, strict=True))
    np.minimum.at(first, outer, first[inner])
    labels = np.full(rows, -1, dtype=np.int64)
    found = first < rows
    labels[found] = np.unique(first[found], return_inverse=True)[1]
    return torch.from_numpy(labels)


def automatic_eps(features: Tensor, *, share: float = SHARE) -> float:
    """Return a radius for DBSCAN: the mean distance of the nearest pairs.

    Args:
        features: (N, D) floating, finite.
        share: of all pairs, how many are averaged over, in (0, 1]; at least one is.

    Returns:
        The mean Euclidean distance of the nearest pairs; pairs of equal rows do not count. 0 where there is no other
        pair.

    Raises:
        DataError: the features are no finite matrix.
        RecipeError: `share` is out of range.

    Source:
        selftraining.py of Song et al. 2020, "Unsupervised domain adaptive re-identification: theory and practice",
        with their share; there, and in MMT's baseline, on re-ranked distances.

    >>> automatic_eps(torch.tensor([[0.0], [1.0], [1.0], [3.0]]), share=0.4)  # 1 and 1 of 1, 1, 2, 2, 3
    1.0
    """
    check_points(features)
    check_share(share)
    points, _, scale = centred(features)
    norms = squared_norms(points)
    pairs = len(points) * (len(points) - 1) // 2
    wanted, apart = max(1, round(share * pairs)), 0
    nearest = torch.zeros(0, device=points.device)
    for start, squares, sums in _triangle(points, norms):
        # A pair of equal rows may come out of the products as a little more than 0, and one of near rows as 0.
        unsure = squares <= _rounding(points) * sums
        one, other = torch.nonzero(unsure).T
        close = _exact_squares(points, one + start, other + start).to(squares.dtype)
        values = torch.cat([squares[~unsure & squares.isfinite()], close[close > 0]])
        apart += len(values)
        nearest = torch.cat([nearest, values])
        if len(nearest) > 2 * wanted + BLOCK:
            nearest = nearest.topk(wanted, largest=False, sorted=False).values
    nearest = nearest.sort().values[: max(1, round(share * apart))]
    return float(nearest.double().sqrt().mean()) * scale if len(nearest) else 0.0


def check_share(share: float) -> None:
    """Refuse what is no share of the pairs.

    Args:
        share: what should be in (0, 1].

    Raises:
        RecipeError: it is not.
    """
    if not 0 < share <= 1:
        raise RecipeError(f"a share of {share} of the pairs is out of range; use more than 0 and at most 1")


def _triangle(points: Tensor, norms: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield every pair of different rows once, in blocks: first row; (b, m) squared distances; sums of squared norms.

    Entry (i, j) of a block is about the rows start + i and start + j; where j <= i the squared distance is infinite.
    """
    for start, block in row_blocks(points, len(points)):
        sums = norms[start : start + len(block), None] + norms[None, start:]
        squares = torch.addmm(sums, block, points[start:].T, alpha=-2)
        own = torch.ones(len(block), squares.shape[1], dtype=torch.bool, device=points.device).tril_()
        yield start, squares.masked_fill_(own, torch.inf), sums


def _rounding(points: Tensor) -> float:
    """Return how wrong a squared distance may be, as a share of the two squared norms' sum."""
    return float(1e-6 * points.shape[1] ** 0.5)


def _close_pairs(features: Tensor, eps: float) -> Iterator[Pairs]:
    """Yield the pairs of different rows within `eps`, each pair once, the lower row first."""
    points, _, scale = centred(features)
    limit = (eps / scale) ** 2
    for start, squares, sums in _triangle(points, squared_norms(points)):
        doubt = sums.mul_(_rounding(points))
        one, other = torch.nonzero(squares - doubt <= limit).T
        unsure = torch.nonzero((squares + doubt)[one, other] > limit).flatten()
        one, other = one + start, other + start
        near = torch.ones(len(one), dtype=torch.bool, device=one.device)
        near[unsure] = _exact_squares(features, one[unsure], other[unsure]).sqrt() <= eps
        yield one[near].cpu().numpy(), other[near].cpu().numpy()


def _exact_squares(features: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the squared distances of pairs of rows, from their differences: (P,) float64."""
    size = max(1, BLOCK // max(features.shape[1], 1))
    pairs = zip(torch.split(one, size), torch.split(other, size), strict=True)
    parts = [(features[mine].double() - features[theirs].double()).square().sum(1) for mine, theirs in pairs]
    return torch.cat(parts)


def _join(first: Rows, pairs: Pairs) -> Rows:
    """Return `first`, the lowest row of each row's cluster, after the clusters of the paired rows have been joined."""
    one, other = first[pairs[0]], first[pairs[1]]
    apart = one != other
    if not apart.any():
        return first
    edges = coo_array((np.ones(apart.sum(), dtype=bool), (one[apart], other[apart])), shape=(len(first),) * 2)
    number = connected_components(edges, directed=False)[1]
    lowest = np.full(number.max() + 1, len(first), dtype=np.int64)
    np.minimum.at(lowest, number, np.arange(len(first)))
    joined: Rows = lowest[number[first]]
    return joined
