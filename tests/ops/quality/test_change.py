from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jaccard
from sklearn.metrics import jaccard_score
from sklearn.metrics.cluster import pair_confusion_matrix

from tests import oracles
from uda_reid.errors import DataError
from uda_reid.ops.quality import adjusted_rand_index, change, churn, neighbour_overlap, stability
from uda_reid.types import Ids

labellings = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=2, max_size=25)


def company(labels: Ids) -> npt.NDArray[np.bool_]:
    """Which rows are together, (N, N); an unused row with itself only."""
    together: npt.NDArray[np.bool_] = (labels[:, None] == labels[None, :]) & (labels >= 0)
    return together | np.eye(len(labels), dtype=bool)


def neighbours(rows: int, listed: int, seed: int, *, among: int = 12) -> Ids:
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(among)[:listed] for _ in range(rows)])


@given(rows=labellings)
def test_churn_equals_the_sets_and_scipy(rows: list[tuple[int, int]]) -> None:
    before, after = np.array(rows).T
    assert churn(before, after) == pytest.approx(oracles.churn(before.tolist(), after.tolist()), abs=1e-12)
    distances = [jaccard(old, new) for old, new in zip(company(before), company(after), strict=True)]
    assert churn(before, after) == pytest.approx(np.mean(distances), abs=1e-12)


@given(rows=labellings, seed=st.integers(0, 99))
def test_churn_and_stability_depend_on_no_name_order_or_direction(rows: list[tuple[int, int]], seed: int) -> None:
    before, after = np.array(rows).T
    generator = np.random.default_rng(seed)
    order, names = generator.permutation(len(rows)), np.append(generator.permutation(5) + 9, -1)
    for score, bounds in ((churn, (0, 1)), (stability, (-0.5, 1))):
        found = score(before, after)
        assert bounds[0] <= found <= bounds[1]
        assert score(names[before][order], after[order]) == pytest.approx(found, abs=1e-12)
        assert score(after, before) == pytest.approx(found, abs=1e-12)
    assert churn(before, names[before]) == 0
    assert stability(before, names[before]) == 1


@given(rows=labellings)
def test_churn_is_zero_only_where_no_company_changed(rows: list[tuple[int, int]]) -> None:
    before, after = np.array(rows).T
    assert (churn(before, after) == 0) == np.array_equal(company(before), company(after))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([-1, -1, -1], [-1, -1, -1], 0.0),  # unused rows are alone, not together
        ([-1, -1, -1], [0, 1, 2], 0.0),
        ([-1, -1, -1, -1], [7, 7, 7, 7], 3 / 4),
        ([0, 0, 0, 0], [0, 0, 1, 1], 1 / 2),
        ([0, 0, 1, 1], [0, 1, 0, 1], 2 / 3),
    ],
)
def test_churn_of_simple_changes(before: list[int], after: list[int], expected: float) -> None:
    assert churn(before, after) == pytest.approx(expected)


def test_churn_and_stability_of_many_clusters_need_no_dense_table() -> None:
    rows = torch.arange(200_000)
    assert churn(rows // 2, rows // 4) == pytest.approx(1 / 2)
    assert stability(rows // 2, rows // 4) == pytest.approx(2 * 1 / (1 + 3), abs=1e-4)


@given(rows=labellings)
def test_stability_equals_the_formula_and_the_pair_counts(rows: list[tuple[int, int]]) -> None:
    alone = [[label if label >= 0 else -1 - row for row, label in enumerate(side)] for side in zip(*rows, strict=True)]
    one, other = zip(*rows, strict=True)
    (apart, false), (missed, both) = pair_confusion_matrix(*alone).astype(float)
    if missed == false == 0:
        assert stability(one, other) == 1
        return
    expected = 2 * (both * apart - missed * false)
    expected /= (both + missed) * (missed + apart) + (both + false) * (false + apart)
    assert stability(one, other) == pytest.approx(expected, abs=1e-9)
    assert stability(one, other) == pytest.approx(oracles.adjusted_rand_index(*alone), abs=1e-9)


def test_stability_does_not_take_noise_for_a_cluster() -> None:
    one, other = [0, 0, 1, 1, -1, -1, -1, -1], [0, 0, 1, 1, 2, 3, 4, 5]
    assert stability(one, other) == 1
    assert adjusted_rand_index(one, other) < 0.6


def test_stability_is_one_for_collapses_and_near_zero_for_chance() -> None:
    generator = np.random.default_rng(0)
    assert stability([-1] * 5, [-1] * 5) == stability([3] * 5, [0] * 5) == 1
    assert abs(stability(generator.integers(-1, 20, 4000), generator.integers(-1, 20, 4000))) < 0.01


@pytest.mark.parametrize("score", [churn, stability])
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([0, 1], [0], "2 rows of labels .* but 1 of labels .*; one of each per row is needed"),
        ([], [], "no rows given; at least one is needed"),
        ([0, -2], [0, 1], "label -2 given; clusters count from 0"),
        ([0, 1], [0, -7], "label -7 given; clusters count from 0"),
        ([0.0, 1.0], [0, 1], "labels .*: float64 of shape"),
        ([0, 1], [[0, 1]], r"labels .*: int64 of shape \(1, 2\)"),
    ],
)
def test_churn_and_stability_refuse_bad_labels(
    score: Callable[[list[int], list[int]], float], one: list[int], other: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(one, other)


@given(rows=st.integers(1, 9), listed=st.integers(1, 12), seed=st.integers(0, 99))
def test_neighbour_overlap_equals_the_sets_and_sklearn(rows: int, listed: int, seed: int) -> None:
    one, other = neighbours(rows, listed, seed), neighbours(rows, listed, seed + 1)
    assert neighbour_overlap(one, other) == pytest.approx(oracles.neighbour_overlap(one.tolist(), other.tolist()))
    listed_in = [np.eye(12, dtype=int)[lists].sum(axis=1) for lists in (one, other)]
    if listed < 12:
        assert neighbour_overlap(one, other) == pytest.approx(
            jaccard_score(*listed_in, average="samples", zero_division=0)
        )


@given(rows=st.integers(1, 9), listed=st.integers(1, 12), seed=st.integers(0, 99))
def test_neighbour_overlap_depends_on_no_name_or_order(rows: int, listed: int, seed: int) -> None:
    one, other = neighbours(rows, listed, seed), neighbours(rows, listed, seed + 1)
    generator = np.random.default_rng(seed)
    order, names = generator.permutation(rows), generator.permutation(12)
    found = neighbour_overlap(one, other)
    assert 0 <= found <= 1
    assert neighbour_overlap(names[one][order], names[other][order]) == pytest.approx(found)
    assert neighbour_overlap(other, one) == pytest.approx(found)
    assert neighbour_overlap(one, one[:, ::-1]) == 1
    assert neighbour_overlap(one, one + 12) == 0


def test_neighbour_overlap_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.from_numpy(neighbours(50, 5, 0)), torch.from_numpy(neighbours(50, 5, 1))
    whole = neighbour_overlap(one, other)
    monkeypatch.setattr(change, "BLOCK", 15)  # three rows
    assert neighbour_overlap(one, other) == pytest.approx(whole, rel=1e-12)
    one[40, 2] = one[40, 0]
    with pytest.raises(DataError, match="list 40 holds a row twice"):
        neighbour_overlap(one, other)


def test_neighbour_overlap_of_random_lists_is_what_its_docstring_says() -> None:
    found = neighbour_overlap(neighbours(3000, 10, 0, among=200), neighbours(3000, 10, 1, among=200))
    assert found == pytest.approx(10 / (2 * 200 - 10), rel=0.1)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([[0, 1]], [[0, 1, 2]], r"neighbours of shapes \(1, 2\) and \(1, 3\); as many of the same rows"),
        ([[0], [1]], [[0]], r"neighbours of shapes \(2, 1\) and \(1, 1\)"),
        ([0, 1], [0, 1], r"neighbours in one view: int64 of shape \(2,\) given"),
        ([[0]], [[0.0]], "neighbours in the other: float64 of shape"),
        (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int64), r"shape \(0, 3\) given"),
        (torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64), r"shape \(3, 0\) given"),
        ([[3, -1]], [[0, 1]], "neighbours in one view: row -1 given; rows count from 0"),
        ([[0, 1], [1, 2]], [[0, 1], [2, 2]], "neighbours in the other: list 1 holds a row twice"),
    ],
)
def test_neighbour_overlap_refuses_bad_lists(one: list[list[int]], other: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        neighbour_overlap(one, other)
