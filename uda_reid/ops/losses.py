"""Every loss: logits or embeddings and labels in, one differentiable number out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import DataError, RecipeError


def identification(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy between softmax(logits) and the labels.

    With C classes and smoothing e, a row with label y costs -(1 - e) log p_y - (e / C) sum_k log p_k: the
    true class weighs 1 - e + e / C, each other class e / C.

    Args:
        logits: (B, C) floating.
        labels: (B,) int64 in [0, C).
        smoothing: e, in [0, 1).

    Returns:
        A scalar float32, at least 0.

    Raises:
        DataError: the shapes do not match, the batch is empty, or (on the CPU) a label is outside [0, C).
        RecipeError: `smoothing` is outside [0, 1).

    Source:
        The identification loss of Zheng et al. 2016 (IDE); the smoothing of Szegedy et al. 2016, section 7, as used
        by Luo et al. 2019.

    >>> round(float(identification(torch.zeros(2, 4), torch.tensor([0, 3]))), 4)  # ln 4
    1.3863
    """
    if not 0 <= smoothing < 1:
        raise RecipeError(f"label smoothing {smoothing} is out of range; use a number from 0 to below 1")
    _check_batch(logits, labels, "logits")
    if labels.device.type == "cpu":  # a GPU looks itself, in the cross entropy, and nobody waits for it
        outside = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(outside):
            raise DataError(f"label {int(outside[0])} is outside the {logits.shape[1]} classes; number labels from 0")
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def soft_identification(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy between softmax(logits) and soft labels: -sum_k q_k log p_k for a row.

    It is never less than the labels' own entropy, and equal to it where p = q.

    Args:
        logits: (B, C) floating.
        targets: (B, C) floating q, rows of probabilities.

    Returns:
        A scalar float32, at least 0.

    Raises:
        DataError: the shapes differ, or the batch is empty.

    >>> round(float(soft_identification(torch.zeros(2, 4), torch.full((2, 4), 0.25))), 4)  # ln 4
    1.3863
    """
    if logits.dim() != 2 or logits.shape != targets.shape or len(logits) == 0:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise DataError(f"logits and soft labels must both be (B, C) with B at least 1, not {shapes}")
    return F.cross_entropy(logits.float(), targets.float())


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return soft labels: the label's class has 1 - e and all C classes share e.

    Args:
        labels: (B,) int64 in [0, C).
        classes: C.
        smoothing: e, in [0, 1]; 0 leaves the hard labels, 1 only the uniform ones of LSRO (Zheng et al. 2017).

    Returns:
        (B, C) float32.

    Raises:
        RecipeError: `smoothing` is outside [0, 1].

    Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7.

    >>> [round(share, 2) for share in smoothed(torch.tensor([1]), 4, 0.2)[0].tolist()]
    [0.05, 0.85, 0.05, 0.05]
    """
    if not 0 <= smoothing <= 1:
        raise RecipeError(f"label smoothing {smoothing} is out of range; use a number from 0 to 1")
    return (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes


def by_nearness(features: Tensor, centroids: Tensor, *, temperature: float) -> Tensor:
    """Return soft labels by how near a row's direction is to that of every centroid: softmax(cosine / t).

    Args:
        features: (B, D) floating.
        centroids: (C, D) floating.
        temperature: t, above 0; towards 0 they become the nearest centroid's hard labels.

    Returns:
        (B, C) float32.

    Raises:
        RecipeError: the temperature is not positive.

    >>> by_nearness(torch.tensor([[2.0, 0.0]]), torch.eye(2), temperature=1.0)
    tensor([[0.7311, 0.2689]])
    """
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature} is out of range; use a number above 0")
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(centroids.float(), dim=1).T
    return (cosines / temperature).softmax(1)


def told_apart(logits: Tensor, first: int) -> Tensor:
    """Return the mean loss of telling the first rows of a batch from the others.

    The first cost -ln sigma(d) and the others -ln(1 - sigma(d)). With negated logits it is the loss of inverted labels:
    what a generator minimises to be mistaken. Its gradient for a row taken for what it is does not vanish, where that
    of the negated loss does.

    Args:
        logits: (B,) floating d.
        first: how many rows are of the first kind.

    Returns:
        A scalar float32.

    Raises:
        DataError: the logits are no vector, or not of two kinds.

    Source:
        Tzeng et al. 2017 (arXiv:1702.05464), equations 7 and 9, as means over the batch of both, as in the code.

    >>> round(float(told_apart(torch.zeros(4), 2)), 6)  # ln 2
    0.693147
    """
    if logits.dim() != 1 or not 0 < first < len(logits):
        raise DataError(f"logits must be (B,) of two kinds, not {tuple(logits.shape)} with {first} of the first")
    signs = torch.ones_like(logits)
    signs[first:] = -1
    return F.softplus(-signs * logits.float()).mean()


def batch_hard_triplet(embeddings: Tensor, labels: Tensor, *, margin: float | None = 0.3) -> Tensor:
    """Return the mean over anchors of how much nearer the hardest negative is than the hardest positive.

    For an anchor a, with D the Euclidean (not squared) distance, d = max over positives p of D(a, p) minus
    min over negatives n of D(a, n); the anchor costs max(0, margin + d), or ln(1 + exp(d)) without a margin.
    An anchor is no positive of its own. Anchors without any positive or without any negative are left out.

    Args:
        embeddings: (B, D) floating, not normalised.
        labels: (B,) int64 identities.
        margin: at least 0, in the unit of the embeddings; None for the soft margin.

    Returns:
        A scalar float32, at least 0; 0 with zero gradients where no anchor is left.

    Raises:
        DataError: the shapes do not match, or the batch is empty.
        RecipeError: `margin` is negative.

    Source:
        Hermans et al. 2017 (arXiv:1703.07737), equation 5.

    >>> embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    >>> round(float(batch_hard_triplet(embeddings, torch.tensor([0, 0, 1, 1]), margin=None)), 6)
    4.403495
    """
    if margin is not None and not margin >= 0:
        raise RecipeError(f"triplet margin {margin} is negative; use 0 or more, or none for the soft margin")
    _check_batch(embeddings, labels, "embeddings")
    embeddings = embeddings.float()
    anchors, positives, negatives = _hardest(embeddings.detach(), labels)
    rows = torch.arange(len(labels), device=labels.device)
    difference = _distance(embeddings, rows, positives) - _distance(embeddings, rows, negatives)
    losses = F.softplus(difference) if margin is None else F.relu(margin + difference)
    # By a mask, not by an index: how many anchors there are stays on the device.
    return losses.masked_fill(~anchors, 0.0).sum() / anchors.sum().clamp_min(1)


def _hardest(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B,) which rows are anchors that have both, and every row's farthest positive and nearest negative."""
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(1)
    nearest = distances.masked_fill(same, torch.inf).argmin(1)
    return positive.any(1) & ~same.all(1), farthest, nearest


def _distance(embeddings: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    # Only the mined pairs are differentiated, as differences of rows: exact where a Gram matrix would cancel,
    # and the norm's gradient at zero distance is zero, not NaN. Not embeddings[first]: the gradient of such an index is
    # added up by several threads in no fixed order, and training would not repeat.
    difference = embeddings.index_select(0, rows) - embeddings.index_select(0, others)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances


def _check_batch(values: Tensor, labels: Tensor, what: str) -> None:
    if values.dim() != 2 or labels.shape != values.shape[:1] or len(labels) == 0:
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise DataError(f"{what} and labels must be (B, D) and (B,) with B at least 1, not {shapes}")
