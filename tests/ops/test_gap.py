from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from uda_reid.errors import DataError
from uda_reid.ops.gap import maximum_mean_discrepancy, normal_divergence, proxy_a_distance

ZERO = torch.zeros(2)


def rows(count: int, *, shift: float = 0.0, seed: int = 0, dim: int = 5) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


# Maximum mean discrepancy


def by_hand(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate, one pair after another."""
    both = torch.cat([first, second]).double().numpy()
    median = sorted(pdist(both, "sqeuclidean"))[(len(both) * (len(both) - 1) // 2 - 1) // 2]

    def kernel(a: Any, b: Any) -> float:
        return math.exp(-sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / median)

    n, m = len(first), len(second)
    own = sum(kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j) / (n * (n - 1))
    own += sum(kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j) / (m * (m - 1))
    return own - 2 * sum(kernel(a, b) for a in first for b in second) / (n * m)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_discrepancy_is_that_of_all_pairs(shift: float) -> None:
    first, second = rows(9), rows(7, shift=shift, seed=1)
    assert maximum_mean_discrepancy(first, second) == pytest.approx(by_hand(first, second), abs=1e-9)
    assert maximum_mean_discrepancy(second, first) == pytest.approx(by_hand(first, second), abs=1e-9)


def test_discrepancy_is_around_zero_for_sets_drawn_alike_and_grows_with_their_distance() -> None:
    alike = [maximum_mean_discrepancy(rows(60, seed=2 * seed), rows(60, seed=2 * seed + 1)) for seed in range(40)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / math.sqrt(40) and min(alike) < 0 < max(alike)
    apart = [maximum_mean_discrepancy(rows(60), rows(60, shift=shift, seed=1)) for shift in (0.3, 1.0, 3.0)]
    assert 0 < apart[0] < apart[1] < apart[2] < 2


def test_discrepancy_of_equal_rows_is_zero() -> None:
    assert maximum_mean_discrepancy(torch.ones(3, 2), torch.ones(4, 2)) == pytest.approx(0, abs=1e-12)


# Proxy-A distance


def test_proxy_is_two_for_sets_that_lie_apart_and_about_zero_for_sets_drawn_alike() -> None:
    draws = torch.Generator().manual_seed(0)
    assert proxy_a_distance(rows(40), rows(60, shift=20.0, seed=1), generator=draws) == 2
    alike = [proxy_a_distance(rows(200, seed=2 * s), rows(200, seed=2 * s + 1), generator=draws) for s in range(10)]
    assert abs(np.mean(alike)) < 0.25
    between = proxy_a_distance(rows(400), rows(400, shift=0.5, seed=1), generator=draws)
    # The best answer to two normal distributions 0.5 sqrt(5) apart is wrong with the chance Phi(-0.5 sqrt(5) / 2).
    best = float(stats.norm.cdf(-0.5 * math.sqrt(5) / 2))
    assert between == pytest.approx(2 * (1 - 2 * best), abs=0.25)


def test_proxy_counts_both_sets_alike() -> None:
    """With 40 rows against 800, a classifier that always says the larger one would be right 20 times in 21."""
    draws = torch.Generator().manual_seed(0)
    assert abs(proxy_a_distance(rows(40), rows(800, seed=1), generator=draws)) < 0.8


def test_proxy_repeats_with_its_generator_and_is_blind_to_units() -> None:
    first, second = rows(40), rows(40, shift=0.4, seed=1)
    found = [proxy_a_distance(a, b, generator=torch.Generator().manual_seed(3)) for a, b in ((first, second),) * 2]
    assert found[0] == found[1]
    scale = torch.tensor([1.0, 100.0, 0.01, 5.0, 1.0])
    other = proxy_a_distance(first * scale, second * scale, generator=torch.Generator().manual_seed(3))
    assert other == pytest.approx(found[0])


# Batch norm


def test_divergence_is_that_of_torch() -> None:
    draws = torch.Generator().manual_seed(0)
    means, others = (torch.randn(20, generator=draws).double() for _ in range(2))
    variances, other_variances = (torch.rand(20, generator=draws).double() + 0.1 for _ in range(2))
    one, two = Normal(means, variances.sqrt()), Normal(others, other_variances.sqrt())
    expected = float((kl_divergence(one, two) + kl_divergence(two, one)).mean() / 2)
    assert normal_divergence(means, variances, others, other_variances) == pytest.approx(expected)
    assert normal_divergence(others, other_variances, means, variances) == pytest.approx(expected)
    assert normal_divergence(means, variances, means, variances) == pytest.approx(0, abs=1e-12)


def test_channels_that_are_off_do_not_divide_by_zero() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert normal_divergence(zero, zero, zero, zero) == 0
    floor = ((1e-5 + 1) / 1 + (1 + 1) / 1e-5) / 4 - 0.5
    assert normal_divergence(zero, zero, one, one) == pytest.approx(floor)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maximum_mean_discrepancy(rows(3), rows(3, dim=4)), r"must be \(N, D\) and \(M, D\)"),
        (lambda: maximum_mean_discrepancy(rows(1), rows(3)), "sets of 1 and 3 rows; each needs at least 2"),
        (lambda: proxy_a_distance(rows(9), rows(3), generator=torch.Generator()), "each needs at least 4"),
        (
            lambda: normal_divergence(ZERO, ZERO, ZERO, torch.zeros(3)),
            r"must all be \(C,\)",
        ),
        (lambda: normal_divergence(*[torch.zeros(0)] * 4), r"must all be \(C,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
