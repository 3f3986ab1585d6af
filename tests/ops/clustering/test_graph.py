from __future__ import annotations

import math
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array, csr_matrix
from sklearn.cluster import DBSCAN

from tests import oracles
from tests.ops.clustering.graphs import GRAPHS, LEVELS, full, graph_of, random_graph
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering import (
    check_graph,
    dbscan,
    dbscan_graph,
    distance_curve,
    graph,
    graph_eps,
    knee_eps,
    nearest_pairs_eps,
    strips_eps,
)
from uda_reid.ops.clustering.graph import LIMIT, EpsRule, knee, neighbour_distances

EPS = st.sampled_from([1e-9, 0.25, 0.3, 0.6, 0.75, 0.9, 0.95, LIMIT])


# ---- dbscan_graph --------------------------------------------------------


@given(GRAPHS, EPS, st.integers(1, 6))
def test_dbscan_graph_equals_scikit_learn_and_the_definition(given: csr_array, eps: float, samples: int) -> None:
    matrix = full(given)
    labels = dbscan_graph(given, eps=eps, min_samples=samples).tolist()
    found = DBSCAN(eps=eps, min_samples=samples, metric="precomputed").fit_predict(matrix)
    assert labels == found.tolist()
    assert labels == oracles.density_clusters(matrix.tolist(), float(np.float32(eps)), samples)


@given(GRAPHS, st.integers(1, 6))
def test_dbscan_graph_of_radius_zero_joins_copies(given: csr_array, samples: int) -> None:
    labels = dbscan_graph(given, eps=0.0, min_samples=samples).tolist()
    assert labels == oracles.density_clusters(full(given).tolist(), 0.0, samples)


@pytest.mark.parametrize("tied", [False, True])
def test_dbscan_graph_equals_scikit_learn_on_many_rows(tied: bool) -> None:
    given = random_graph(400, density=0.01, tied=tied)
    for eps in LEVELS[1:]:
        for samples in (2, 4):
            found = DBSCAN(eps=eps, min_samples=samples, metric="precomputed").fit_predict(full(given))
            assert dbscan_graph(given, eps=eps, min_samples=samples).tolist() == found.tolist()


def test_dbscan_graph_equals_dbscan_of_features() -> None:
    features = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) / 2
    near: list[list[float]] = torch.cdist(features, features).tolist()
    pairs = {(one, other): near[one][other] for one, other in combinations(range(200), 2)}
    labels = dbscan_graph(graph_of(200, pairs), eps=0.07)
    assert labels.dtype == torch.int64
    assert int(labels.max()) > 5
    assert torch.equal(labels, dbscan(features, eps=0.07))


def test_dbscan_graph_counts_distances_equal_to_eps_as_float32() -> None:
    assert float(np.float32(0.6)) > 0.6
    for distance, expected in ((0.6, 0), (float(np.nextafter(np.float32(0.6), np.float32(1))), -1)):
        labels = dbscan_graph(graph_of(2, {(0, 1): distance}), eps=0.6, min_samples=2)
        assert labels.tolist() == [expected, expected]


def test_dbscan_graph_counts_a_row_itself_whatever_is_stored_of_it() -> None:
    for own in ({}, {(0, 0): 0.0}, {(0, 0): 0.9}):
        given = graph_of(3, {(0, 1): 0.2, **own})
        assert dbscan_graph(given, eps=0.5, min_samples=2).tolist() == [0, 0, -1]
        assert dbscan_graph(given, eps=0.5, min_samples=3).tolist() == [-1, -1, -1]
        assert dbscan_graph(given, eps=0.5, min_samples=1).tolist() == [0, 0, 1]


def test_a_row_between_two_clusters_belongs_to_the_first() -> None:
    # Rows 2 and 3 and rows 0 and 5 are cores of two clusters; row 1 is none, near to a core of either.
    near = [(0, 5), (0, 6), (5, 6), (2, 3), (2, 4), (3, 4), (1, 0), (1, 2), (0, 7), (5, 7), (2, 8), (3, 8)]
    labels = dbscan_graph(graph_of(9, dict.fromkeys(near, 0.5)), eps=0.5, min_samples=4).tolist()
    assert labels == [0, 0, 1, 1, 1, 0, 0, 0, 1]


def test_results_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_graph(120, density=0.02, tied=True)
    whole = dbscan_graph(given, eps=0.6, min_samples=3)
    curve, pairs, knee = distance_curve(given, 3), nearest_pairs_eps(given, share=0.02), knee_eps(given)
    assert int(whole.max()) > 0
    for entries in (1, 7, 100):
        monkeypatch.setattr(graph, "ENTRIES", entries)
        assert torch.equal(dbscan_graph(given, eps=0.6, min_samples=3), whole)
        assert np.array_equal(distance_curve(given, 3), curve)
        assert nearest_pairs_eps(given, share=0.02) == pairs
        assert knee_eps(given) == knee


@pytest.mark.parametrize("rule", ["knee", "pairs"])
@pytest.mark.parametrize("height", [1, 7, 120])
def test_rules_see_strips_as_the_whole(rule: EpsRule, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_graph(120, density=0.1, tied=False)
    whole = graph_eps(given, rule=rule)
    assert 0 < whole < LIMIT
    monkeypatch.setattr(graph, "ENTRIES", 5)  # what is farther than the nearest pairs is forgotten on the way
    strips = [given[first : first + height] for first in range(0, 120, height)]
    assert strips_eps(strips, rule=rule) == whole


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_a_graph_without_entries_is_noise(rows: int) -> None:
    given = graph_of(rows, {})
    check_graph(given)
    assert dbscan_graph(given, eps=0.9, min_samples=2).tolist() == [-1] * rows
    assert dbscan_graph(given, eps=0.9, min_samples=1).tolist() == list(range(rows))
    assert distance_curve(given, 1).tolist() == [1.0] * rows
    assert knee_eps(given) == 0.0
    assert nearest_pairs_eps(given) == (LIMIT if rows > 1 else 0.0)


# ---- the radius ----------------------------------------------------------


@given(GRAPHS, st.integers(1, 6))
def test_distance_curve_is_the_sorted_distances_to_the_kth_other_row(given: csr_array, k: int) -> None:
    matrix = full(given).tolist()
    expected = [sorted(line[:row] + line[row + 1 :] + k * [1.0])[k - 1] for row, line in enumerate(matrix)]
    assert neighbour_distances(given, k).tolist() == expected
    assert distance_curve(given, k).tolist() == sorted(expected)
    assert distance_curve(given, k).dtype == np.float32


def test_distance_curve_takes_a_negative_zero_for_zero() -> None:
    assert distance_curve(graph_of(3, {(0, 1): -0.0, (0, 2): 0.5}), 1).tolist() == [0.0, 0.0, 0.5]


@given(GRAPHS, st.sampled_from([1e-6, 1.6e-3, 0.1, 0.5, 1.0]))
def test_nearest_pairs_eps_is_the_mean_of_the_nearest_pairs(given: csr_array, share: float) -> None:
    matrix = full(given)
    apart = sorted(float(matrix[pair]) for pair in combinations(range(len(matrix)), 2) if matrix[pair] > 0)
    nearest = apart[: max(1, round(share * len(apart)))]
    expected = min(float(np.mean(nearest)), LIMIT) if apart else 0.0
    assert nearest_pairs_eps(given, share=share) == pytest.approx(expected, rel=1e-9)


def test_knee_eps_is_where_the_outliers_begin() -> None:
    # 30 rows in pairs at 0.2 to 0.25, ten farther and farther from one of them, twenty beside nothing.
    pairs = {(row, row + 1): 0.2 + 0.002 * row for row in range(0, 30, 2)}
    pairs |= {(0, 30 + step): 0.3 + 0.06 * step for step in range(10)}
    given = graph_of(60, pairs)
    assert knee_eps(given, min_samples=2) == pytest.approx(0.2 + 0.002 * 28)
    assert knee_eps(given, min_samples=1) == knee_eps(given, min_samples=2)
    assert graph_eps(given, rule="knee", min_samples=2) == knee_eps(given, min_samples=2)
    assert graph_eps(given) == graph_eps(given, rule="pairs") == nearest_pairs_eps(given)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3], 0.3),
        ([0.1, 0.4], 0.1),
        ([0.5] * 7, 0.5),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.3),  # a line
        ([0.1, 0.4, 0.5, 0.55, 0.56], 0.5),  # an arch
        ([0.1, 0.1, 0.1, 0.9], 0.1),
        ([0.1, 0.3, 0.31, 0.32, 0.33, 0.9], 0.33),  # an arch, then a knee
    ],
)
def test_knee_of_any_curve_is_one_of_its_values(values: list[float], expected: float) -> None:
    assert knee(np.array(values, dtype=np.float32)) == np.float32(expected)


def test_knee_eps_leaves_out_copies_and_stored_ones() -> None:
    near = {(0, 1): 0.3, (2, 3): 0.32, (4, 5): 0.8}
    more = {**near, (6, 7): 0.0, (8, 9): 0.0, (10, 11): 1.0, (12, 13): 1.0}
    assert knee_eps(graph_of(6, near), min_samples=2) == np.float32(0.32)
    assert knee_eps(graph_of(14, more), min_samples=2) == np.float32(0.32)
    assert knee_eps(graph_of(4, {(0, 1): 0.0}), min_samples=2) == 0.0


def test_a_row_at_the_knee_is_a_core() -> None:
    given = random_graph(100, density=0.1)
    eps = knee_eps(given, min_samples=3)
    assert eps in distance_curve(given, 2)
    assert ((dbscan_graph(given, eps=eps, min_samples=3) >= 0).numpy() >= (neighbour_distances(given, 2) <= eps)).all()


def test_knee_eps_ignores_how_many_rows_are_out_of_reach() -> None:
    near = {(2 * row, 2 * row + 1): 0.2 + 0.6 * (row / 20) ** 4 for row in range(20)}
    assert knee_eps(graph_of(40, near), min_samples=2) == knee_eps(graph_of(4000, near), min_samples=2)


# ---- errors --------------------------------------------------------------


def line(*distances: float) -> csr_array:
    return graph_of(len(distances) + 1, {(row, row + 1): distance for row, distance in enumerate(distances)})


def test_check_graph_refuses_what_is_no_graph() -> None:
    good = line(0.2, 0.4)
    check_graph(good)
    for other in (good.toarray(), csr_matrix(good), csc_array(good)):
        with pytest.raises(DataError, match=f"must be a scipy.sparse.csr_array, not a {type(other).__name__}$"):
            check_graph(other)
    shapes: tuple[Any, ...] = (good[:2], good.astype(np.float64), csr_array((0, 0), dtype=np.float32))
    for broken in shapes:
        what = re.escape(f"a float32 (N, N) matrix with a row, not {broken.shape} {broken.dtype}")
        with pytest.raises(DataError, match=what):
            check_graph(broken)
    for value in (math.nan, -0.1, 1.01, math.inf):
        with pytest.raises(DataError, match=r"distances that are NaN, below 0 or above 1$"):
            check_graph(line(0.2, value))


def test_check_graph_refuses_unsorted_and_repeated_columns() -> None:
    for columns in ([1, 2, 2, 0, 0, 1], [1, 1, 0, 0, 0, 1]):
        given = csr_array((np.full(6, 0.5, np.float32), columns, [0, 2, 4, 6]), (3, 3))
        given.indices[:2] = columns[1::-1] if columns[0] != columns[1] else columns[:2]
        with pytest.raises(DataError, match="columns must be sorted, each once per row"):
            check_graph(given)


def test_check_graph_refuses_a_pair_stored_once_or_with_two_distances() -> None:
    given = line(0.2, 0.4)
    given.data[1] = 0.3
    with pytest.raises(DataError, match=r"not symmetric; store every pair twice, with the same distance$"):
        check_graph(given)
    once = csr_array((np.full(2, 0.2, np.float32), [1, 2], [0, 1, 2, 2]), (3, 3))
    with pytest.raises(DataError, match="the graph is not symmetric"):
        check_graph(once)


def test_every_function_of_a_graph_checks_it() -> None:
    broken = line(0.2, math.nan)
    for run in (lambda: dbscan_graph(broken, eps=0.5), lambda: nearest_pairs_eps(broken), lambda: knee_eps(broken)):
        with pytest.raises(DataError, match="the graph holds distances that are NaN"):
            run()


def test_options_of_graphs_out_of_range_are_refused() -> None:
    given = line(0.2, 0.4)
    for eps in (-0.1, 1.0, 0.99999999, math.nan, math.inf):  # the third is 1 as float32
        with pytest.raises(RecipeError, match=rf"eps {eps} is out of range on a graph; use from 0 to below 1"):
            dbscan_graph(given, eps=eps)
    with pytest.raises(RecipeError, match="min_samples 0 cannot be"):
        dbscan_graph(given, eps=0.5, min_samples=0)
    with pytest.raises(RecipeError, match="min_samples 0 cannot be"):
        knee_eps(given, min_samples=0)
    with pytest.raises(RecipeError, match=r"a share of 0.0 of the pairs is out of range"):
        nearest_pairs_eps(given, share=0.0)
    with pytest.raises(RecipeError, match="no neighbour of rank 0; count from 1"):
        distance_curve(given, 0)
    unknown: Any = "elbow"
    with pytest.raises(RecipeError, match="the rule 'elbow' for eps is unknown; use pairs or knee"):
        graph_eps(given, rule=unknown)
