"""What to do when DBSCAN finds nothing, or everything in one cluster: another radius, by a fixed rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uda_reid.ops.clustering.density import dbscan

RUNGS = 12
"""How often the radius is changed at most."""
FACTOR = 1.5
"""What the radius is multiplied or divided by at first: twelve times make 130."""
GIANT = 0.5
"""A cluster with more than this share of all rows is too large."""


@dataclass(frozen=True)
class Climb:
    """What DBSCAN found in the end.

    Args:
        labels: (N,) int64, clusters 0..C-1, -1 for noise.
        eps: the radius that they were found with.
        steps: why the radius was changed, one line each; none where the first one would do.
    """

    labels: Tensor
    eps: float
    steps: tuple[str, ...]


def climb(features: Tensor, *, eps: float, min_samples: int = 4) -> Climb:
    """Cluster by DBSCAN, and change the radius while fewer than two clusters or a giant one come out.

    A radius is too large where a cluster has more than half of all rows, and too small where there are otherwise fewer
    than two. Then it is divided by 1.5, or multiplied by it; once one of either kind is known, the geometric mean of
    the last two is tried. If 12 changes do not help, the most clusters that were met are taken, at least two of them
    and giant or not; where there were none, all labels are -1.

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
    steps: list[str] = []
    most, best, best_eps = 1, torch.full((len(features),), -1), eps
    small, large = 0.0, math.inf
    for rung in range(RUNGS + 1):
        labels = dbscan(features, eps=eps, min_samples=min_samples)
        sizes = labels[labels >= 0].bincount()
        if len(sizes) > most:
            most, best, best_eps = len(sizes), labels, eps
        giant = len(sizes) > 0 and int(sizes.max()) > GIANT * len(features)
        if len(sizes) > 1 and not giant:
            return Climb(labels, eps, tuple(steps))
        small, large = (small, eps) if giant else (eps, large)
        if small > 0 and large < math.inf:
            following = math.sqrt(small * large)
        else:
            following = eps / FACTOR if giant else eps * FACTOR
        if rung == RUNGS or following == eps:
            break
        share = f", one with {int(sizes.max()) / len(features):.0%} of all" if giant else ""
        steps.append(f"eps {eps:.4g} finds {len(sizes)} clusters{share}, try {following:.4g}")
        eps = following
    steps.append(f"the best was eps {best_eps:.4g} with {most} clusters" if most > 1 else "no eps finds two clusters")
    return Climb(best, best_eps, tuple(steps))
