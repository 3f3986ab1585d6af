"""Signs of good features and clusters that need no identity, so that they may choose a model or warn of a collapse.

None of them is proof: each can be high for a model that tells nobody apart, as its docstring says.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import check_features, normalise
from uda_reid.ops.quality.contingency import LabelsLike, check_pseudo_labels, column, contingency, two_columns

BLOCK = 1 << 22
"""Entries of a block of rows against clusters: 32 MB."""
ROUNDING = 1e-12
"""A mean cosine distance up to here is taken as 0: rows that point the same way come to about 1e-15 by rounding."""


class Estimate(NamedTuple):
    """A mean over all rows, estimated from some of them."""

    value: float
    """The mean over the rows that were drawn."""
    error: float
    """Its standard error as a mean over all rows; 0 where all rows were drawn."""
    rows: int
    """How many rows were drawn."""


def camera_purity(clusters: LabelsLike, cams: LabelsLike) -> float:
    """Return the share of rows that come from the commonest camera of their cluster.

    Near 1, clusters are cameras and not people. Unused rows and clusters of one row, which are of one camera
    whatever the model does, do not count. By chance, large clusters come to the share of the commonest camera
    overall, and small ones to more: pairs out of C equally common cameras to (1 + 1 / C) / 2. The chance level
    of given clusters is what they get with the cameras shuffled.

    Args:
        clusters: (N,) integers >= -1, the cluster of each row; -1 marks an unused row.
        cams: (N,) integers, the camera of each row.

    Returns:
        A fraction in (0, 1]; NaN where no two rows share a cluster.

    Raises:
        DataError: the two are not integer arrays of one length, or a cluster is below -1.

    >>> camera_purity([0, 0, 1, 1, 2, -1], [3, 3, 3, 4, 4, 4])
    0.75
    """
    labels, cameras = two_columns(clusters, cams, names=("clusters", "cams"))
    check_pseudo_labels(labels, "clusters")
    _, number, size = np.unique(labels, return_inverse=True, return_counts=True)
    counted = (labels >= 0) & (size[number] > 1)
    return contingency(labels[counted], cameras[counted]).commonest if counted.any() else math.nan


def silhouette(features: Tensor, labels: LabelsLike, *, sample: int = 4096, generator: torch.Generator) -> Estimate:
    """Estimate the mean silhouette of the clustered rows by cosine distance.

    The silhouette of a row is (b - a) / max(a, b), where a is its mean distance to the other rows of its
    cluster and b the least mean distance to the rows of another; 0 for a row alone in its cluster. The mean
    distance of a unit row x to n unit rows is 1 - x . (their sum) / n, so that of each row that is drawn is
    exact, in O(K D) and without pairs of rows; only drawing rows makes an error, and it is known.

    High for well separated clusters, whoever is in them: clusters that are cameras have it too.

    Args:
        features: (N, D) float32, finite, of any length.
        labels: (N,) integers >= -1, the cluster of each row; -1 marks a row that does not count at all.
        sample: how many clustered rows to draw, without replacement, at least 2; all where there are no more.
        generator: a CPU generator; left alone where all rows are taken.

    Returns:
        The mean in [-1, 1], its standard error with the correction for a finite population, and the number of
        rows it is over. With fewer than two clusters there is no silhouette: NaN, NaN and 0, for a model that
        has collapsed must not end a run that only watches it.

    Raises:
        DataError: the features are no finite float32 matrix, the labels no integers >= -1, one per row.
        RecipeError: `sample` is below 2.

    Source:
        Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis".

    >>> rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> silhouette(rows, [0, 0, 1, 1], generator=torch.Generator())
    Estimate(value=1.0, error=0.0, rows=4)
    """
    if sample < 2:
        raise RecipeError(f"a silhouette from a sample of {sample} has no known error; draw at least 2 rows")
    check_features(features, "features")
    clusters = _clusters(features, labels)
    if clusters is None:
        return Estimate(math.nan, math.nan, 0)
    total = len(clusters.rows)
    everything = sample >= total
    drawn = torch.arange(total) if everything else torch.randperm(total, generator=generator)[:sample]
    size = max(1, BLOCK // max(clusters.sums.shape))
    parts = [_silhouettes(features, clusters, part.to(features.device)) for part in torch.split(drawn, size)]
    values = torch.cat(parts).cpu()
    spread = 0.0 if everything else float(values.std()) * math.sqrt(1 - sample / total)
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)), len(values))


class _Clusters(NamedTuple):
    """R clustered rows, and the sums of the K clusters' unit rows."""

    rows: Tensor
    """(R,) int64, where the clustered rows are among the features."""
    own: Tensor
    """(R,) int64, the number of each one's cluster."""
    sums: Tensor
    """(K, D) float64."""
    counts: Tensor
    """(K,) float64."""


def _clusters(features: Tensor, labels: LabelsLike) -> _Clusters | None:
    """Return the clusters, or None where there are fewer than two."""
    given = column(labels, "labels")
    check_pseudo_labels(given, "labels")
    if len(given) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(given)} of labels; one of each per row is needed")
    clustered = np.flatnonzero(given >= 0)
    names, numbers = np.unique(given[clustered], return_inverse=True)
    if len(names) < 2:
        return None
    rows, own = (torch.from_numpy(part).to(features.device) for part in (clustered, numbers))
    order = own.argsort(stable=True)
    members, counts = rows[order], own.bincount(minlength=len(names))
    lengths = torch.cat([_lengths(features[part]) for part in torch.split(members, 4096)])
    sums = [  # segment by segment, so alike on every run; a part of the columns at a time bounds the float64 copy
        torch.segment_reduce(part[members].double().div_(lengths), "sum", lengths=counts, unsafe=True)
        for part in torch.split(features.detach(), max(1, (1 << 24) // len(features)), dim=1)
    ]
    return _Clusters(rows, own, torch.cat(sums, dim=1), counts.double())


def _lengths(rows: Tensor) -> Tensor:
    """Return the Euclidean lengths (B, 1) in float64, which holds the square of any float32; 1 for a row of zeros."""
    lengths = torch.linalg.vector_norm(rows.detach().double(), dim=1, keepdim=True)
    return torch.where(lengths > 0, lengths, 1)


def _silhouettes(features: Tensor, clusters: _Clusters, drawn: Tensor) -> Tensor:
    """Return the silhouettes (B,) float64 of some of the clustered rows."""
    block, own = features.detach()[clusters.rows[drawn]], clusters.own[drawn]
    units = block.double() / _lengths(block)
    products = units @ clusters.sums.T
    others = clusters.counts[own] - 1
    inside = products.gather(1, own[:, None])[:, 0] - units.square().sum(1)
    within = 1 - inside / others.clamp_min(1)
    apart = 1 - products.div_(clusters.counts)
    between = apart.scatter_(1, own[:, None], torch.inf).amin(1)
    within, between = (torch.where(mean > ROUNDING, mean, 0) for mean in (within, between))
    larger = torch.maximum(within, between)
    values = (between - within) / torch.where(larger > 0, larger, 1)
    return torch.where(others > 0, values, 0)


def soft_neighbourhood_density(features: Tensor, *, temperature: float = 0.05, block: int = 256) -> float:
    """Return the mean entropy of where each row finds its neighbours, softly: in how dense a crowd rows live.

    For every row, the softmax over all other rows of their cosine similarity / temperature; then its entropy.
    A row with m equally near neighbours and nothing else near has about ln m. Higher is better between models
    on the same rows, up to a point: features that are all alike reach the highest value, ln(N - 1), so read it
    beside a sign of collapse. It depends on N: values of different sets of rows do not compare.

    Args:
        features: (N, D) float32, N >= 2, finite, of any length.
        temperature: at least 1e-6, below which the rounding of a similarity decides.
        block: rows at once, at least 1; memory grows with block * N, and the result changes at most by the
            rounding of float32.

    Returns:
        Nats, in [0, ln(N - 1)] up to rounding.

    Raises:
        DataError: the features are no finite float32 matrix of two rows at least.
        RecipeError: `temperature` or `block` is out of range.

    Source:
        Saito et al. 2021, "Tune it the right way: unsupervised validation of domain adaptation via soft
        neighborhood density", with their temperature. They take softmax outputs for features; embeddings stand
        in for them here, as source and target people are not the same classes.

    >>> round(soft_neighbourhood_density(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])), 4)  # ln 2
    0.6931
    """
    if not 1e-6 <= temperature < math.inf or block < 1:
        raise RecipeError(
            f"soft neighbourhood density with temperature {temperature} and block {block} cannot be; "
            "use a finite temperature from 1e-6 on and a block of at least 1"
        )
    check_features(features, "features")
    rows = len(features)
    if rows < 2:
        raise DataError("soft neighbourhood density: 1 row given, which has no neighbours; at least 2 are needed")
    units = normalise(features.detach())
    total = 0.0
    for start in range(0, rows, block):
        similarities = units[start : start + block] @ units.T
        similarities.diagonal(start).fill_(-torch.inf)  # nobody is a neighbour of their own
        shares = torch.softmax(similarities.div_(temperature), dim=1)
        total += float(torch.special.entr(shares).sum(dtype=torch.float64))
    return total / rows
