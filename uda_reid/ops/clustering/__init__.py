"""Groups of features: k-means to convergence, DBSCAN without an N x N matrix, and what to do when it finds none."""

from __future__ import annotations

from uda_reid.ops.clustering.density import automatic_eps, dbscan
from uda_reid.ops.clustering.k_means import KMeans, kmeans, kmeans_plusplus, nearest_samples
from uda_reid.ops.clustering.ladder import Climb, climb
from uda_reid.ops.clustering.points import cluster_means

__all__ = [
    "Climb",
    "KMeans",
    "automatic_eps",
    "climb",
    "cluster_means",
    "dbscan",
    "kmeans",
    "kmeans_plusplus",
    "nearest_samples",
]
