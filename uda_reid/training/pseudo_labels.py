"""From target features to pseudo-labels: the step that clustering strategies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uda_reid.ops.clustering import automatic_eps, climb, cluster_means, kmeans
from uda_reid.ops.distance import normalise

Method = Literal["kmeans", "dbscan"]


@dataclass(frozen=True)
class PseudoLabels:
    """Which rows are taken for the same person.

    Args:
        labels: (N,) int64: clusters 0..C-1, -1 for rows that belong to none and are not trained on.
        centroids: (C, D) float32: of every cluster, the mean of its normalised features, normalised again.
        eps: the radius of DBSCAN; 0 with k-means.
        steps: why that radius was changed, one line each.
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
        eps: radius of DBSCAN between normalised features, in [0, 2]; 0 for `ops.clustering.automatic_eps`.
        min_samples: of DBSCAN.

    Returns:
        The pseudo-labels; no cluster at all where DBSCAN finds less than two with any radius.

    Raises:
        DataError: the features are no finite matrix, or there are fewer rows than clusters.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.1], [0.1, 3.0]])
    >>> found = assign(features, method="kmeans", clusters=2, generator=torch.Generator().manual_seed(0))
    >>> found.labels.tolist() in ([0, 1, 0, 1], [1, 0, 1, 0]), dict(found.counts)
    (True, {'clusters': 2.0, 'images': 4.0, 'outliers': 0.0})
    """
    features = normalise(features)
    if method == "kmeans":
        found = kmeans(features, clusters, generator=generator, starts=starts)
        return PseudoLabels(found.labels, normalise(found.centroids))
    dense = climb(features, eps=eps or automatic_eps(features), min_samples=min_samples)
    centroids = cluster_means(features, dense.labels, int(dense.labels.max()) + 1)
    return PseudoLabels(dense.labels, normalise(centroids), dense.eps, dense.steps)
