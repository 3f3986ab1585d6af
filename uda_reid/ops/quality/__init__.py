"""How good pseudo-labels and features are: with identities, for audits of a finished run only, and without any."""

from __future__ import annotations

from uda_reid.ops.quality.alarms import alarms
from uda_reid.ops.quality.change import churn, neighbour_overlap, stability
from uda_reid.ops.quality.labels import (
    PairScores,
    adjusted_rand_index,
    audit,
    normalised_mutual_information,
    pair_scores,
    purity,
)
from uda_reid.ops.quality.unlabelled import Estimate, camera_purity, silhouette, soft_neighbourhood_density

__all__ = [
    "Estimate",
    "PairScores",
    "adjusted_rand_index",
    "alarms",
    "audit",
    "camera_purity",
    "churn",
    "neighbour_overlap",
    "normalised_mutual_information",
    "pair_scores",
    "purity",
    "silhouette",
    "soft_neighbourhood_density",
    "stability",
]
