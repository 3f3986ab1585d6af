"""How well pseudo labels agree with identities: for audits of a finished run, never for training."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from uda_reid.ops.quality.contingency import LabelsLike, check_pseudo_labels, contingency, two_columns
from uda_reid.ops.quality.unlabelled import camera_purity
from uda_reid.types import Ids

NAMES = ("clusters", "pids")


class PairScores(NamedTuple):
    """Agreement over all pairs of rows, each a fraction in [0, 1]."""

    precision: float
    """Share of the pairs in one cluster that are of one identity."""
    recall: float
    """Share of the pairs of one identity that are in one cluster."""
    f1: float
    """The harmonic mean of the two."""


def pair_scores(clusters: LabelsLike, pids: LabelsLike) -> PairScores:
    """Score clusters by the pairs of rows they put together.

    Counted in a sparse contingency table of at most N cells, never over N x N pairs. A share of no pairs is
    0; but where neither clusters nor identities put any two rows together they agree, and all three are 1.
    Without rows all three are 0.

    Args:
        clusters: (N,) integers, the cluster of each row; every value is a cluster, -1 too.
        pids: (N,) integers, the identity of each row.

    Returns:
        Precision, recall and F1 over unordered pairs of different rows.

    Raises:
        DataError: the two are not integer arrays of one length.

    >>> pair_scores([0, 0, 0, 1], [5, 5, 6, 6])
    PairScores(precision=0.3333333333333333, recall=0.5, f1=0.4)
    """
    clusters, pids = two_columns(clusters, pids, names=NAMES)
    if len(clusters) == 0:
        return PairScores(0.0, 0.0, 0.0)
    table = contingency(clusters, pids)
    together, clustered, same = map(_pairs, (table.both, table.first_total, table.second_total))
    if clustered == same == 0:
        return PairScores(1.0, 1.0, 1.0)
    return PairScores(together / max(clustered, 1), together / max(same, 1), 2 * together / (clustered + same))


def _pairs(counts: Ids) -> int:
    return int((counts * (counts - 1)).sum()) // 2


def purity(clusters: LabelsLike, pids: LabelsLike) -> float:
    """Return the share of rows that are of the commonest identity of their cluster.

    Small clusters are pure by themselves, and clusters of one row wholly so: read it beside their number.

    Args:
        clusters: (N,) integers, the cluster of each row; every value is a cluster, -1 too.
        pids: (N,) integers, the identity of each row.

    Returns:
        A fraction in (0, 1]; 0 without rows.

    Raises:
        DataError: the two are not integer arrays of one length.

    Source:
        Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", section 16.3.

    >>> purity([0, 0, 0, 1], [5, 5, 6, 6])
    0.75
    """
    return contingency(*two_columns(clusters, pids, names=NAMES)).commonest


def normalised_mutual_information(clusters: LabelsLike, pids: LabelsLike) -> float:
    """Return the mutual information of clusters and identities over the mean of their entropies.

    0 where one side has a single value and the other has not, 1 where both have; 0 without rows.

    Args:
        clusters: (N,) integers, the cluster of each row.
        pids: (N,) integers, the identity of each row.

    Returns:
        A fraction in [0, 1]; high for many small clusters even when they are random.

    Raises:
        DataError: the two are not integer arrays of one length.

    >>> normalised_mutual_information([0, 0, 1, 1], [7, 7, 9, 9])
    1.0
    """
    clusters, pids = two_columns(clusters, pids, names=NAMES)
    if len(clusters) == 0:
        return 0.0
    with warnings.catch_warnings():  # some versions of scikit-learn take many small clusters for a regression
        warnings.simplefilter("ignore", UserWarning)
        return float(np.clip(normalized_mutual_info_score(pids, clusters), 0, 1))


def adjusted_rand_index(clusters: LabelsLike, pids: LabelsLike) -> float:
    """Return the share of pairs on which clusters and identities agree, corrected for chance.

    Args:
        clusters: (N,) integers, the cluster of each row.
        pids: (N,) integers, the identity of each row.

    Returns:
        1 for equal partitions, about 0 for random ones, at least -0.5; 0 without rows.

    Raises:
        DataError: the two are not integer arrays of one length.

    >>> adjusted_rand_index([0, 0, 0, 0], [7, 7, 9, 9])
    0.0
    """
    clusters, pids = two_columns(clusters, pids, names=NAMES)
    if len(clusters) == 0:
        return 0.0
    with warnings.catch_warnings():  # as above
        warnings.simplefilter("ignore", UserWarning)
        return float(adjusted_rand_score(pids, clusters))


def audit(pseudo_labels: LabelsLike, pids: LabelsLike, *, cams: LabelsLike | None = None) -> dict[str, float]:
    """Compare pseudo labels with the identities they were to find, over the rows that were used.

    Args:
        pseudo_labels: (N,) integers >= -1; -1 marks a row that was not used.
        pids: (N,) integers, the identity of each row.
        cams: (N,) integers, the camera of each row; None where no camera is known.

    Returns:
        `nmi`, `ari`, `purity`, `pair_precision`, `pair_recall`, `pair_f1` over the used rows (all 0 where none
        is), `used`, the share of rows used, and `clusters`, how many distinct pseudo labels were used; with
        cameras also `camera_purity`, NaN where no two rows share a cluster.

    Raises:
        DataError: the columns are not integer arrays of one length, or a pseudo label is below -1.

    >>> audit([0, 0, 1, -1], [3, 3, 4, 4])["used"]
    0.75
    """
    labels, pids = two_columns(pseudo_labels, pids, names=("pseudo labels", "pids"))
    check_pseudo_labels(labels, "pseudo labels")
    used = labels >= 0
    clusters, identities = labels[used], pids[used]
    precision, recall, f1 = pair_scores(clusters, identities)
    found = {
        "nmi": normalised_mutual_information(clusters, identities),
        "ari": adjusted_rand_index(clusters, identities),
        "purity": purity(clusters, identities),
        "pair_precision": precision,
        "pair_recall": recall,
        "pair_f1": f1,
        "used": float(used.sum() / max(len(used), 1)),
        "clusters": float(len(np.unique(clusters))),
    }
    return found if cams is None else found | {"camera_purity": camera_purity(labels, cams)}
