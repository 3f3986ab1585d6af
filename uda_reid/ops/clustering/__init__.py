"""Groups of rows: of features by k-means and DBSCAN, of sparse distances by DBSCAN, HDBSCAN and Infomap.

Nothing here holds an N x N matrix, and `climb` knows what to do when DBSCAN finds nothing.
"""

from __future__ import annotations

from uda_reid.ops.clustering.communities import infomap_graph
from uda_reid.ops.clustering.density import automatic_eps, dbscan
from uda_reid.ops.clustering.graph import (
    EpsRule,
    check_graph,
    dbscan_graph,
    distance_curve,
    graph_eps,
    knee_eps,
    nearest_pairs_eps,
    strips_eps,
)
from uda_reid.ops.clustering.hierarchy import hdbscan_graph
from uda_reid.ops.clustering.k_means import KMeans, kmeans, kmeans_plusplus, nearest_samples
from uda_reid.ops.clustering.ladder import Climb, climb, climb_by, climb_graph
from uda_reid.ops.clustering.points import cluster_means

__all__ = [
    "Climb",
    "EpsRule",
    "KMeans",
    "automatic_eps",
    "check_graph",
    "climb",
    "climb_by",
    "climb_graph",
    "cluster_means",
    "dbscan",
    "dbscan_graph",
    "distance_curve",
    "graph_eps",
    "hdbscan_graph",
    "infomap_graph",
    "kmeans",
    "kmeans_plusplus",
    "knee_eps",
    "nearest_pairs_eps",
    "nearest_samples",
    "strips_eps",
]
