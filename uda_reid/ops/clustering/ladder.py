"""What to do when a radius finds nothing, everything in one cluster or a cluster per row: another, by a fixed rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.sparse import csr_array
from torch import Tensor

from uda_reid.ops.clustering.density import dbscan
from uda_reid.ops.clustering.graph import LIMIT, dbscan_graph

RUNGS = 12
"""How often the radius is changed at most."""
FACTOR = 1.5
"""What the radius is multiplied or divided by at first: twelve times make 130."""
GIANT = 0.5
"""A cluster with more than this share of all rows is too large."""
CROWD = 0.5
"""More clusters than this share of all rows are too many: on average, no row would have a second one beside it."""


@dataclass(frozen=True)
class Climb:
    """What was found in the end.

    Args:
        labels: (N,) int64, clusters 0..C-1, -1 for noise.
        eps: the radius that they were found with.
        steps: why the radius was changed, one line each; none where the first one would do.
    """

    labels: Tensor
    eps: float
    steps: tuple[str, ...]


def climb(features: Tensor, *, eps: float, min_samples: int = 4) -> Climb:
    """Cluster features by DBSCAN, and change the radius by `climb_by` while it will not do.

    Args:
        features: (N, D) floating, finite.
        eps: the radius to begin with, at least 0.
        min_samples: as for `dbscan`.

    Returns:
        Labels, radius and steps.

    Raises:
        DataError: the features are no finite matrix.
        RecipeError: an option is out of range.

    >>> climb(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), eps=0.5, min_samples=2).steps
    ('eps 0.5 finds 0 clusters, try 0.75', 'eps 0.75 finds 0 clusters, try 1.125')
    """
    return climb_by(lambda radius: dbscan(features, eps=radius, min_samples=min_samples), eps=eps)


def climb_graph(graph: csr_array, *, eps: float, min_samples: int = 4, limit: float = LIMIT) -> Climb:
    """Cluster a graph by DBSCAN, and change the radius by `climb_by` while it will not do.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        eps: the radius to begin with, in [0, 1).
        min_samples: as for `dbscan_graph`.
        limit: the largest radius to change to; less than `graph.LIMIT` where the graph does not hold all distances.

    Returns:
        Labels, radius and steps.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: an option is out of range.
    """
    return climb_by(lambda radius: dbscan_graph(graph, eps=radius, min_samples=min_samples), eps=eps, limit=limit)


def climb_by(cluster: Callable[[float], Tensor], *, eps: float, limit: float = math.inf, crowd: float = CROWD) -> Climb:
    """Cluster with a radius, and change it while that finds less than two clusters, a giant one or too many.

    A radius is too large where a cluster has more than half of all rows. Otherwise it is too small where there are
    fewer than two clusters (with none, all rows are outliers) or too many of them, which a larger one joins. Then it
    is divided by 1.5, or multiplied by it up to the limit; once one of either kind is known, the geometric mean of the
    last two is tried. If 12 changes do not help, the most clusters that were met are taken, at least two of them and
    giant or not; too many only where nothing else was met, and then the fewest; where there were none, all labels are
    -1.

    Args:
        cluster: from a radius to labels (N,) int64, clusters 0..C-1, -1 for noise.
        eps: the radius to begin with.
        limit: the largest radius to change to.
        crowd: more clusters than this share of all rows are too many. Half is sure: then most clusters are single
            rows, as DBSCAN makes them with a `min_samples` of 1 alone. Who knows more of the rows can give less.

    Returns:
        Labels, radius and steps.

    >>> climb_by(lambda eps: torch.arange(4) // (1 if eps < 1 else 2), eps=0.9).steps
    ('eps 0.9 finds 4 clusters, more than 50% of all rows, try 1.35',)
    """
    steps: list[str] = []
    best, best_worth, first = None, 0.0, eps
    small, large = 0.0, math.inf
    for rung in range(RUNGS + 1):
        labels = cluster(eps)
        sizes = labels[labels >= 0].bincount()
        found, largest = len(sizes), int(sizes.max()) / len(labels) if len(sizes) else 0.0
        giant, crowded = largest > GIANT, found > crowd * len(labels)
        if found > 1 and not giant and not crowded:
            return Climb(labels, eps, tuple(steps))
        worth = 0 if found < 2 else 1 / found if crowded else found
        if worth > best_worth:
            best, best_worth = Climb(labels, eps, ()), worth
        small, large = (small, eps) if giant else (eps, large)
        following = _following(small, large, limit)
        if rung == RUNGS or following == eps:
            break
        why = f", one with {largest:.0%} of all" if giant else f", more than {crowd:.0%} of all rows" * crowded
        steps.append(f"eps {eps:.4g} finds {found} clusters{why}, try {following:.4g}")
        eps = following
    if best is None:
        return Climb(
            torch.full_like(labels, -1), first, (*steps, "no eps finds two clusters: all rows are left as outliers")
        )
    last = f"the best was eps {best.eps:.4g} with {int(best.labels.max()) + 1} clusters"
    return replace(best, steps=(*steps, last))


def _following(small: float, large: float, limit: float) -> float:
    """Return the radius to try after the largest known to be too small and the smallest known to be too large."""
    if small > 0 and large < math.inf:
        return math.sqrt(small * large)
    return large / FACTOR if large < math.inf else max(small, min(small * FACTOR, limit))
