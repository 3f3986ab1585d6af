"""How far apart two domains are in an encoder's eyes, without any identity: distances of two sets of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.ops.impact import fit


def maximum_mean_discrepancy(first: Tensor, second: Tensor) -> float:
    """Return the squared maximum mean discrepancy of two sets of rows under a Gaussian kernel.

    The kernel is exp(-d^2 / m), m the median of the squared distances between different rows of both sets together
    (the median heuristic). The estimate is unbiased: around 0, and below it half of the time, where both sets are drawn
    alike.

    Args:
        first: (N, D) floating, N at least 2.
        second: (M, D) floating, M at least 2.

    Returns:
        A number of at most 2.

    Raises:
        DataError: shapes do not match, or a set has less than two rows.

    Source: Gretton, Borgwardt, Rasch, Schoelkopf and Smola: A Kernel Two-Sample Test, JMLR 13, 2012, equation 3 and
    section 8.

    >>> maximum_mean_discrepancy(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
    1.2642411176571153
    """
    _check(first, second)
    rows = torch.cat([first, second]).double()
    distances = torch.cdist(rows, rows).square()
    n, m = len(first), len(second)
    between = distances[torch.triu(torch.ones_like(distances, dtype=torch.bool), diagonal=1)]
    median = between.median()
    kernel = torch.exp(-distances / torch.where(median > 0, median, 1))
    kernel.fill_diagonal_(0)
    own = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(own - 2 * kernel[:n, n:].mean())


def proxy_a_distance(first: Tensor, second: Tensor, *, generator: torch.Generator, decay: float = 1e-3) -> float:
    """Return how well a linear classifier tells two sets of rows apart: 2 (1 - 2 e), e its error on rows held out.

    The rows of either set are dealt into two halves; a classifier is fitted on either and judged on the other, and both
    sets count alike, whatever their sizes.

    Args:
        first: (N, D) floating, N at least 4.
        second: (M, D) floating, M at least 4.
        generator: a CPU generator, which deals the halves.
        decay: of the classifier's weights (`ops.impact.fit`).

    Returns:
        About 0 where they cannot be told apart, 2 where they can be without an error; below 0 by chance.

    Raises:
        DataError: shapes do not match, or a set has less than four rows.

    Source: Ben-David, Blitzer, Crammer and Pereira: Analysis of Representations for Domain Adaptation, NeurIPS 2006,
    section 4; the constant is that of Ganin et al., JMLR 17, 2016, section 5.2.3.
    """
    _check(first, second, least=4)
    size = min(len(first), len(second)) // 2 * 2
    parts = [each[torch.randperm(len(each), generator=generator)[:size]].double() for each in (first, second)]
    labels = torch.arange(2).repeat_interleave(size // 2)
    halves = [torch.cat([part[half::2] for part in parts]) for half in (0, 1)]
    errors = []
    for trained, judged in (halves, halves[::-1]):
        mean, deviation = trained.mean(0), trained.std(0).clamp_min(1e-12)
        weight, bias = fit((trained - mean) / deviation, labels, 2, decay=decay)
        answers = ((judged - mean) / deviation @ weight.T + bias).argmax(1)
        errors.append(float((answers != labels).double().mean()))
    return 2 * (1 - 2 * sum(errors) / 2)


def normal_divergence(means: Tensor, variances: Tensor, other_means: Tensor, other_variances: Tensor) -> float:
    """Return the symmetric Kullback-Leibler divergence of two sets of normal distributions, averaged over them.

    Half of KL(p, q) + KL(q, p), in nats: ((v + d^2) / w + (w + d^2) / v) / 4 - 1/2 with variances v and w, and d the
    difference of the means.

    Args:
        means: (C,) floating.
        variances: (C,) floating, at least 0; below 1e-5, the constant of batch norm, they count as that.
        other_means: (C,) floating.
        other_variances: (C,) floating, likewise.

    Raises:
        DataError: shapes do not match, or there is no distribution.

    >>> normal_divergence(torch.zeros(1), torch.ones(1), torch.ones(1), torch.ones(1))
    0.5
    """
    parts = [each.double() for each in (means, variances, other_means, other_variances)]
    if len({each.shape for each in parts}) > 1 or parts[0].dim() != 1 or not len(parts[0]):
        shapes = ", ".join(str(tuple(each.shape)) for each in parts)
        raise DataError(f"means and variances of two sets must all be (C,), not {shapes}")
    mean, variance, other_mean, other_variance = parts
    variance, other_variance = variance.clamp_min(1e-5), other_variance.clamp_min(1e-5)
    square = (mean - other_mean).square()
    each = ((variance + square) / other_variance + (other_variance + square) / variance) / 4 - 0.5
    return float(each.mean())


def _check(first: Tensor, second: Tensor, *, least: int = 2) -> None:
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1]:
        raise DataError(f"two sets must be (N, D) and (M, D), not {tuple(first.shape)} and {tuple(second.shape)}")
    if min(len(first), len(second)) < least:
        raise DataError(f"sets of {len(first)} and {len(second)} rows; each needs at least {least}")
