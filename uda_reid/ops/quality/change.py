"""How far two answers about the same rows differ: from round to round, or from one augmented view to another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.ops.quality.contingency import (
    LabelsLike,
    check_pseudo_labels,
    contingency,
    noise_apart,
    two_columns,
)
from uda_reid.ops.quality.labels import adjusted_rand_index
from uda_reid.types import Ids

BLOCK = 1 << 20
"""Entries of a block of neighbours: 8 MB."""


def churn(before: LabelsLike, after: LabelsLike) -> float:
    """Return how much of the company of a row changed between two rounds of pseudo-labels, on average.

    For every row: 1 - |old cluster and new cluster| / |old cluster or new cluster|. No cluster is matched to
    another, so their names do not count. An unused row is a cluster of its own. Counted in a sparse
    contingency table.

    Args:
        before: (N,) integers >= -1, the earlier pseudo-labels; -1 marks an unused row.
        after: (N,) integers >= -1, the later ones of the same rows in the same order.

    Returns:
        A fraction in [0, 1): 0 where the partition is the same; the same in both directions.

    Raises:
        DataError: the two are not integer arrays of one length, there are no rows, or a label is below -1.

    Source:
        The Jaccard distance of two clusters, as in Hennig 2007, "Cluster-wise assessment of cluster stability",
        between the two clusters of each row instead of the best match of each cluster.

    >>> churn([0, 0, 1, 1], [5, 5, 3, -1])  # one cluster stayed, one of two rows lost half
    0.25
    """
    table = contingency(*_partitions(before, after, ("labels before", "labels after")))
    union = table.first_total[table.first] + table.second_total[table.second] - table.both
    return float((table.both * (union - table.both) / union).sum() / table.both.sum())


def stability(one: LabelsLike, other: LabelsLike) -> float:
    """Return the adjusted Rand index of two clusterings of the same rows, made from two augmented views.

    An unused row is a cluster of its own. This is agreement and not quality: two views in which everything is
    one cluster, or nothing is clustered, agree perfectly.

    Args:
        one: (N,) integers >= -1, the clusters in one view; -1 marks an unused row.
        other: (N,) integers >= -1, the clusters of the same rows in the other view.

    Returns:
        1 for equal partitions, about 0 for unrelated ones, at least -0.5.

    Raises:
        DataError: the two are not integer arrays of one length, there are no rows, or a label is below -1.

    Source:
        Hubert and Arabie 1985, "Comparing partitions".

    >>> stability([0, 0, 1, 1, -1], [4, 4, 2, 2, -1])
    1.0
    """
    return adjusted_rand_index(*_partitions(one, other, ("labels of one view", "labels of the other")))


def neighbour_overlap(one: npt.ArrayLike | Tensor, other: npt.ArrayLike | Tensor) -> float:
    """Return how far the k nearest neighbours of a row agree between two views, on average over rows.

    For every row: |in both lists| / |in either list|. The order within a list does not count. A list should
    not hold its own row, which would always agree.

    Args:
        one: (N, k) integers >= 0, the neighbours of each row in one view, each once.
        other: (N, k) integers >= 0, the neighbours of the same rows in the other view.

    Returns:
        A fraction in [0, 1]; near k / (2M - k) for lists drawn at random from M rows.

    Raises:
        DataError: the two are not integer matrices of one shape, are empty, or a list is not of different rows.

    >>> neighbour_overlap([[1, 2], [0, 2]], [[2, 1], [0, 3]])  # 1 and 1/3
    0.6666666666666666
    """
    first, second = _neighbours(one, "neighbours in one view"), _neighbours(other, "neighbours in the other")
    if first.shape != second.shape:
        raise DataError(f"neighbours of shapes {first.shape} and {second.shape}; as many of the same rows are needed")
    listed, total = first.shape[1], 0.0
    size = max(1, BLOCK // listed)
    for start in range(0, len(first), size):
        both = np.concatenate([first[start : start + size], second[start : start + size]], axis=1)
        shared = _repeats(both)
        total += float((shared / (2 * listed - shared)).sum())
    return total / len(first)


def _partitions(one: LabelsLike, other: LabelsLike, names: tuple[str, str]) -> tuple[Ids, Ids]:
    columns = two_columns(one, other, names=names)
    if len(columns[0]) == 0:
        raise DataError(f"{names[0]} and {names[1]}: no rows given; at least one is needed")
    for labels, name in zip(columns, names, strict=True):
        check_pseudo_labels(labels, name)
    return noise_apart(columns[0]), noise_apart(columns[1])


def _neighbours(lists: npt.ArrayLike | Tensor, name: str) -> Ids:
    found = np.asarray(lists.detach().cpu() if isinstance(lists, Tensor) else lists)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "iu":
        raise DataError(f"{name}: {found.dtype} of shape {found.shape} given, integers (N, k) with N, k >= 1 expected")
    found = found.astype(np.int64)
    if found.min() < 0:
        raise DataError(f"{name}: row {found.min()} given; rows count from 0, and every list needs all k of them")
    size = max(1, BLOCK // found.shape[1])
    for start in range(0, len(found), size):
        repeated = np.flatnonzero(_repeats(found[start : start + size]))
        if len(repeated):
            raise DataError(f"{name}: list {start + repeated[0]} holds a row twice; list every neighbour once")
    return found


def _repeats(lists: Ids) -> Ids:
    """Return how many entries of each list equal another before them, (rows,)."""
    ordered = np.sort(lists, axis=1)
    repeats: Ids = (ordered[:, 1:] == ordered[:, :-1]).sum(axis=1)
    return repeats
