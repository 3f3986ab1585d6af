"""Dense references in vectorised NumPy: what ranking, re-ranking and clustering cost when the N x N matrix is there.

Written as fast as whole matrices allow, for `benchmarks/core.py --reference` to compare with; nothing here is used by
the package or its tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import DBSCAN

Array = npt.NDArray[Any]


def unit(features: Array) -> Array:
    """Return rows of length 1."""
    normalised: Array = features / np.linalg.norm(features, axis=1, keepdims=True)
    return normalised


def rank(query: Array, gallery: Array, labels: tuple[Array, Array, Array, Array]) -> tuple[float, float]:
    """Return trapezoid mAP and rank-1 by Market-1501's protocol: distances and orders as whole matrices."""
    return measure(1 - unit(query) @ unit(gallery).T, labels)


def measure(distances: Array, labels: tuple[Array, Array, Array, Array]) -> tuple[float, float]:
    """Return trapezoid mAP and rank-1 by Market-1501's protocol from the (Q, G) distances."""
    query_pids, gallery_pids, query_cams, gallery_cams = labels
    orders = np.argsort(distances, axis=1, kind="stable")
    precisions, firsts = [], []
    for order, pid, cam in zip(orders, query_pids, query_cams, strict=True):
        pids, cams = gallery_pids[order], gallery_cams[order]
        kept = (pids != -1) & ~((pids == pid) & (cams == cam))
        places = np.flatnonzero(pids[kept] == pid) + 1
        if not len(places):
            continue
        hits = np.arange(1, len(places) + 1)
        before = np.where(places > 1, (hits - 1) / np.maximum(places - 1, 1), 1.0)
        precisions.append(((hits / places + before) / 2).mean())
        firsts.append(places[0] == 1)
    return float(np.mean(precisions)), float(np.mean(firsts))


def rerank(query: Array, gallery: Array, *, k1: int = 20, k2: int = 6, share: float = 0.3) -> Array:
    """Return (Q, G) re-ranked distances of Zhong et al. 2017 from N x N matrices, N = Q + G."""
    features = unit(np.concatenate([query, gallery]))
    distances = np.maximum(2 - 2 * (features @ features.T), 0)
    distances /= distances.max(axis=1, keepdims=True)
    rows = nearest(distances, max(k1 + 1, k2))
    weights = encode(distances, rows, k1 + 1, int(np.around(k1 / 2)) + 1)
    averaged = np.stack([weights[some].mean(axis=0) for some in rows[:, :k2]])
    del weights
    queries = len(query)
    mixed = share * distances[:queries, queries:] + (1 - share) * jaccard(averaged, queries)[:, queries:]
    result: Array = mixed
    return result


def cluster(features: Array, *, k1: int = 30, k2: int = 6, eps: float = 0.6, min_samples: int = 4) -> Array:
    """Return the labels of scikit-learn's DBSCAN on the N x N Jaccard distances, as SpCL computes them."""
    features = unit(features)
    distances = np.maximum(2 - 2 * (features @ features.T), 0)
    rows = nearest(distances, k1)
    weights = encode(distances, rows, k1, int(np.around(k1 / 2)) + 1)
    del distances
    averaged = np.stack([weights[some].mean(axis=0) for some in rows[:, :k2]])
    del weights
    matrix = np.maximum(jaccard(averaged, len(features)), 0)
    labels: Array = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(matrix)
    return labels


def nearest(distances: Array, k: int) -> Array:
    """Return the k nearest columns of every row, nearest first: (N, k)."""
    rows = np.argpartition(distances, k, axis=1)[:, :k]
    order = np.take_along_axis(distances, rows, axis=1).argsort(axis=1, kind="stable")
    found: Array = np.take_along_axis(rows, order, axis=1)
    return found


def encode(distances: Array, rows: Array, full: int, half: int) -> Array:
    """Return the (N, N) weights of the expanded k-reciprocal sets."""
    number = len(rows)
    sets = []
    for width in (full, half):
        some = rows[:, :width]
        mutual = (rows[some, :width] == np.arange(number)[:, None, None]).any(axis=2)
        sets.append([row[keep] for row, keep in zip(some, mutual, strict=True)])
    weights = np.zeros((number, number), dtype=np.float32)
    for image, own in enumerate(sets[0]):
        others = [half for half in (sets[1][c] for c in own) if np.isin(half, own).sum() > 2 / 3 * len(half)]
        members = np.unique(np.concatenate([own, *others]))
        weight = np.exp(-distances[image, members])
        weights[image, members] = weight / weight.sum()
    return weights


def jaccard(weights: Array, rows: int) -> Array:
    """Return the (rows, N) Jaccard distances of the first rows to all, through inverted lists."""
    holders = [np.flatnonzero(column) for column in weights.T]
    distances = np.zeros((rows, len(weights)), dtype=np.float32)
    for image in range(rows):
        shared = np.zeros(len(weights), dtype=np.float32)
        for entry in np.flatnonzero(weights[image]):
            shared[holders[entry]] += np.minimum(weights[image, entry], weights[holders[entry], entry])
        distances[image] = 1 - shared / (2 - shared)
    return distances
