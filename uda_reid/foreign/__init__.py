"""Features that other tools have made: scored and clustered without a model, from files."""

from __future__ import annotations

from uda_reid.foreign.clustering import (
    Audited,
    Clustered,
    Grouping,
    audit_clusters,
    cluster_features,
    write_labels,
)
from uda_reid.foreign.files import read_features
from uda_reid.foreign.ids import IdTable, read_ids
from uda_reid.foreign.jobs import cluster_file, score_files
from uda_reid.foreign.scoring import Reranking, Scored, score_features, write_per_query
from uda_reid.foreign.search import Search, read_rows, read_search
from uda_reid.foreign.tables import clustered_json, scored_json, show_clustered, show_scored

__all__ = [
    "Audited",
    "Clustered",
    "Grouping",
    "IdTable",
    "Reranking",
    "Scored",
    "Search",
    "audit_clusters",
    "cluster_features",
    "cluster_file",
    "clustered_json",
    "read_features",
    "read_ids",
    "read_rows",
    "read_search",
    "score_features",
    "score_files",
    "scored_json",
    "show_clustered",
    "show_scored",
    "write_labels",
    "write_per_query",
]
