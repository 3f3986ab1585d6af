from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.ops.jaccard.cases import (
    LINE,
    OF_0_AND_1,
    READINGS,
    assert_is_the_oracles,
    between,
    clusters,
    drawn,
    each_reading,
    encoded,
    full,
    sets,
    signs,
)
from uda_reid.errors import RecipeError
from uda_reid.ops.jaccard import Reading, encode_features, jaccard, jaccard_strips


@each_reading
def test_jaccard_distances_of_four_points_worked_out_on_paper(reading: Reading) -> None:
    size = 2 if reading == "spcl" else 1
    matrix = assert_is_the_oracles(between(LINE), size, 1, reading)
    expected = np.ones((4, 4))
    np.fill_diagonal(expected, 0)
    expected[0, 1] = expected[1, 0] = OF_0_AND_1[reading]
    np.testing.assert_allclose(matrix, expected, atol=2e-6, rtol=0)


# against the loops


def test_jaccard_distances_of_2000_small_cases_equal_the_loops() -> None:
    numbers = np.random.default_rng(0)
    for case in range(2000):
        rows = int(numbers.integers(1, 13))
        points = {
            "any": numbers.normal(size=(rows, 3)),
            "lattice": numbers.integers(0, 3, (rows, 2)),
            "two places": numbers.integers(0, 2, (rows, 1)),
            "duplicates": numbers.integers(0, 4, (3, 2))[numbers.integers(0, 3, rows)],
            "isolated": numbers.integers(0, 2, (rows, 2)) + 5 * numbers.integers(0, 2, (rows, 1)),
            "identical": np.ones((rows, 1)),
        }
        kind = list(points)[case % len(points)]
        k1, k2 = int(numbers.choice([1, 2, 3, 4, 5, 6, 7, 20])), int(numbers.choice([1, 2, 3, 5, 20]))
        reading = READINGS[case // len(points) % 3]
        try:
            assert_is_the_oracles(between(points[kind]), k1, k2, reading)
        except AssertionError as error:
            raise AssertionError(f"case {case}: {kind}, {points[kind].tolist()}, {k1}, {k2}, {reading}") from error


@settings(max_examples=200)
@given(
    points=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=16),
    k1=st.integers(1, 18),
    k2=st.integers(1, 18),
    reading=st.sampled_from(READINGS),
)
def test_jaccard_distances_of_points_on_a_lattice_equal_the_loops(
    points: list[tuple[int, int]], k1: int, k2: int, reading: Reading
) -> None:
    assert_is_the_oracles(between(points), k1, k2, reading)


@each_reading
def test_jaccard_distances_of_clusters_equal_the_loops(reading: Reading) -> None:
    # Rows overlap with few others here, and with many: the loops treat these differently.
    few = assert_is_the_oracles(between(clusters(100, 8, 25, spread=0.2)), 3, 2, reading)
    assert np.median((few < 1).sum(axis=1)) < 100 / 16
    many = assert_is_the_oracles(between(clusters(50, 8, 3)), 12, 6, reading)
    assert (many < 1).sum(axis=1).min() > 50 / 16


def test_jaccard_distances_of_long_encodings_keep_their_digits() -> None:
    distances = between(torch.nn.functional.normalize(clusters(200, 8, 3)))
    encoding = encoded(distances, 100, 20, "zhong-squared")
    assert np.diff(encoding.weights.indptr).mean() > 130
    weights = np.array(oracles.reciprocal_weights((2 * distances.double()).tolist(), 100, 20, "zhong-squared"))
    smaller = np.minimum(weights[:, None], weights[None]).sum(axis=2)
    larger = np.maximum(weights[:, None], weights[None]).sum(axis=2)
    np.testing.assert_allclose(full(jaccard(encoding)), 1 - smaller / larger, atol=1e-6, rtol=0)


# what is kept


def test_jaccard_distances_are_symmetric_sorted_and_within_0_and_1() -> None:
    for reading in READINGS:
        distances = jaccard(encode_features(clusters(300, 16, 12), reading=reading, k1=15, k2=4))
        assert distances.dtype == np.float32
        assert distances.indices.dtype == np.int32
        assert distances.has_canonical_format
        matrix = full(distances)
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(matrix.diagonal(), 0)
        assert (distances.data >= 0).all()
        assert (distances.data <= 1).all()
        assert 0.01 < (matrix < 1).mean() < 0.9


@pytest.mark.parametrize("most", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_jaccard_keeps_what_is_near_and_next_to_nothing_else(most: float) -> None:
    for features in (clusters(250, 8, 20), signs(200)):
        encoding = encode_features(features, k1=12, k2=3)
        every = jaccard(encoding)
        some = jaccard(encoding, most=most)
        here, there = full(every), full(some)
        kept = np.zeros(here.shape, bool)
        kept[np.repeat(np.arange(len(here)), np.diff(some.indptr)), some.indices] = True
        assert kept[(here <= most) & (here < 1)].all()
        assert not kept[here > most + 1e-5].any()
        np.testing.assert_array_equal(there[kept], here[kept])
        assert some.has_canonical_format
        if most < 1:
            assert some.nnz < every.nnz


@pytest.mark.parametrize("rows", [0, 1, 17, 90])
def test_jaccard_of_the_first_rows_is_the_top_of_the_whole(rows: int) -> None:
    encoding = encode_features(clusters(90, 8, 10), k1=8, k2=3)
    found = jaccard(encoding, rows=rows, most=0.8)
    assert found.shape == (rows, 90)
    np.testing.assert_array_equal(found.toarray(), jaccard(encoding, most=0.8)[:rows].toarray())


def test_empty_encodings_are_at_distance_1_from_everything_and_not_stored() -> None:
    # Six equal images and one apart: each of the six has the first two as its neighbours, who have none but each other.
    encoding = encoded(between([0, 0, 0, 0, 0, 0, 9]), 2, 1, "spcl")
    assert sets(encoding) == [[0, 1], [0, 1], [], [], [], [], [6]]
    distances = jaccard(encoding)
    assert np.diff(distances.indptr).tolist() == [2, 2, 0, 0, 0, 0, 1]
    assert_is_the_oracles(between([0, 0, 0, 0, 0, 0, 9]), 2, 1, "spcl")
    every_one = encoded(between(np.zeros(5)), 1, 1, "spcl")
    assert jaccard(every_one).nnz == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": -0.1}, "^distances of at most -0.1 cannot be; use 0 to 1$"),
        ({"most": 1.1}, "^distances of at most 1.1 cannot be"),
        ({"most": math.nan}, "^distances of at most nan cannot be"),
        ({"rows": -1}, "^distances of -1 rows; use 0 to 5$"),
        ({"rows": 6}, "^distances of 6 rows"),
    ],
)
def test_jaccard_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    encoding = encode_features(drawn(5, 3))
    with pytest.raises(RecipeError, match=message):
        jaccard(encoding, **options)


@pytest.mark.parametrize("height", [1, 7, 40, 64])
@pytest.mark.parametrize("most", [0.4, 1.0])
def test_strips_are_the_rows_of_the_whole(height: int, most: float) -> None:
    encoding = encode_features(drawn(40, 3), k1=6, k2=3)
    whole = jaccard(encoding, most=most)
    strips = list(jaccard_strips(encoding, most=most, height=height))
    assert [strip.shape[0] for strip in strips] == [min(height, 40 - first) for first in range(0, 40, height)]
    for name in ("data", "indices"):
        assert np.array_equal(np.concatenate([getattr(strip, name) for strip in strips]), getattr(whole, name))
    assert np.array_equal(np.concatenate([np.diff(strip.indptr) for strip in strips]), np.diff(whole.indptr))
    with pytest.raises(RecipeError, match=r"^distances of at most 1\.5 cannot be; use 0 to 1$"):
        next(jaccard_strips(encoding, most=1.5))
