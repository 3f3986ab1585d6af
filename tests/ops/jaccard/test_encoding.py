from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.ops.jaccard.cases import (
    BAD_OPTIONS,
    LINE,
    assert_is_the_oracles,
    between,
    clusters,
    drawn,
    each_reading,
    encoded,
    full,
    of_features,
    sets,
    signs,
    threads,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.jaccard import Reading, encode_features, jaccard, needed, overlaps
from uda_reid.ops.neighbours import neighbours


@each_reading
def test_averages_over_two_neighbours_worked_out_on_paper(reading: Reading) -> None:
    # 0 and 1 are each other's nearest: the same mean (a, b), a + b = 1. 2 averages itself with 1: half of 1's weights
    # and 1/2 of itself; 3 averages itself with 2: half and half.
    matrix = assert_is_the_oracles(between(LINE), 2 if reading == "spcl" else 1, 2, reading)
    # 2 and 3 share 1/2 of 2's; the larger ones add up to 3/2. 0 and 2 share half of 1's (a', b'): as 1's are (a', b')
    # and the mean's (a, b) are more than half of them, 1/2 in all; the larger ones are 1 and the 1/2 of 2 itself.
    expected = [[0, 0, 2 / 3, 1], [0, 0, 2 / 3, 1], [2 / 3, 2 / 3, 0, 2 / 3], [1, 1, 2 / 3, 0]]
    np.testing.assert_allclose(matrix, expected, atol=2e-6, rtol=0)


def test_half_sets_join_where_more_than_two_thirds_are_shared() -> None:
    # Points 0, 1, 3 and 4; the lists of three are 0: [0, 1, 2], 1: [1, 0, 2], 2: [2, 3, 1], 3: [3, 2, 1]. Reciprocal
    # are 0: {0, 1}, 1: {0, 1, 2}, 2: {1, 2, 3}, 3: {2, 3}; half sets have round(3/2) + 1 = 3 columns and are the same.
    # For 0, candidate 1 brings {0, 1, 2}, two thirds of which are in {0, 1}: not more, so that 2 does not join.
    encoding = encoded(between([0, 1, 3, 4]), 3, 1, "spcl")
    assert sets(encoding) == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]


def test_half_of_five_is_two() -> None:
    # Points 0, 1, 3, 4, 9 and 10. Lists of five: 0: [0, 1, 2, 3, 4], 1: [1, 0, 2, 3, 4], 2: [2, 3, 1, 0, 4],
    # 3: [3, 2, 1, 0, 4], 4: [4, 5, 3, 2, 1], 5: [5, 4, 3, 2, 1]. Reciprocal are 0: {0, 1, 2, 3}, 1, 2 and 3: all but
    # 5, 4: all but 0, 5: {4, 5}. Half sets of round(5/2) + 1 = 3 columns: 0: {0, 1}, 1: {0, 1, 2}, 2: {1, 2, 3},
    # 3: {2, 3}, 4 and 5: {4, 5}. For 4, candidate 1 shares 1 and 2, no more than two thirds: 0 stays out. It would
    # join with 4 columns, where 1 brings {0, 1, 2, 3}. For 1, 2 and 3, candidate 4 shares half of {4, 5}: 5 stays out.
    encoding = encoded(between([0, 1, 3, 4, 9, 10]), 5, 1, "spcl")
    most = [0, 1, 2, 3, 4]
    assert sets(encoding) == [[0, 1, 2, 3], most, most, most, [1, 2, 3, 4, 5], [4, 5]]


def test_half_of_seven_is_four() -> None:
    # Point 1 is at 8; its seven nearest are all but 7, at 23, and it is among the seven nearest of each of them. Half
    # sets have round(7/2) + 1 = 5 columns: that of 6, at 19, is {4, 5, 6, 7}, of which 4, 5 and 6 are shared, so that
    # 7 joins. With 4 columns it would be {6, 7}, of which one is shared.
    encoding = encoded(between(np.array([0, 8, 12, 13, 14, 15, 19, 23]) / 8), 7, 1, "spcl")
    assert sets(encoding)[1] == [0, 1, 2, 3, 4, 5, 6, 7]


@each_reading
def test_images_far_from_everything_keep_finite_weights_and_distances(reading: Reading) -> None:
    # exp(-d) of these leaves float32 for spcl: such weights must neither be lost nor counted twice.
    distances = between(np.arange(40) * 20.0)
    encoding = encoded(distances, 40, 1, reading)
    assert (encoding.weights.data > 0).all()
    assert_is_the_oracles(distances / 1000, 40, 1, reading)
    weights = oracles.reciprocal_weights((2 * distances.double()).tolist(), 40, 1, reading)
    np.testing.assert_allclose(full(jaccard(encoding)), oracles.jaccard_distances(weights), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (20, 6), (2, 30), (100, 200)])
@each_reading
def test_encode_features_equals_the_loops_from_features_of_any_length(k1: int, k2: int, reading: Reading) -> None:
    features = clusters(60, 12, 8)
    weights = oracles.reciprocal_weights(of_features(features).tolist(), k1, k2, reading)
    expected = oracles.jaccard_distances(weights)
    lengths = torch.logspace(-5, 5, 60)[:, None]
    for given_features in (features, features * lengths, torch.nn.functional.normalize(features)):
        encoding = encode_features(given_features, k1=k1, k2=k2, reading=reading)
        assert encoding.reading == reading
        np.testing.assert_allclose(encoding.weights.toarray(), weights, atol=1e-6, rtol=0)
        np.testing.assert_allclose(full(jaccard(encoding)), expected, atol=2e-6, rtol=0)


@each_reading
def test_encode_features_equals_the_loops_with_ties_and_duplicates(reading: Reading) -> None:
    features = signs(60)
    squared = of_features(features)
    for k1, k2 in ((1, 1), (4, 1), (5, 3), (20, 6)):
        weights = oracles.reciprocal_weights(squared.tolist(), k1, k2, reading)
        matrix = full(jaccard(encode_features(features, k1=k1, k2=k2, reading=reading)))
        np.testing.assert_allclose(matrix, oracles.jaccard_distances(weights), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 3])
@each_reading
def test_encode_features_takes_fewer_images_than_neighbours(rows: int, reading: Reading) -> None:
    features = drawn(rows, 4)
    encoding = encode_features(features, reading=reading)
    weights = oracles.reciprocal_weights(of_features(features).tolist(), 30, 6, reading)
    np.testing.assert_allclose(encoding.weights.toarray(), weights, atol=1e-6, rtol=0)
    np.testing.assert_allclose(full(jaccard(encoding)), oracles.jaccard_distances(weights), atol=1e-6, rtol=0)


def test_fewer_images_than_neighbours_bring_the_last_one_into_no_other_set() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]])
    found = neighbours(features, 3, farthest=True)
    padded = torch.cat([found.rows[:, :2], torch.full((3, 1), -1, dtype=torch.int32)], dim=1)
    with pytest.raises(DataError, match="rows that are not from 0 to 2"):
        encode_features(features, k1=3, k2=1, found=replace(found, rows=padded))
    encoding = encode_features(features, k1=2, k2=1)
    assert sets(encoding) == [[0, 1], [0, 1], [2]]


def test_means_over_images_without_an_encoding_keep_the_distance_of_equals_at_0() -> None:
    # Four equal images, lists of two, means over three: the third has no weights, so that all rows sum to 2/3.
    matrix = assert_is_the_oracles(between(np.zeros(4)), 2, 3, "spcl")
    np.testing.assert_allclose(matrix, 0, atol=1e-6)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (6, 1), (6, 4)])
@each_reading
def test_weights_of_a_row_sum_to_1(k1: int, k2: int, reading: Reading) -> None:
    encoding = encode_features(clusters(200, 8, 9), k1=k1, k2=k2, reading=reading)
    np.testing.assert_allclose(encoding.weights.sum(axis=1), 1, atol=1e-6)
    assert encoding.weights.has_canonical_format
    assert encoding.weights.dtype == np.float32


@each_reading
def test_encodings_and_distances_are_the_same_bits_for_every_number_of_threads(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = between(clusters(150, 8, 9))
    plain = encoded(distances, 12, 4, reading)
    expected = jaccard(plain)
    monkeypatch.setattr(overlaps, "BUFFER", 1)  # of entries that are put aside, too
    for number in (1, 2, 5):
        with threads(number):
            encoding = encoded(distances, 12, 4, reading)
            found = jaccard(encoding)
        for one, other in ((encoding.weights, plain.weights), (found, expected)):
            np.testing.assert_array_equal(one.indptr, other.indptr)
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_array_equal(one.data, other.data)


@each_reading
def test_encode_takes_more_neighbours_than_it_needs_and_strided_ones(reading: Reading) -> None:
    features = clusters(80, 8, 9)
    plain = encode_features(features, k1=6, k2=3, reading=reading)
    more = neighbours(features, 30, farthest=True)
    strided = replace(more, rows=more.rows.T.contiguous().T)
    for found in (more, strided):
        encoding = encode_features(features, k1=6, k2=3, reading=reading, found=found)
        np.testing.assert_array_equal(encoding.weights.toarray(), plain.weights.toarray())


@pytest.mark.parametrize("backend", ["faiss", "faiss-ivf", "faiss-hnsw"])
def test_encode_features_takes_neighbours_by_faiss(backend: Any) -> None:
    pytest.importorskip("faiss")
    features = clusters(200, 8, 9)
    plain = encode_features(features, k1=10, k2=4)
    found = encode_features(features, k1=10, k2=4, backend=backend)
    assert found.found.backend.startswith("faiss")
    assert found.found.recall > 0.99
    assert np.abs(full(jaccard(found)) - full(jaccard(plain))).mean() < 0.01


@pytest.mark.parametrize("reading", ["zhong", "spcl"])
def test_needed_is_what_the_largest_of_both_sizes_asks_for(reading: Reading) -> None:
    one_more = int(reading == "zhong")
    assert needed(20, 6, reading, 1000) == 20 + one_more
    assert needed(6, 20, reading, 1000) == 20
    assert needed(20, 20, reading, 1000) == 20 + one_more
    assert needed(20, 6, reading, 7) == 7


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_encode_features_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        encode_features(torch.ones(4, 3), **options)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(3), r"^features: shape \(3,\) given"),
        (torch.ones(3, 2).double(), "^features: torch.float64 given"),
        (torch.ones(0, 2), r"^features: shape \(0, 2\) is empty"),
        (torch.tensor([[1.0], [math.nan]]), "^features: row 1 holds NaN"),
    ],
)
def test_encode_features_refuses_features_that_no_distance_can_be_trusted_on(features: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_features(features)


def test_encode_features_refuses_neighbours_that_do_not_fit() -> None:
    features = drawn(20, 3)
    few, plain = neighbours(features, 4, farthest=True), neighbours(features, 9)
    with pytest.raises(DataError, match=r"^neighbours of shape \(20, 4\) given, 5 or more of every image needed$"):
        encode_features(features, k1=4, k2=2, found=few, reading="zhong")
    with pytest.raises(DataError, match=r"^neighbours of shape \(20, 4\) given, 5 or more of every image needed$"):
        encode_features(features, k1=2, k2=5, found=few)
    encode_features(features, k1=4, k2=2, found=few, reading="spcl")
    with pytest.raises(DataError, match=r"^reading 'zhong' needs neighbours with the farthest distances"):
        encode_features(features, k1=4, k2=2, found=plain, reading="zhong")
    for others in (drawn(19, 3), drawn(21, 3)):
        with pytest.raises(DataError, match=r"^neighbours of 20 images given for "):
            encode_features(others, k1=4, k2=2, found=plain)
