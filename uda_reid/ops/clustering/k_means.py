"""k-means, to convergence and in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering.points import centred, check_points, cluster_sums, row_blocks, squared_norms

PROPOSALS = 256
"""Candidates for seeds that are drawn at a time: their distances to all points are one matrix product."""


@dataclass(frozen=True)
class KMeans:
    """A clustering by k-means.

    Args:
        centroids: (K, D) float32, the mean of each cluster.
        labels: (N,) int64 in [0, K), the nearest centroid of each sample, except for samples that were moved
            to fill an empty cluster.
        inertia: sum of squared Euclidean distances of the samples to their centroids.
        iterations: how often the centroids were moved.
        converged: whether moving them once more would change nothing (or less than the tolerance).
    """

    centroids: Tensor
    labels: Tensor
    inertia: float
    iterations: int
    converged: bool

    @property
    def alike(self) -> tuple[str, ...]:
        """A line where some centroids are equal, as there are less than K different samples; none where all differ."""
        count, distinct = len(self.centroids), len(torch.unique(self.centroids, dim=0))
        told = f"only {distinct} of the {count} clusters differ: the others are parts of equal rows"
        return (told,) if distinct < count else ()


def kmeans(
    features: Tensor,
    clusters: int,
    *,
    generator: torch.Generator,
    starts: int = 1,
    iterations: int = 300,
    tolerance: float = 0.0,
    backend: Literal["torch", "faiss"] = "torch",
) -> KMeans:
    """Cluster features by Lloyd's algorithm from greedy k-means++ seeds.

    Distances are float32 products of centred features, in blocks; those between a sample and a centroid that
    stayed are not measured again. Centroids and inertia are summed in float64. A sample as near to two centroids
    belongs to the one with the lower number. A cluster that becomes empty takes over the sample farthest from its
    centroid. With equal generators and thread counts the result is the same to the bit, and scaling all features
    by a power of two changes no label.

    Args:
        features: (N, D) floating, finite; clustered as they are, so normalise them before if that is wanted.
        clusters: K, from 1 to N.
        generator: a CPU generator; every start seeds itself from it in turn.
        starts: how many times to start anew; the lowest inertia is kept.
        iterations: the most times that the centroids are moved in one start.
        tolerance: stop when the centroids' squared movement is at most this share of the features' mean
            variance; 0 goes on until no label changes.
        backend: `torch`, or `faiss`: up to 20 iterations by faiss from the same seeds, the rest by torch.

    Returns:
        The clustering, on the device of `features`.

    Raises:
        DataError: the features are no finite matrix, or there are fewer samples than clusters.
        RecipeError: an option is out of range, or faiss is asked for and not installed.

    Source:
        Lloyd 1982; Arthur and Vassilvitskii 2007 for the seeds.

    >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> found = kmeans(points, 2, generator=torch.Generator().manual_seed(0))
    >>> sorted(found.centroids.flatten().tolist()), found.inertia, found.converged
    ([0.5, 10.5], 1.0, True)
    """
    check_points(features, clusters)
    if starts < 1 or iterations < 1 or not tolerance >= 0:
        raise RecipeError("k-means needs at least 1 start, 1 iteration and a tolerance that is not negative")
    if backend not in ("torch", "faiss"):
        raise RecipeError(f"k-means backend {backend!r} is unknown; use torch or faiss")
    points, centre, scale = centred(features)
    norms = squared_norms(points)
    lloyd = _lloyd if backend == "torch" else _lloyd_faiss
    allowed = tolerance * float(norms.double().mean()) / points.shape[1]
    seeds = (points[_seeds(points, norms, clusters, generator)] for _ in range(starts))
    found = (lloyd(points, norms, start, iterations, allowed) for start in seeds)
    best = min(found, key=lambda result: result.inertia)
    centroids = (best.centroids.double() * scale + centre).float()
    return KMeans(centroids, best.labels, best.inertia * scale**2, best.iterations, best.converged)


def kmeans_plusplus(features: Tensor, clusters: int, *, generator: torch.Generator) -> Tensor:
    """Choose samples as the first centroids of k-means: far apart, but likelier where there are many.

    Each next sample is the best of 2 + ln K candidates that are drawn in proportion to their squared distance
    to the samples chosen so far: the one that leaves the lowest sum of squared distances.

    Args:
        features: (N, D) floating, finite.
        clusters: K, from 1 to N.
        generator: a CPU generator.

    Returns:
        (K,) int64 distinct rows in the order in which they were chosen; `kmeans` starts from them.

    Raises:
        DataError: the features are no finite matrix, or there are fewer samples than clusters.

    Source:
        Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", sections 2.2 and 5.
    """
    check_points(features, clusters)
    points, _, _ = centred(features)
    return _seeds(points, squared_norms(points), clusters, generator)


def nearest_samples(features: Tensor, centroids: Tensor) -> Tensor:
    """Return, for each centroid, which of all samples is nearest to it; it need not belong to that cluster.

    Args:
        features: (N, D) floating.
        centroids: (K, D) floating.

    Returns:
        (K,) int64 rows of `features`; of equally near samples the lowest row.

    Raises:
        DataError: the features are no finite matrix, or the centroids have another dimension.

    Source:
        PUL/unsupervised.py of Fan et al. 2018 (the column-wise argmin of scikit-learn's `KMeans.transform`).

    >>> nearest_samples(torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[8.0], [1.0]]))
    tensor([2, 0])
    """
    check_points(features)
    if centroids.dim() != 2 or centroids.shape[1] != features.shape[1]:
        raise DataError(f"centroids {tuple(centroids.shape)} do not fit features {tuple(features.shape)}")
    points, centre, scale = centred(features)
    centres = ((centroids.double() - centre) / scale).float()
    lowest = torch.full((len(centres),), math.inf, device=features.device)
    rows = torch.zeros(len(centres), dtype=torch.int64, device=features.device)
    for start, block in row_blocks(points, max(centres.shape)):
        distances, places = torch.addmm(block.square().sum(1)[:, None], block, centres.T, alpha=-2).min(0)
        nearer = distances < lowest
        lowest = torch.where(nearer, distances, lowest)
        rows = torch.where(nearer, places + start, rows)
    return rows


def _seeds(points: Tensor, norms: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    candidates = 2 + int(math.log(clusters))
    chosen = torch.randint(len(points), (1,), generator=generator).repeat(clusters).to(points.device)
    fitting = max(candidates, (1 << 26) // len(points))  # 256 MB of distances
    space = points.new_empty(min(PROPOSALS, fitting, candidates * clusters), len(points))
    nearest = _to(points, norms, chosen[:1], space[:1])[0].clone()
    nearest[chosen[:1]] = 0
    done = 1
    while done < clusters:
        rows, bars = _proposals(nearest, min(len(space), candidates * (clusters - done)), generator)
        if not len(rows):  # only copies of chosen samples are left
            free = torch.ones_like(nearest, dtype=torch.bool)
            free[chosen[:done]] = False
            chosen[done:] = torch.nonzero(free).flatten()[: clusters - done]
            break
        distances = _to(points, norms, rows, space[: len(rows)])
        valid = torch.nonzero(nearest[rows] > bars).flatten()
        while len(valid) >= candidates and done < clusters:
            drawn, valid = valid[:candidates], valid[candidates:]
            left = torch.minimum(distances[drawn], nearest)
            best = left.sum(1, dtype=torch.float64).argmin(0, keepdim=True)
            chosen[done : done + 1] = rows[drawn[best]]
            nearest.copy_(left[best][0])
            nearest[chosen[done : done + 1]] = 0
            valid = valid[nearest[rows[valid]] > bars[valid]]
            done += 1
    return chosen


def _proposals(nearest: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows in proportion to their squared distance to the chosen samples, for choices still to come.

    With every row comes a bar, a uniform share of its distance. While its distance is above the bar, it is a valid
    draw from the distances as they have become: it stays valid with probability new / old. This is rejection
    sampling, and exact, for distances only fall.

    Returns:
        (count,) int64 rows and (count,) float64 bars; none where every distance is 0.
    """
    mass = nearest.cpu().cumsum(0, dtype=torch.float64)  # on a GPU, running sums differ from run to run
    if float(mass[-1]) == 0:
        count = 0
    places, shares = torch.rand(2, count, generator=generator, dtype=torch.float64)
    rows = torch.searchsorted(mass, places * mass[-1], right=True).clamp_(max=len(mass) - 1).to(nearest.device)
    return rows, shares.to(nearest.device) * nearest[rows]


def _to(points: Tensor, norms: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with the squared distances (len(rows), N) of some points to all, and return it."""
    return torch.addmm(norms, points[rows], points.T, alpha=-2, out=out).add_(norms[rows, None]).clamp_(min=0)


def _lloyd(points: Tensor, norms: Tensor, centroids: Tensor, iterations: int, allowed: float) -> KMeans:
    clusters = len(centroids)
    centroids = centroids.clone()
    found = _nearest(points, centroids)
    labels = _none_empty(found.labels, found.reach + norms, clusters)
    sums = cluster_sums(points, labels, clusters)
    changed = torch.ones(clusters, dtype=torch.bool, device=points.device)
    converged, done = False, 0
    while not converged and done < iterations:
        means = sums[changed].div_(labels.bincount(minlength=clusters)[changed, None]).float()
        offsets = means - centroids[changed]
        shift = float(torch.linalg.vector_norm(offsets, dim=1).double().square().sum())
        centroids[changed] = means
        moved = changed.masked_scatter(changed, offsets.any(1))
        found = _nearest_again(points, centroids, moved, found)
        previous, labels = labels, _none_empty(found.labels, found.reach + norms, clusters)
        changed = _pass_on(sums, points, previous, labels)
        converged = not bool(changed.any()) or shift <= allowed
        done += 1
    return KMeans(centroids, labels, _inertia(points, centroids, labels), done, converged)


def _pass_on(sums: Tensor, points: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Take the points whose label is another now from one cluster's sum to the other's, in place.

    Returns:
        Which clusters have other members now, (K,) bool.
    """
    differs = before != after
    changed = torch.zeros(len(sums), dtype=torch.bool, device=sums.device)
    changed[before[differs]] = changed[after[differs]] = True
    rows = torch.nonzero(changed).flatten()
    places = torch.where(changed, changed.cumsum(0) - 1, -1)
    for sign, labels in ((1, after), (-1, before)):
        part = cluster_sums(points, places[labels].masked_fill(~differs, -1), len(rows))
        sums.index_add_(0, rows, part, alpha=sign)
    return changed


def _lloyd_faiss(points: Tensor, norms: Tensor, centroids: Tensor, iterations: int, allowed: float) -> KMeans:
    """Iterate with faiss, then go on with `_lloyd`: faiss neither stops early nor keeps to the means."""
    steps = min(20, iterations - 1)
    machine = _faiss().Kmeans(
        points.shape[1],
        len(centroids),
        niter=steps,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # every sample counts; the default would draw 256 per cluster
    )
    if steps:
        machine.train(points.cpu().numpy(), init_centroids=centroids.cpu().numpy())
        centroids = torch.from_numpy(machine.centroids).to(points.device)
    found = _lloyd(points, norms, centroids, iterations - steps, allowed)
    return replace(found, iterations=found.iterations + steps)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RecipeError(
            "k-means backend 'faiss' is not installed; pip install faiss-cpu, or use backend torch"
        ) from error
    return faiss


class _Nearest(NamedTuple):
    """Of each point, (N,): the nearest centroid, of equally near ones the lowest, and how near it and the others are.

    A reach is a squared distance less the squared length of the point, which orders centroids alike.
    """

    labels: Tensor
    reach: Tensor
    others: Tensor  # no other centroid's reach is lower; right after `_nearest`, one is as low


def _nearest(points: Tensor, centroids: Tensor) -> _Nearest:
    lengths = centroids.square().sum(1)
    # Not joined from parts: these would lie between blocks that are freed, and keep them from being used again.
    found = _Nearest(points.new_empty(len(points), dtype=torch.int64), *points.new_empty(2, len(points)))
    for start, block in row_blocks(points, len(centroids)):
        reaches = torch.addmm(lengths, block, centroids.T, alpha=-2)
        reach, labels = reaches.min(1)
        others = reaches.scatter_(1, labels[:, None], torch.inf).amin(1)
        for part, values in zip(found, (labels, reach, others), strict=True):
            part[start : start + len(block)] = values
    return found


def _nearest_again(points: Tensor, centroids: Tensor, moved: Tensor, before: _Nearest) -> _Nearest:
    """Return what `_nearest` would, from what it returned before some of the centroids, (K,) bool, moved.

    Centroids that stayed are as far as they were, so every point is measured to those that moved. One that stayed
    can be its nearest now only if it was before, or if its nearest moved and none that moved is nearer than the
    others were; the latter points, few, are measured to all.
    """
    movers = torch.nonzero(moved).flatten()
    if not len(movers):
        return before
    if len(movers) > 0.9 * len(centroids):
        return _nearest(points, centroids)
    labels, reach, others = before
    follows = moved[labels]
    reach = reach.masked_fill(follows, torch.inf)
    first = _nearest(points, centroids[movers])
    rivals = movers[first.labels]
    wins = (first.reach < reach) | ((first.reach == reach) & (rivals < labels))
    found = _Nearest(
        torch.where(wins, rivals, labels),
        torch.where(wins, first.reach, reach),
        torch.minimum(others, torch.where(wins, torch.minimum(first.others, reach), first.reach)),
    )
    unsure = torch.nonzero(follows & (first.reach >= others)).flatten()
    for _, rows in row_blocks(unsure, len(centroids)):
        for part, exact in zip(found, _nearest(points[rows], centroids), strict=True):
            part[rows] = exact
    return found


def _none_empty(nearest: Tensor, distances: Tensor, clusters: int) -> Tensor:
    """Return (N,) int64 labels: each point's nearest centroid, but no centroid without a point."""
    labels = nearest.clone()
    counts = labels.bincount(minlength=clusters)
    for cluster in torch.nonzero(counts == 0).flatten().tolist():
        # The sample that fits worst gives its old cluster least; the last sample of a cluster stays.
        row = distances.masked_fill(counts[labels] < 2, -torch.inf).argmax()
        counts[labels[row]] -= 1
        counts[cluster] = 1
        labels[row] = cluster
    return labels


def _inertia(points: Tensor, centroids: Tensor, labels: Tensor) -> float:
    offsets = (
        block - centroids[labels[start : start + len(block)]] for start, block in row_blocks(points, points.shape[1])
    )
    return sum(float(offset.square_().sum(dtype=torch.float64)) for offset in offsets)
