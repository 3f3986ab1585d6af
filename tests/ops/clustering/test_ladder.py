from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ops.clustering.graphs import graph_of
from uda_reid.errors import RecipeError
from uda_reid.ops.clustering import climb, climb_by, climb_graph, dbscan, dbscan_graph
from uda_reid.ops.clustering.graph import LIMIT
from uda_reid.ops.clustering.ladder import CROWD, RUNGS

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
    assert found.steps[-1] == "no eps finds two clusters: all rows are left as outliers"
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


# ---- graphs and other clusterings ----------------------------------------


def couples(within: float, between: float) -> dict[tuple[int, int], float]:
    """Six pairs in a row."""
    return {(row, row + 1): between if row % 2 else within for row in range(11)}


def test_the_ladder_finds_pairs_on_a_graph_from_a_small_and_a_large_radius() -> None:
    given = graph_of(12, couples(0.4, 0.8))
    expected = [pair for pair in range(6) for _ in range(2)]
    found = climb_graph(given, eps=0.2, min_samples=2)
    assert found.labels.tolist() == expected
    assert found.steps == ("eps 0.2 finds 0 clusters, try 0.3", "eps 0.3 finds 0 clusters, try 0.45")
    found = climb_graph(given, eps=0.9, min_samples=2)
    assert found.labels.tolist() == expected
    assert found.steps == ("eps 0.9 finds 1 clusters, one with 100% of all, try 0.6",)
    assert torch.equal(found.labels, dbscan_graph(given, eps=found.eps, min_samples=2))


def test_on_a_graph_the_radius_stays_below_the_absent_pairs() -> None:
    found = climb_graph(graph_of(12, couples(0.95, 1.0)), eps=0.8, min_samples=2)
    assert found.eps == LIMIT < 1
    assert int(found.labels.max()) == 5
    assert found.steps == ("eps 0.8 finds 0 clusters, try 0.9999",)


@pytest.mark.parametrize("eps", [0.0, 0.3, LIMIT, 0.99995])
def test_a_graph_of_outliers_ends_with_no_label_and_no_error(eps: float) -> None:
    found = climb_graph(graph_of(40, {}), eps=eps)
    assert found.labels.tolist() == [-1] * 40
    assert found.eps == eps
    assert found.steps[-1] == "no eps finds two clusters: all rows are left as outliers"
    assert len(found.steps) == (4 if eps == 0.3 else 1)  # up to the limit, and no farther


def test_on_a_graph_a_giant_that_does_not_fall_apart_is_taken_beside_other_clusters() -> None:
    copies = {(one, other): 0.0 for other in range(9) for one in range(other)}
    found = climb_graph(graph_of(13, {**copies, (9, 10): 0.5, (11, 12): 0.5}), eps=0.7, min_samples=2)
    assert found.labels.tolist() == [0] * 9 + [1, 1, 2, 2]
    assert found.eps == 0.7
    assert found.steps[-1] == "the best was eps 0.7 with 3 clusters"


def test_on_a_graph_a_radius_out_of_range_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"eps 1.0 is out of range on a graph"):
        climb_graph(graph_of(4, {}), eps=1.0)


def test_too_many_clusters_are_joined_by_a_larger_radius() -> None:
    # With one row to a core, every row is a cluster until the radius reaches the next one.
    found = climb_graph(graph_of(12, couples(0.4, 0.8)), eps=0.35, min_samples=1)
    assert found.labels.tolist() == [pair for pair in range(6) for _ in range(2)]
    assert found.steps == ("eps 0.35 finds 12 clusters, more than 50% of all rows, try 0.525",)
    assert climb(PAIRS, eps=0.9, min_samples=1).steps == (
        "eps 0.9 finds 12 clusters, more than 50% of all rows, try 1.35",
    )


def test_how_many_are_too_many_can_be_said() -> None:
    def halves(eps: float) -> Tensor:
        return torch.arange(16) // round(4 * eps)

    assert climb_by(halves, eps=0.5).steps == ()
    found = climb_by(halves, eps=0.5, crowd=0.3)
    assert found.steps == (
        "eps 0.5 finds 8 clusters, more than 30% of all rows, try 0.75",
        "eps 0.75 finds 6 clusters, more than 30% of all rows, try 1.125",
    )
    assert int(found.labels.max()) + 1 == 4


def test_exactly_half_as_many_clusters_as_rows_will_do() -> None:
    assert CROWD == 0.5
    assert climb_by(lambda eps: torch.arange(8) // 2, eps=1.0).steps == ()
    found = climb_by(lambda eps: torch.arange(8).clamp(max=4), eps=1.0)
    assert len(found.steps) == RUNGS + 1


@pytest.mark.parametrize(
    ("large", "small", "clusters"),
    [
        ([0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5], 2),  # a giant beside another is better than all alone
        ([0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], 6),  # all alone is better than all in one
    ],
)
def test_between_a_giant_and_too_many_the_giant_with_others_is_taken(
    large: list[int], small: list[int], clusters: int
) -> None:
    found = climb_by(lambda eps: torch.tensor(large if eps > 0.6 else small), eps=0.5)
    assert int(found.labels.max()) + 1 == clusters
    assert found.steps[0] == "eps 0.5 finds 6 clusters, more than 50% of all rows, try 0.75"
    assert found.steps[-1] == f"the best was eps {found.eps:.4g} with {clusters} clusters"


def test_of_too_many_the_fewest_are_taken() -> None:
    found = climb_by(lambda eps: torch.arange(10).clamp(max=9 if eps < 2 else 7), eps=1.0, limit=2.0)
    assert int(found.labels.max()) + 1 == 8
    assert found.eps == 2.0


def test_the_ladder_gives_the_same_twice() -> None:
    given = graph_of(12, couples(0.4, 0.8))
    one, other = (climb_graph(given, eps=0.9, min_samples=2) for _ in range(2))
    assert torch.equal(one.labels, other.labels)
    assert (one.eps, one.steps) == (other.eps, other.steps)
