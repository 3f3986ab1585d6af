from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uda_reid.ops.clustering import climb, dbscan
from uda_reid.ops.clustering.ladder import RUNGS

# Six pairs on a line: 1 between the two of a pair, 8 between pairs.
PAIRS = torch.tensor([[9.0 * pair + place] for pair in range(6) for place in (0.0, 1.0)])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_radius_that_will_do_is_kept() -> None:
    found = climb(PAIRS, eps=2.0, min_samples=2)
    assert (found.eps, found.steps) == (2.0, ())
    assert torch.equal(found.labels, dbscan(PAIRS, eps=2.0, min_samples=2))


def test_too_small_a_radius_is_multiplied_until_there_are_clusters() -> None:
    found = climb(PAIRS, eps=0.3, min_samples=2)
    assert found.eps == pytest.approx(0.3 * 1.5**3)
    assert found.labels.tolist() == [pair for pair in range(6) for _ in range(2)]
    assert found.steps == (
        "eps 0.3 finds 0 clusters, try 0.45",
        "eps 0.45 finds 0 clusters, try 0.675",
        "eps 0.675 finds 0 clusters, try 1.012",
    )


def test_too_large_a_radius_is_divided_until_the_giant_falls_apart() -> None:
    found = climb(PAIRS, eps=18.0, min_samples=2)
    assert found.eps == pytest.approx(18.0 / 1.5**3)
    assert int(found.labels.max()) == 5
    assert found.steps[0] == "eps 18 finds 1 clusters, one with 100% of all, try 12"
    assert len(found.steps) == 3


def test_between_a_small_and_a_large_radius_the_geometric_mean_is_tried() -> None:
    # Three pairs, 1 within and 1.1 between: only a radius between the two will do.
    close = torch.tensor([[2.1 * pair + place] for pair in range(3) for place in (0.0, 1.0)])
    found = climb(close, eps=0.9, min_samples=2)
    tried = [0.9, 0.9 * 1.5]
    tried.append(math.sqrt(tried[0] * tried[1]))  # 1.102: a giant
    tried.append(math.sqrt(tried[0] * tried[2]))  # 0.996: nothing
    assert found.eps == pytest.approx(math.sqrt(tried[2] * tried[3]))
    assert int(found.labels.max()) == 2
    assert [step.split(" finds ")[0] for step in found.steps] == [f"eps {eps:.4g}" for eps in tried]


@pytest.mark.parametrize("eps", [0.0, 1e-3, 5.0])
def test_equal_rows_end_with_no_label_and_no_error(eps: float) -> None:
    found = climb(torch.ones(30, 3), eps=eps)
    assert found.labels.tolist() == [-1] * 30
    assert found.steps[-1] == "no eps finds two clusters"
    assert len(found.steps) == (1 if eps == 0 else RUNGS + 1)


def test_rows_that_are_too_few_for_a_core_end_with_no_label() -> None:
    found = climb(random(3, 2), eps=0.1, min_samples=4)
    assert found.labels.tolist() == [-1, -1, -1]
    assert found.eps == 0.1
    assert len(found.steps) == RUNGS + 1


def test_a_giant_that_does_not_fall_apart_is_taken_beside_other_clusters() -> None:
    # Nine copies of one row are together at any radius; the two pairs are clusters only for some.
    stuck = torch.cat([torch.zeros(9, 1), torch.tensor([[50.0], [51.0], [90.0], [91.0]])])
    found = climb(stuck, eps=2.0, min_samples=2)
    assert found.labels.tolist() == [0] * 9 + [1, 1, 2, 2]
    assert found.eps == 2.0
    assert found.steps[0] == "eps 2 finds 3 clusters, one with 69% of all, try 1.333"
    assert found.steps[-1] == "the best was eps 2 with 3 clusters"


@pytest.mark.parametrize("eps", [0.003, 0.01, 0.1, 1.0, 10.0])
def test_the_ladder_finds_blobs_from_far_off_radii(eps: float) -> None:
    truth = torch.arange(200) % 10
    features = 4 * torch.nn.functional.one_hot(truth).float() + 0.1 * random(200, 10)
    found = climb(features, eps=eps)
    assert int(found.labels.max()) + 1 >= 2
    largest = int(found.labels[found.labels >= 0].bincount().max())
    assert largest <= 100
    assert all(len(set(truth[found.labels == number].tolist())) == 1 for number in range(int(found.labels.max()) + 1))
