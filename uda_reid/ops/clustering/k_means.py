"""k-means, to convergence and in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering.points import centred, check_points, cluster_means, row_blocks, squared_norms


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

    Distances are float32 products of centred features, in blocks; centroids and inertia are summed in
    float64. A sample as near to two centroids belongs to the one with the lower number. A cluster that
    becomes empty takes over the sample farthest from its centroid. With equal generators and thread counts
    the result is the same to the bit, and scaling all features by a power of two changes no label.

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
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    nearest = _to(points, norms, torch.tensor([first], device=points.device))[0]
    nearest[first] = 0
    for _ in range(1, clusters):
        draws = torch.rand(candidates, generator=generator, dtype=torch.float64)
        mass = nearest.cpu().cumsum(0, dtype=torch.float64)  # on a GPU, running sums differ from run to run
        if float(mass[-1]) == 0:  # only copies of chosen samples are left
            free = torch.ones(len(points), dtype=torch.bool)
            free[chosen] = False
            chosen += torch.nonzero(free).flatten().tolist()[: clusters - len(chosen)]
            break
        drawn = torch.searchsorted(mass, draws * mass[-1], right=True).clamp_(max=len(points) - 1)
        drawn = drawn.to(points.device)
        left = torch.minimum(_to(points, norms, drawn), nearest)
        best = int(left.sum(1, dtype=torch.float64).argmin())
        chosen.append(int(drawn[best]))
        nearest = left[best]
        nearest[chosen[-1]] = 0
    return torch.tensor(chosen, device=points.device)


def _to(points: Tensor, norms: Tensor, rows: Tensor) -> Tensor:
    """Return the squared distances (len(rows), N) of some points to all."""
    products = (points @ points[rows].T).T
    return (norms[rows, None] + norms - 2 * products).clamp_(min=0)


def _lloyd(points: Tensor, norms: Tensor, centroids: Tensor, iterations: int, allowed: float) -> KMeans:
    labels = _assign(points, norms, centroids)
    converged, done = False, 0
    while not converged and done < iterations:
        moved = cluster_means(points, labels, len(centroids))
        shift = float((moved - centroids).double().square().sum())
        centroids = moved
        previous, labels = labels, _assign(points, norms, centroids)
        converged = torch.equal(previous, labels) or shift <= allowed
        done += 1
    return KMeans(centroids, labels, _inertia(points, centroids, labels), done, converged)


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


def _assign(points: Tensor, norms: Tensor, centroids: Tensor) -> Tensor:
    """Return (N,) int64: each point's nearest centroid, no centroid without a point."""
    lengths = centroids.square().sum(1)
    parts = [
        torch.addmm(lengths, block, centroids.T, alpha=-2).min(1) for _, block in row_blocks(points, len(centroids))
    ]
    labels = torch.cat([part.indices for part in parts])
    counts = labels.bincount(minlength=len(centroids))
    empty = torch.nonzero(counts == 0).flatten().tolist()
    distances = torch.cat([part.values for part in parts]) + norms
    for cluster in empty:
        # The sample that fits worst gives its old cluster least; the last sample of a cluster stays.
        row = distances.masked_fill(counts[labels] < 2, -torch.inf).argmax()
        counts[labels[row]] -= 1
        counts[cluster] = 1
        labels[row] = cluster
    return labels


def _inertia(points: Tensor, centroids: Tensor, labels: Tensor) -> float:
    offsets = (
        block.double() - centroids[labels[start : start + len(block)]]
        for start, block in row_blocks(points, points.shape[1])
    )
    return sum(float(offset.square().sum()) for offset in offsets)
