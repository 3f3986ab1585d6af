"""DBSCAN, and its radius, on a sparse matrix of distances: a graph, in which an absent pair is at distance 1.

The k-reciprocal Jaccard distances of N images are such a graph: rows without a common neighbour are at distance 1, and
nearly all pairs are. Every result equals that of the full N x N matrix, whose diagonal is 0, and is found in passes
over the stored entries, in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering.density import SHARE, check_share, cluster_pairs

ENTRIES = 1 << 22
"""Stored entries that are looked at together: some 100 MB of rows, masks and pairs."""
LIMIT = 0.9999
"""The largest radius that a rule or the ladder chooses; with 1 all pairs would be within, the absent ones too."""

Places = npt.NDArray[np.integer[Any]]
Distances = npt.NDArray[np.float32]
EpsRule = Literal["pairs", "knee"]


def check_graph(graph: csr_array) -> None:
    """Refuse what is no graph of distances.

    That it is symmetric is seen from its margins, without a transposed copy: every row has as many entries as its
    column, and the same sum but for 1e-6. An entry without its counterpart is found so, not every exchange of entries.

    Args:
        graph: what should be an (N, N) float32 CSR array with N >= 1, symmetric, of sorted columns, each once per row,
            and of distances in [0, 1]. An absent pair is at distance 1, a stored 0 is a distance.

    Raises:
        DataError: it is not.
    """
    if not isinstance(graph, csr_array):
        raise DataError(f"a graph must be a scipy.sparse.csr_array, not a {type(graph).__name__}")
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.shape[0] < 1 or graph.dtype != np.float32:
        raise DataError(f"a graph must be a float32 (N, N) matrix with a row, not {graph.shape} {graph.dtype}")
    if not graph.has_canonical_format:
        raise DataError("the graph's columns must be sorted, each once per row; build it from sorted distinct pairs")
    if not (graph.data.min(initial=0) >= 0 and graph.data.max(initial=0) <= 1):
        raise DataError("the graph holds distances that are NaN, below 0 or above 1")
    excess, surplus = np.diff(graph.indptr).astype(np.int64), np.zeros(graph.shape[0])
    for rows, columns, distances in _blocks(graph):
        excess -= np.bincount(columns, minlength=len(excess))
        surplus += np.bincount(rows, distances, len(excess)) - np.bincount(columns, distances, len(excess))
    if excess.any() or not np.abs(surplus).max() < 1e-6:
        raise DataError("the graph is not symmetric; store every pair twice, with the same distance")


def check_eps(eps: float) -> None:
    """Refuse a radius that is none on a graph.

    Args:
        eps: what should be in [0, 1), as float32 too.

    Raises:
        RecipeError: it is not.
    """
    if not 0 <= np.float32(eps) < 1:
        raise RecipeError(f"eps {eps} is out of range on a graph; use from 0 to below 1, where absent pairs are")


def check_min_samples(min_samples: int) -> None:
    """Refuse a number of rows that cannot make a core.

    Args:
        min_samples: what should be at least 1.

    Raises:
        RecipeError: it is not.
    """
    if min_samples < 1:
        raise RecipeError(f"min_samples {min_samples} cannot be; a core needs at least itself, 1")


def dbscan_graph(graph: csr_array, *, eps: float, min_samples: int = 4) -> Tensor:
    """Cluster a graph by density, with the labels of scikit-learn's DBSCAN on the full matrix.

    A core has at least `min_samples` rows within `eps`, itself always among them. A row that is no core belongs to the
    first cluster that has a core within `eps` of it. Clusters are numbered by their first core.

    Args:
        graph: (N, N) float32 as for `check_graph`; what it says of a row and itself does not matter.
        eps: the radius, in [0, 1). It is rounded to float32, as NumPy does and so scikit-learn, and a distance equal
            to that is within: 0.6 is within 0.6, although as float32 it is a little more.
        min_samples: at least 1.

    Returns:
        (N,) int64 on the CPU: clusters 0..C-1, -1 for noise.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: an option is out of range.

    Source:
        Ester, Kriegel, Sander and Xu 1996; scikit-learn's DBSCAN with metric="precomputed".

    >>> chain = csr_array(np.array([[0, 0.6, 0], [0.6, 0, 0.9], [0, 0.9, 0]], dtype=np.float32))
    >>> dbscan_graph(chain, eps=0.6, min_samples=2).tolist()
    [0, 0, -1]
    """
    check_graph(graph)
    check_eps(eps)
    check_min_samples(min_samples)
    return cluster_pairs(
        graph.shape[0],
        lambda: ((one, other) for one, other, _ in close_pairs(graph, eps)),
        min_samples=min_samples,
    )


def graph_eps(graph: csr_array, *, rule: EpsRule = "pairs", min_samples: int = 4) -> float:
    """Return a radius for DBSCAN on a graph, by a rule of that name.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        rule: `pairs`: `nearest_pairs_eps`; `knee`: `knee_eps`.
        min_samples: of DBSCAN, at least 1; for `knee`.

    Returns:
        The radius, from 0 to `LIMIT`.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: an option is unknown or out of range.
    """
    check_graph(graph)
    return strips_eps([graph], rule=rule, min_samples=min_samples)


def strips_eps(strips: Iterable[csr_array], *, rule: EpsRule = "pairs", min_samples: int = 4) -> float:
    """Return the radius of `graph_eps` for a graph that comes in strips of rows and need never be there as a whole.

    Args:
        strips: of (B, N) float32, the rows of a graph as for `check_graph` in their order.
        rule: as for `graph_eps`.
        min_samples: as for `graph_eps`.

    Returns:
        The radius, from 0 to `LIMIT`.

    Raises:
        RecipeError: an option is unknown or out of range.
    """
    if rule not in ("pairs", "knee"):
        raise RecipeError(f"the rule {rule!r} for eps is unknown; use pairs or knee")
    check_min_samples(min_samples)
    return _nearest_pairs(strips, SHARE) if rule == "pairs" else _knee_of(strips, min_samples)


def nearest_pairs_eps(graph: csr_array, *, share: float = SHARE) -> float:
    """Return the mean distance of the nearest pairs, as `automatic_eps` does for features.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        share: of the N (N - 1) / 2 pairs, absent ones among them, how many are averaged over, in (0, 1]; at least one
            is. Pairs at distance 0 do not count.

    Returns:
        The mean, at most `LIMIT`; 0 where all pairs are at distance 0.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: `share` is out of range.

    Source:
        selftraining.py of Song et al. 2020, "Unsupervised domain adaptive re-identification: theory and practice".

    >>> near = np.array([[0, 0.25, 0.5], [0.25, 0, 0], [0.5, 0, 0]], dtype=np.float32)
    >>> nearest_pairs_eps(csr_array(near), share=0.7)  # 0.25 and 0.5 of 0.25, 0.5, 1
    0.375
    """
    check_graph(graph)
    check_share(share)
    return _nearest_pairs([graph], share)


def _nearest_pairs(strips: Iterable[csr_array], share: float) -> float:
    pool, kept, apart, number, first = [np.zeros(0, dtype=np.float32)], 0, 0, 0, 0
    for strip in strips:
        number = strip.shape[1]
        most = max(1, round(share * (number * (number - 1) // 2)))
        for rows, columns, distances in _blocks(strip, first):
            near = distances[rows < columns]
            apart -= int((near == 0).sum())
            pool.append(near[near > 0])
            kept += len(pool[-1])
            if kept > most + ENTRIES:
                pool = [np.partition(np.concatenate(pool), most - 1)[:most]]
                kept = most
        first += strip.shape[0]
    apart += number * (number - 1) // 2
    if apart == 0:
        return 0.0
    wanted = max(1, round(share * apart))
    nearest = np.sort(np.concatenate(pool))[:wanted]
    return min(float(nearest.sum(dtype=np.float64) + wanted - len(nearest)) / wanted, LIMIT)


def knee_eps(graph: csr_array, *, min_samples: int = 4) -> float:
    """Return the radius at the knee of the k-distance curve, where the rows within clusters end and outliers begin.

    The curve are the distances of all rows to the row that makes each of them a core, in ascending order. Left out are
    rows that none within `LIMIT` does, however many they are, and those that a copy does, at 0.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        min_samples: of DBSCAN, at least 1; as a row itself counts, the curve is that of the (min_samples - 1)th other
            row, at least of the first.

    Returns:
        A value of the curve by `knee`; 0 where no row is left.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: `min_samples` is out of range.

    Source:
        Ester, Kriegel, Sander and Xu 1996, section 4.2, for the curve.
    """
    check_graph(graph)
    check_min_samples(min_samples)
    return _knee_of([graph], min_samples)


def _knee_of(strips: Iterable[csr_array], min_samples: int) -> float:
    k = max(1, min_samples - 1)
    first, parts = 0, [np.zeros(0, dtype=np.float32)]
    for strip in strips:
        parts.append(neighbour_distances(strip, k, first=first))
        first += strip.shape[0]
    curve = np.sort(np.concatenate(parts))
    curve = curve[(curve > 0) & (curve <= LIMIT)]
    return knee(curve) if len(curve) else 0.0


def knee(curve: Distances) -> float:
    """Return the value of a rising curve at its knee: where it is farthest below the chord from its first to its last.

    Args:
        curve: (M,) float32 in ascending order, at equal steps, M at least 1.

    Returns:
        The value, the first of several as far below. A flat, straight or arched curve is nowhere below the chord, by
        more than 1e-6; then its middle value.

    Source:
        Satopaa, Albrecht, Irwin and Raghavan 2011, "Finding a 'Kneedle' in a haystack", without its smoothing.

    >>> knee(np.array([0.25, 0.3125, 0.375, 1.0], dtype=np.float32)), knee(np.array([0.5, 0.75], dtype=np.float32))
    (0.375, 0.5)
    """
    values = curve.astype(np.float64)
    below = np.linspace(values[0], values[-1], len(values)) - values
    lowest = int(below.argmax())
    return float(values[lowest if below[lowest] > 1e-6 else (len(values) - 1) // 2])


def distance_curve(graph: csr_array, k: int) -> Distances:
    """Return the distances of all rows to their k-th nearest other row, in ascending order.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        k: at least 1.

    Returns:
        (N,) float32; 1 for rows that have fewer others.

    Raises:
        RecipeError: `k` is out of range.
    """
    return np.sort(neighbour_distances(graph, k))


def neighbour_distances(graph: csr_array, k: int, *, first: int = 0) -> Distances:
    """Return the distance of every row to its k-th nearest other row.

    Args:
        graph: (N, N) float32 as for `check_graph`, or a strip of its rows.
        k: at least 1.
        first: the strip's first row.

    Returns:
        (N,) float32; 1 for rows that have fewer others.

    Raises:
        RecipeError: `k` is out of range.

    >>> chain = csr_array(np.array([[0, 0.5, 0], [0.5, 0, 0.25], [0, 0.25, 0]], dtype=np.float32))
    >>> neighbour_distances(chain, 1).tolist(), neighbour_distances(chain, 2).tolist()
    ([0.5, 0.25, 0.25], [1.0, 0.5, 1.0])
    """
    if k < 1:
        raise RecipeError(f"a row has no neighbour of rank {k}; count from 1")
    found = np.ones(graph.shape[0], dtype=np.float32)
    for rows, columns, distances in _blocks(graph, first):
        others = rows != columns
        rows = rows[others]
        # Row in the upper half, distance in the lower: the bits of numbers from 0 on ascend as the numbers do.
        keys = np.sort(rows.astype(np.uint64) << np.uint64(32) | np.abs(distances[others]).view(np.uint32))
        several, starts, counts = np.unique(rows, return_index=True, return_counts=True)
        enough = counts >= k
        found[several[enough] - first] = keys[starts[enough] + k - 1].astype(np.uint32).view(np.float32)
    return found


def close_pairs(graph: csr_array, eps: float) -> Iterator[tuple[Places, Places, Distances]]:
    """Yield the pairs of different rows within `eps`, each pair once, the lower row first, with their distances."""
    for rows, columns, distances in _blocks(graph):
        near = (distances <= np.float32(eps)) & (rows < columns)
        yield rows[near], columns[near], distances[near]


def _blocks(graph: csr_array, first: int = 0) -> Iterator[tuple[Places, Places, Distances]]:
    """Yield all entries in blocks of whole rows: their rows, counted from `first`, columns and distances."""
    starts = np.searchsorted(graph.indptr, np.arange(0, graph.nnz, ENTRIES))
    for start, stop in pairwise(np.unique([*starts, graph.shape[0]])):
        entries = slice(graph.indptr[start], graph.indptr[stop])
        lengths = np.diff(graph.indptr[start : stop + 1])
        rows = np.repeat(np.arange(first + start, first + stop, dtype=graph.indices.dtype), lengths)
        yield rows, graph.indices[entries], graph.data[entries]


def number_by_first_row(labels: npt.NDArray[np.integer[Any]]) -> Tensor:
    """Number clusters by their lowest row.

    Args:
        labels: (N,) of integers; negative for noise.

    Returns:
        (N,) int64: clusters 0..C-1, -1 for noise.

    >>> number_by_first_row(np.array([7, -1, 3, 7])).tolist()
    [0, -1, 1, 0]
    """
    numbered = np.full(len(labels), -1, dtype=np.int64)
    found = labels >= 0
    _, first, members = np.unique(labels[found], return_index=True, return_inverse=True)
    numbered[found] = first.argsort().argsort()[members]
    return torch.from_numpy(numbered)
