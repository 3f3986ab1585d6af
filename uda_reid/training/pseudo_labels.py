"""From target features to pseudo-labels: the step that clustering strategies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uda_reid.ops.clustering import (
    Climb,
    automatic_eps,
    climb,
    climb_graph,
    cluster_means,
    kmeans,
    strips_eps,
)
from uda_reid.ops.clustering.graph import check_eps
from uda_reid.ops.distance import normalise
from uda_reid.ops.jaccard import encode_features, jaccard, jaccard_strips

Method = Literal["kmeans", "dbscan"]
Distance = Literal["jaccard", "euclidean"]

REACH = 0.8
"""Jaccard distances above this are not kept, unless the radius is larger: there are many, and no use for them."""


@dataclass(frozen=True)
class PseudoLabels:
    """Which rows are taken for the same person.

    Args:
        labels: (N,) int64: clusters 0..C-1, -1 for rows that belong to none and are not trained on.
        centroids: (C, D) float32: of every cluster, the mean of its normalised features, normalised again.
        eps: the radius of DBSCAN; 0 with k-means.
        steps: why that radius was changed, or what is odd about the clusters, one line each.
    """

    labels: Tensor
    centroids: Tensor
    eps: float = 0.0
    steps: tuple[str, ...] = ()

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return len(self.centroids)

    @property
    def counts(self) -> Mapping[str, float]:
        """What a history says of them: clusters, images in one, images in none."""
        used = float((self.labels >= 0).sum())
        return {"clusters": float(self.clusters), "images": used, "outliers": len(self.labels) - used}


def assign(
    features: Tensor,
    *,
    method: Method,
    generator: torch.Generator,
    clusters: int = 500,
    starts: int = 1,
    distance: Distance = "jaccard",
    k1: int = 20,
    k2: int = 6,
    eps: float = 0.0,
    min_samples: int = 4,
) -> PseudoLabels:
    """Cluster features by their directions.

    All features are normalised first, so that Euclidean distances order pairs as cosines do.

    Args:
        features: (N, D) float32, of any length.
        method: `kmeans`: every row belongs to one of `clusters`; `dbscan`: as many clusters as are dense, and
            outliers; where none or one giant one is found, the radius is changed (`ops.clustering.climb`).
        generator: for the seeds of k-means; DBSCAN draws nothing.
        clusters: of k-means, from 1 to N.
        starts: of k-means.
        distance: of DBSCAN: `jaccard`, by k-reciprocal neighbours (reading `zhong` of `ops.jaccard`), or `euclidean`.
        k1: of the k-reciprocal sets.
        k2: of the k-reciprocal sets.
        eps: radius of DBSCAN, in [0, 1) by Jaccard and [0, 2] by Euclidean distance; 0 for the mean of the nearest
            0.16 % of pairs.
        min_samples: of DBSCAN.

    Returns:
        The pseudo-labels; no cluster at all where DBSCAN finds less than two with any radius.

    Raises:
        DataError: the features are no finite matrix, or there are fewer rows than clusters.
        RecipeError: the radius is out of range.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.1], [0.1, 3.0]])
    >>> found = assign(features, method="kmeans", clusters=2, generator=torch.Generator().manual_seed(0))
    >>> found.labels.tolist() in ([0, 1, 0, 1], [1, 0, 1, 0]), dict(found.counts)
    (True, {'clusters': 2.0, 'images': 4.0, 'outliers': 0.0})
    """
    features = normalise(features)
    if method == "kmeans":
        found = kmeans(features, clusters, generator=generator, starts=starts)
        return PseudoLabels(found.labels, normalise(found.centroids), steps=found.alike)
    if distance == "jaccard":
        dense = _by_neighbours(features, k1, k2, eps, min_samples)
    else:
        dense = climb(features, eps=eps or automatic_eps(features), min_samples=min_samples)
    labels = dense.labels.to(features.device)
    centroids = cluster_means(features, labels, int(labels.max()) + 1)
    return PseudoLabels(labels, normalise(centroids), dense.eps, dense.steps)


def _by_neighbours(features: Tensor, k1: int, k2: int, eps: float, min_samples: int) -> Climb:
    encoding = encode_features(features, k1=k1, k2=k2, reading="zhong")
    check_eps(eps)
    eps = eps or strips_eps(jaccard_strips(encoding))
    reach = max(REACH, eps)
    return climb_graph(jaccard(encoding, most=reach), eps=eps, min_samples=min_samples, limit=reach)
