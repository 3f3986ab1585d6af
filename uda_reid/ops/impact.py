"""How much each unit of a layer matters to a domain, and masks that keep the units that do.

Xiao, Li, Ouyang and Wang: Learning Deep Feature Representations with Domain Guided Dropout for Person
Re-identification, CVPR 2016, arXiv:1604.07528. "Code" below: github.com/Cysu/dgd_person_reid,
tools/compute_impact_score.py, and the GuidedDropout layer in branch domain-guided-dropout of github.com/Cysu/caffe.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.transfer import moved

MEMORY = 64 << 20
"""Bytes of logits that are computed at once, unless told otherwise."""
HIGHEST = 0.9
"""The chance to be kept that normalised scores give the unit that matters most."""


def impacts(units: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, *, memory: int = MEMORY) -> Tensor:
    """Return by how much the loss of every row rises when one unit is set to zero, for every unit.

    With logits z = W g + b the logits without unit i are z - W_i g_i, so that the rise of the cross entropy is
    s_i = ln sum_k exp(z_k - W_ki g_i) - ln sum_k exp(z_k) + W_yi g_i: exact, with no forward pass per unit.

    Args:
        units: (N, K) floating g, behind the ReLU.
        labels: (N,) int64 y in [0, C).
        weight: (C, K) floating W of the softmax classifier.
        bias: (C,) floating b.
        memory: bytes of changed logits that are held at once; no result depends on it.

    Returns:
        (N, K) float64 s; exactly 0 where a unit is off, or adds the same to every class.

    Raises:
        DataError: the shapes do not match, or a label is outside [0, C).

    Source:
        The score of the code, batch by batch in a loop over units; in closed form here, because the head is linear.

    >>> impacts(torch.ones(1, 2), torch.tensor([0]), torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), torch.zeros(2))
    tensor([[0.5662, 0.0000]], dtype=torch.float64)
    """
    _check(units, labels, weight, bias)
    units, weight, bias = units.double(), weight.double(), bias.double()
    logs = F.log_softmax(units @ weight.T + bias, dim=1)
    found = torch.empty_like(units)
    entries = max(1, memory // (4 * units.element_size()))  # about four tensors of this size live at once
    columns = max(1, min(units.shape[1], entries // len(weight)))
    rows = max(1, entries // (columns * len(weight)))
    for row in range(0, len(units), rows):
        truth, log = labels[row : row + rows], logs[row : row + rows, :, None]
        for column in range(0, units.shape[1], columns):
            part = weight[:, column : column + columns]
            # (rows, C, columns): what the true class loses more than class k. Where that is 0 for all k, nothing
            # changes, and rounding must not tell otherwise: the deterministic mask asks whether a score is above 0.
            lost = (part[truth][:, None] - part[None]) * units[row : row + rows, None, column : column + columns]
            rise = (log + lost).logsumexp(1).masked_fill((lost == 0).all(1), 0)
            found[row : row + rows, column : column + columns] = rise
    return found


def normalised(scores: Tensor) -> Tensor:
    """Return scores scaled so that the unit that matters most to a domain is kept with a chance of 0.9.

    Args:
        scores: (D, K) floating.

    Returns:
        (D, K), every row times ln(9) / its maximum, so that sigmoid(maximum) = 0.9; a row whose maximum is not above
        0, for which the code stops, is returned as it is.

    Source: option --normalize of the code.

    >>> normalised(torch.tensor([[1.0, 2.0, -1.0], [-1.0, 0.0, -3.0]])).sigmoid()
    tensor([[0.7500, 0.9000, 0.2500],
            [0.2689, 0.5000, 0.0474]])
    """
    highest = scores.amax(1, keepdim=True)
    factor = math.log(HIGHEST / (1 - HIGHEST)) / torch.where(highest > 0, highest, 1)
    return scores * torch.where(highest > 0, factor, 1)


def deterministic_mask(scores: Tensor) -> Tensor:
    """Return what to multiply units with so that those without a positive score are dropped, and mass is kept.

    Args:
        scores: (B, K) floating, of the domain of every row.

    Returns:
        (B, K) of the scores' type: K / (number kept) where the score is above 0, else 0; all 0 where no score is.

    Source: mode DETERMINISTIC of the code's layer, threshold 0, strictly above; in training and at test alike.

    >>> deterministic_mask(torch.tensor([[1.0, -1.0, 2.0, 0.0]])).tolist()
    [[2.0, 0.0, 2.0, 0.0]]
    """
    kept = (scores > 0).to(scores.dtype)
    return kept * scores.shape[1] / kept.sum(1, keepdim=True).clamp_min(1)


def stochastic_mask(scores: Tensor, chance: Tensor | torch.Generator, *, temperature: float = 1.0) -> Tensor:
    """Return what to multiply units with so that each is kept with the chance sigmoid(score / temperature).

    What is kept is scaled by one number per row, K / (sum of the chances), not by 1 / chance unit by unit: the mean of
    a unit that matters is raised. Over all units of a row of ones the mean is 1.

    Args:
        scores: (B, K) floating, of the domain of every row.
        chance: (B, K) uniform numbers in [0, 1); a unit is kept where its own is at most its chance. Or a CPU generator
            that draws them.
        temperature: above 0; infinity is plain dropout of one half, towards 0 it becomes the deterministic mask.

    Returns:
        (B, K) of the scores' type; all 0 where every chance is too small to be told from 0.

    Raises:
        RecipeError: the temperature is not above 0.

    Source: mode STOCHASTIC of the code's layer, in training; at test nothing is dropped or scaled.

    >>> stochastic_mask(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.4, 0.6]]))
    tensor([[2., 0.]])
    """
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature} is not above 0; a small one is nearly the deterministic mask")
    if isinstance(chance, torch.Generator):
        chance = torch.rand(scores.shape, generator=chance)
        chance = moved(chance, scores.device)
    keep = (scores / temperature).sigmoid()
    total = keep.sum(1, keepdim=True)
    return (chance <= keep).to(scores.dtype) * scores.shape[1] / torch.where(total > 0, total, 1)


def halves(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Deal the rows of every identity into two halves, at random.

    Args:
        labels: (N,) int64; rows with a negative label are in no half.
        generator: draws the order.

    Returns:
        (N,) int64: 0 or 1, and -1 for rows in no half: an identity with one row would be in one half only.

    >>> halves(torch.tensor([7, 7, 7, 7, 3, -1]), torch.Generator()).sort().values.tolist()
    [-1, -1, 0, 0, 1, 1]
    """
    found = torch.full_like(labels, -1)
    for label in torch.unique(labels[labels >= 0]).tolist():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            order = torch.randperm(len(rows), generator=generator)
            found[rows[order]] = torch.arange(len(rows)) % 2
    return found


def fit(units: Tensor, labels: Tensor, classes: int, *, decay: float = 5e-4, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Return the softmax classifier of frozen units: least mean cross entropy plus decay / 2 |W|^2.

    That is convex, with one best W: found from zeros by L-BFGS, without any random number.

    Args:
        units: (N, K) floating.
        labels: (N,) int64 in [0, C).
        classes: C.
        decay: above 0: few rows are told apart by many units, and W would grow without an end.
        steps: iterations at most.

    Returns:
        Weights (C, K) and biases (C,), float64.

    Raises:
        DataError: shapes do not match, or a label is outside [0, C).
        RecipeError: the decay is not above 0.

    Source: the code trains a new last layer by SGD, 200 to 2,000 steps with a weight decay of 5e-4.

    >>> weight, bias = fit(torch.eye(2), torch.tensor([0, 1]), 2)
    >>> (torch.eye(2).double() @ weight.T + bias).argmax(1).tolist()
    [0, 1]
    """
    if not decay > 0:
        raise RecipeError(f"decay {decay} is not above 0; without it the weights have no limit")
    units = units.double()
    weight, bias = units.new_zeros(classes, units.shape[1]), units.new_zeros(classes)
    _check(units, labels, weight, bias)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(units @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def held_out_scores(
    units: Tensor, labels: Tensor, generator: torch.Generator, *, decay: float = 5e-4, steps: int = 100
) -> Tensor:
    """Return the mean impact of every unit in one domain, each row scored by a classifier that has not seen it.

    The rows of every identity are dealt into halves; a classifier is fitted on either half and scored on the other. A
    classifier is sure of the rows it was fitted on, and units would matter that only tell these rows apart.

    Args:
        units: (N, K) floating, of one domain.
        labels: (N,) int64 identities, of any numbers; rows with a negative one, or of an identity with one row, are
            left out.
        generator: deals the halves.
        decay: of `fit`.
        steps: of `fit`.

    Returns:
        (K,) float64.

    Raises:
        DataError: less than two identities have two rows.

    Source: the code fits a last layer on a domain's training images and scores on its validation images; two halves
        that change places are this package's choice.
    """
    half = halves(labels, generator)
    known, numbers = torch.unique(labels[half >= 0], return_inverse=True)
    if len(known) < 2:
        raise DataError(f"{len(known)} identity with two rows or more; impact scores need at least 2")
    units, half = units[half >= 0], half[half >= 0]
    total = torch.zeros(units.shape[1], dtype=torch.float64, device=units.device)
    for mine in (half == 0, half == 1):
        weight, bias = fit(units[~mine], numbers[~mine], len(known), decay=decay, steps=steps)
        total += impacts(units[mine], numbers[mine], weight, bias).sum(0)
    return total / len(units)


def _check(units: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
    fits = units.dim() == weight.dim() == 2 and units.shape[1] == weight.shape[1]
    if not fits or labels.shape != units.shape[:1] or bias.shape != weight.shape[:1] or not len(labels):
        shapes = ", ".join(str(tuple(each.shape)) for each in (units, labels, weight, bias))
        raise DataError(f"units, labels, weight and bias must be (N, K), (N,), (C, K) and (C,), not {shapes}")
    outside = labels[(labels < 0) | (labels >= len(weight))]
    if len(outside):
        raise DataError(f"label {int(outside[0])} is outside the {len(weight)} classes; number labels from 0")
