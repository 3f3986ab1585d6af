from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix

from uda_reid.errors import DataError
from uda_reid.ops.quality.contingency import check_pseudo_labels, column, contingency, noise_apart, two_columns

columns = st.lists(st.tuples(st.integers(-2, 4), st.integers(-2, 4)), min_size=1, max_size=30)


@given(rows=columns)
def test_contingency_holds_the_cells_of_the_dense_table(rows: list[tuple[int, int]]) -> None:
    first, second = np.array(rows).T
    table = contingency(first, second)
    dense = contingency_matrix(first, second)
    np.testing.assert_array_equal(table.first_total, dense.sum(axis=1))
    np.testing.assert_array_equal(table.second_total, dense.sum(axis=0))
    np.testing.assert_array_equal(table.both, dense[table.first, table.second])
    assert table.both.sum() == len(rows) and table.both.min() >= 1


def test_contingency_of_no_rows_has_no_cells() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert [len(part) for part in contingency(nothing, nothing)] == [0] * 5
    assert contingency(nothing, nothing).commonest == 0


@pytest.mark.parametrize(
    "labels", [[2, -1], (2, -1), np.array([2, -1], dtype=np.int8), torch.tensor([2, -1], dtype=torch.int32)]
)
def test_column_is_int64_whatever_holds_it(labels: list[int]) -> None:
    found = column(labels, "labels")
    assert found.dtype == np.int64
    assert found.tolist() == [2, -1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5], r"labels: float64 of shape \(1,\) given, integers \(N,\) expected"),
        ([[1, 2]], r"labels: int64 of shape \(1, 2\) given"),
        (3, r"labels: int64 of shape \(\) given"),
        ([True], "labels: bool of shape"),
        (["a"], "labels: <U1 of shape"),
        (torch.ones(2, requires_grad=True), "labels: float32 of shape"),
    ],
)
def test_column_refuses_what_is_no_column_of_integers(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        column(labels, "labels")


def test_two_columns_of_different_lengths_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="3 rows of clusters but 2 of cams; one of each per row is needed"):
        two_columns([0, 1, 2], [0, 1], names=("clusters", "cams"))


def test_pseudo_labels_start_at_minus_one() -> None:
    check_pseudo_labels(np.array([-1, 0]), "labels")
    check_pseudo_labels(np.zeros(0, dtype=np.int64), "labels")
    with pytest.raises(DataError, match="labels: label -3 given; clusters count from 0, and -1 marks unused rows"):
        check_pseudo_labels(np.array([-3, 0, -2]), "labels")


@given(labels=st.lists(st.integers(-1, 3), max_size=20))
def test_noise_apart_joins_no_unused_row_to_any_other(labels: list[int]) -> None:
    given_labels = np.array(labels, dtype=np.int64)
    apart = noise_apart(given_labels)
    noise = given_labels < 0
    np.testing.assert_array_equal(apart[~noise], given_labels[~noise])
    assert len(np.unique(apart)) == noise.sum() + len(np.unique(given_labels[~noise]))
