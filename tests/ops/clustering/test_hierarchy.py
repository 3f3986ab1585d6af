from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN

from tests import oracles
from tests.ops.clustering.graphs import GRAPHS, full, graph_of, random_graph
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering import hdbscan_graph
from uda_reid.ops.clustering.graph import neighbour_distances, number_by_first_row
from uda_reid.ops.clustering.hierarchy import Selection, walk

SELECTIONS: tuple[Selection, ...] = ("eom", "leaf")


def of_the_full_matrix(graph: csr_array, size: int, samples: int, selection: Selection = "eom") -> list[int]:
    """The labels of scikit-learn on N x N distances, renumbered; all noise where it refuses."""
    matrix = full(graph).astype(np.float64)
    if len(matrix) < max(2, samples):
        return [-1] * len(matrix)
    machine = HDBSCAN(
        min_cluster_size=size,
        min_samples=samples,
        metric="precomputed",
        cluster_selection_method=selection,
        copy=True,
    )
    found: list[int] = number_by_first_row(machine.fit(matrix).labels_).tolist()
    return found


@given(GRAPHS, st.integers(2, 6), st.integers(1, 6), st.sampled_from(SELECTIONS))
def test_hdbscan_graph_equals_scikit_learn_on_the_full_matrix(
    graph: csr_array, size: int, samples: int, selection: Selection
) -> None:
    labels = hdbscan_graph(graph, min_cluster_size=size, min_samples=samples, selection=selection)
    assert labels.tolist() == of_the_full_matrix(graph, size, samples, selection)


@given(GRAPHS, st.integers(1, 6))
def test_the_walk_goes_on_to_the_nearest_row_and_of_equals_to_the_lowest(graph: csr_array, samples: int) -> None:
    rows = graph.shape[0]
    cores = neighbour_distances(graph, samples - 1) if samples > 1 else np.zeros(rows, dtype=np.float32)
    matrix = [[*line, *[1.0] * samples] for line in full(graph).tolist()]  # so many rows more, at 1 from all
    matrix += [[float(one != other) for other in range(rows + samples)] for one in range(rows, rows + samples)]
    order, lengths = walk(graph, cores)
    expected = oracles.nearest_walk(matrix, samples)
    assert order.tolist() == expected[0][:rows]
    assert lengths.tolist() == expected[1][: rows - 1]


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("density", [0.003, 0.01, 0.05])
def test_hdbscan_graph_equals_scikit_learn_on_many_rows(density: float, tied: bool, samples: int) -> None:
    graph = random_graph(300, density=density, tied=tied)
    for selection in SELECTIONS:
        labels = hdbscan_graph(graph, min_cluster_size=4, min_samples=samples, selection=selection)
        assert labels.tolist() == of_the_full_matrix(graph, 4, samples, selection)


def cliques(sizes: list[int], distance: float) -> csr_array:
    starts = np.cumsum([0, *sizes]).tolist()
    places = [(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    return graph_of(sum(sizes), {(i, j): distance for place in places for i in place for j in place if i < j})


@pytest.mark.parametrize(
    "graph",
    [
        graph_of(40, {}),
        cliques([40], 0.5),
        cliques([40], 0.0),
        cliques([8] * 5, 0.5),
        cliques([8] * 5, 0.0),
        cliques([2, 3, 4, 5, 6, 7], 0.3),  # joined at 1 in one order or another
        cliques([1] * 20 + [6, 6, 2, 3], 0.3),
        cliques([5] * 8, 1.0),  # stored, but no nearer than absent pairs
        graph_of(40, {(row, row + 1): 0.5 for row in range(39)}),
        graph_of(40, {(0, row): 0.5 for row in range(1, 40)}),
        graph_of(40, {(row, row + 1): 0.1 + 0.02 * row for row in range(39)}),
        # Two groups and a row between them that is as near to either: it belongs to the one that it joins first.
        graph_of(9, {**{(i, j): 0.1 for i in range(4) for j in range(i)}, **{(8, i): 0.5 for i in range(8)}}
                 | {(i, j): 0.1 for i in range(4, 8) for j in range(4, i)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("samples", [1, 2, 4, 7])
def test_hdbscan_graph_equals_scikit_learn_whatever_the_ties(graph: csr_array, samples: int) -> None:
    for size in (2, 4, 6):
        for selection in SELECTIONS:
            labels = hdbscan_graph(graph, min_cluster_size=size, min_samples=samples, selection=selection)
            assert labels.tolist() == of_the_full_matrix(graph, size, samples, selection)


def mutual_reachability(graph: csr_array, samples: int) -> npt.NDArray[np.float64]:
    matrix = full(graph).astype(np.float64)
    cores = np.sort(matrix, axis=1)[:, samples - 1]
    reach: npt.NDArray[np.float64] = np.maximum(np.maximum(matrix, cores[:, None]), cores)
    return reach


def groups_of(reach: npt.NDArray[np.float64]) -> list[set[int]]:
    """The rows that come together below 1, step by step."""
    groups: list[set[int]] = []
    for row in range(len(reach)):
        if not any(row in group for group in groups):
            group, front = {row}, [row]
            while front:
                fresh = set(np.flatnonzero(reach[front.pop()] < 1).tolist()) - group
                group |= fresh
                front += fresh
            groups.append(group)
    return groups


@given(GRAPHS, st.integers(2, 6), st.integers(1, 6), st.sampled_from(SELECTIONS))
def test_with_ties_apart_no_cluster_reaches_beyond_what_is_connected(
    graph: csr_array, size: int, samples: int, selection: Selection
) -> None:
    labels = hdbscan_graph(graph, min_cluster_size=size, min_samples=samples, selection=selection, ties="apart")
    if graph.shape[0] < samples:
        assert labels.tolist() == [-1] * len(labels)
        return
    groups = groups_of(mutual_reachability(graph, samples))
    large = [group for group in groups if len(group) >= size]
    clusters = [set(torch.nonzero(labels == number).flatten().tolist()) for number in range(int(labels.max()) + 1)]
    assert all(len(cluster) >= size and any(cluster <= group for group in large) for cluster in clusters)
    if len(large) > 1:  # one alone would be the root, which is no cluster
        assert all(any(cluster <= group for cluster in clusters) for group in large)


@given(
    st.builds(random_graph, st.integers(2, 40), density=st.sampled_from([0.02, 0.05, 0.1]), seed=st.integers(0, 9999)),
    st.integers(2, 5),
    st.integers(1, 2),
    st.sampled_from(SELECTIONS),
)
def test_ties_apart_are_those_of_a_full_matrix_in_which_small_groups_are_farther_off(
    graph: csr_array, size: int, samples: int, selection: Selection
) -> None:
    # With two samples or fewer, and distances that all differ, there are no ties but those at 1.
    reach = mutual_reachability(graph, samples)
    for step, group in enumerate(groups_of(reach), start=2):
        inside = np.isin(np.arange(len(reach)), list(group))
        between = inside[:, None] != inside
        reach[between] = np.maximum(reach[between], 1 + 1e-9 * (step if len(group) < size else 1))
    np.fill_diagonal(reach, 0)
    machine = HDBSCAN(
        min_cluster_size=size, min_samples=1, metric="precomputed", cluster_selection_method=selection, copy=True
    )
    labels = hdbscan_graph(graph, min_cluster_size=size, min_samples=samples, selection=selection, ties="apart")
    assert torch.equal(labels, number_by_first_row(machine.fit(reach).labels_))


def test_hdbscan_graph_finds_people_and_leaves_out_who_is_alone() -> None:
    graph = cliques([6, 1, 5, 7, 1, 2, 3, 1], 0.4)
    labels = hdbscan_graph(graph, ties="apart")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0] * 6 + [-1] + [1] * 5 + [2] * 7 + [-1] * 7
    assert torch.equal(hdbscan_graph(graph, min_samples=4, ties="apart"), labels)
    # As scikit-learn joins ties, the row alone after the first group is counted to it.
    assert hdbscan_graph(graph).tolist()[:7] == of_the_full_matrix(graph, 4, 4)[:7] == [0] * 7


def test_ties_apart_find_all_of_many_groups_among_rows_alone() -> None:
    graph = cliques([10] * 100 + [1] * 1000, 0.4)
    assert int(hdbscan_graph(graph).max()) > 100
    labels = hdbscan_graph(graph, ties="apart")
    assert labels.tolist() == [number for number in range(100) for _ in range(10)] + [-1] * 1000


def test_hdbscan_graph_leaves_the_graph_as_it_is() -> None:
    graph = random_graph(30, density=0.3)
    before = graph.copy()
    hdbscan_graph(graph)
    assert np.array_equal(graph.data, before.data)
    assert np.array_equal(graph.indices, before.indices)


def test_too_few_rows_are_noise() -> None:
    assert hdbscan_graph(graph_of(1, {})).tolist() == [-1]
    assert hdbscan_graph(graph_of(2, {(0, 1): 0.0})).tolist() == [-1, -1]
    assert hdbscan_graph(graph_of(3, {(0, 1): 0.2}), min_cluster_size=2, min_samples=4).tolist() == [-1, -1, -1]


def test_hdbscan_graph_refuses_bad_input() -> None:
    graph = graph_of(3, {(0, 1): 0.2})
    for size, samples in ((1, None), (4, 0)):
        with pytest.raises(
            RecipeError, match=r"^HDBSCAN with min_cluster_size \d and min_samples \d cannot be; use at l"
        ):
            hdbscan_graph(graph, min_cluster_size=size, min_samples=samples)
    unknown: Any = "most"
    with pytest.raises(
        RecipeError, match=r"^HDBSCAN with selection 'most' and ties 'scikit-learn' is unknown; use eom"
    ):
        hdbscan_graph(graph, selection=unknown)
    with pytest.raises(RecipeError, match=r"^HDBSCAN with selection 'eom' and ties 'most' is unknown; use eom or leaf"):
        hdbscan_graph(graph, ties=unknown)
    with pytest.raises(DataError, match="the graph holds distances that are NaN"):
        hdbscan_graph(graph_of(3, {(0, 1): np.nan}))
