"""Features as points: checked, centred and taken in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from uda_reid.errors import DataError

BLOCK = 1 << 20
"""Entries of a distance block: 4 MB, small enough to stay in cache until its minima are taken."""


def check_points(features: Tensor, clusters: int = 1) -> None:
    """Refuse features that cannot be clustered.

    Args:
        features: what should be an (N, D) floating tensor with N, D >= 1 and finite values.
        clusters: how many clusters are wanted, from 1 to N.

    Raises:
        DataError: the features are no finite matrix, or there are fewer samples than clusters.
    """
    if features.dim() != 2 or 0 in features.shape or not features.is_floating_point():
        raise DataError(f"features must be a floating (N, D) matrix, not {tuple(features.shape)} {features.dtype}")
    if clusters < 1 or clusters > len(features):
        most = f"{len(features):,}"
        raise DataError(f"cannot make {clusters:,} clusters of {most} samples; choose from 1 to {most} clusters")
    if not bool(torch.isfinite(torch.stack(features.detach().aminmax())).all()):  # an extreme of NaN is NaN
        raise DataError("the features hold NaN or infinite values; the model that made them has diverged")


def centred(features: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return float32 points around 0 of size about 1, and what undoes that: points * scale + centre.

    Centring keeps the float32 products from cancelling, the scale keeps them from overflowing; being a power
    of two, it rounds nothing.

    Raises:
        DataError: the features lie too far apart for float32.
    """
    features = features.detach()
    centre = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for _, block in row_blocks(features, 2 * features.shape[1]):  # at once, it would take a float64 copy
        centre += block.sum(0, dtype=torch.float64)
    centre /= len(features)
    exact = features.dtype == torch.float64  # others are spared the float64 copy
    points = (features - centre).float() if exact else features.float() - centre.float()
    largest = float(torch.stack(points.aminmax()).abs().max())
    if not largest < 2.0**126:
        raise DataError("the features lie too far apart for float32; scale them down")
    scale = 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
    return points.div_(scale), centre, scale


def row_blocks(points: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the points in blocks of rows, each with its first row, so that `columns` per row make `BLOCK` entries."""
    size = max(64, BLOCK // columns)
    for start in range(0, len(points), size):
        yield start, points[start : start + size]


def squared_norms(points: Tensor) -> Tensor:
    """Return the squared length of every row, (N,)."""
    norms = points.new_empty(len(points))  # not joined from parts, which would lie between the freed blocks
    for start, block in row_blocks(points, points.shape[1]):
        norms[start : start + len(block)] = block.square().sum(1)
    return norms


def cluster_means(features: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Return the mean of every cluster, summed in float64 and in row order: alike on every run.

    Args:
        features: (N, D) floating.
        labels: (N,) int64 below `clusters`; rows with a negative label are in no mean.
        clusters: K; every number from 0 to K - 1 occurs.

    Returns:
        (K, D) float32.

    >>> cluster_means(torch.tensor([[1.0], [3.0], [9.0], [5.0]]), torch.tensor([1, 1, -1, 0]), 2).flatten().tolist()
    [5.0, 2.0]
    """
    counts = labels[labels >= 0].bincount(minlength=clusters)
    return (cluster_sums(features, labels, clusters) / counts[:, None]).float()


def cluster_sums(features: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Return the float64 sum (K, D) of every cluster, as `cluster_means`; a number that does not occur sums to 0."""
    order = labels.argsort(stable=True)
    order = order[labels[order] >= 0]
    counts = labels[order].bincount(minlength=clusters)
    sums = torch.empty(clusters, features.shape[1], dtype=torch.float64, device=features.device)
    columns = max(64, BLOCK // (4 * max(1, len(order))))  # few at a time: they are copied, in float64
    for part, into in zip(torch.split(features, columns, dim=1), torch.split(sums, columns, dim=1), strict=True):
        into.copy_(torch.segment_reduce(part[order].double(), "sum", lengths=counts, unsafe=True))
    return sums
