from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import cosine_distances
from uda_reid.ops.jaccard import (
    Encoding,
    Reading,
    encode,
    encode_features,
    jaccard,
    jaccard_strips,
    needed,
    overlaps,
    rerank,
    reranking,
)
from uda_reid.ops.neighbours import Neighbours, neighbours
from uda_reid.ops.ranking import rank_distances

Matrix = npt.NDArray[np.float64]
READINGS: tuple[Reading, ...] = ("zhong", "zhong-squared", "spcl")
each_reading = pytest.mark.parametrize("reading", READINGS)


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def clusters(rows: int, columns: int, number: int, seed: int = 0, *, spread: float = 0.5) -> Tensor:
    """Rows about `number` centres, in no order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(number, columns, generator=generator)
    members = torch.randint(number, (rows,), generator=generator)
    return centres[members] + spread * torch.randn(rows, columns, generator=generator)


def signs(rows: int, seed: int = 0) -> Tensor:
    """Features of which many are equal, and many equally far: their cosines are eighths, to the bit."""
    numbers = np.random.default_rng(seed)
    return torch.from_numpy(numbers.choice([-1.0, 1.0], (rows, 16), p=[0.15, 0.85]).astype(np.float32))


def between(points: npt.ArrayLike) -> Tensor:
    """Half the squared distances between points, (N, N) float32."""
    places = np.asarray(points, dtype=np.float64).reshape(len(np.asarray(points)), -1)
    return torch.from_numpy((np.square(places[:, None] - places[None]).sum(axis=2) / 2).astype(np.float32))


def of_features(features: Tensor) -> Matrix:
    """Squared distances between features of unit length, in double precision."""
    points = features.double().numpy()
    unit = points / np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    distances: Matrix = np.square(unit[:, None] - unit[None]).sum(axis=2)
    return distances


def found_in(distances: Tensor, k: int) -> Neighbours:
    """The k nearest rows by a full matrix of distances, ties by row."""
    rows = distances.argsort(dim=1, stable=True)[:, :k]
    return Neighbours(rows.int(), distances.gather(1, rows), distances.amax(dim=1), "sort")


def encoded(distances: Tensor, k1: int, k2: int, reading: Reading) -> Encoding:
    """The encoding by a full matrix of distances, from just the neighbours that are needed."""

    def look_up(starts: npt.NDArray[np.int64], others: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        owners = np.repeat(np.arange(len(distances)), np.diff(starts))
        looked_up: npt.NDArray[np.float32] = distances.numpy()[owners, others]
        return looked_up

    found = found_in(distances, needed(k1, k2, reading, len(distances)))
    return encode(found, look_up, k1=k1, k2=k2, reading=reading)


def full(distances: csr_array) -> Matrix:
    """All distances that a sparse matrix of them stands for; none may be stored twice."""
    assert distances.has_canonical_format
    matrix = np.ones(distances.shape)
    owners = np.repeat(np.arange(len(matrix)), np.diff(distances.indptr))
    matrix[owners, distances.indices] = distances.data
    return matrix


def assert_is_the_oracles(distances: Tensor, k1: int, k2: int, reading: Reading) -> Matrix:
    """Weights and Jaccard distances are those of the loops; returns the latter."""
    encoding = encoded(distances, k1, k2, reading)
    weights = oracles.reciprocal_weights((2 * distances.double()).tolist(), k1, k2, reading)
    assert (encoding.weights.data > 0).all()
    np.testing.assert_array_equal(encoding.weights.toarray() > 0, np.array(weights) > 0)
    np.testing.assert_allclose(encoding.weights.toarray(), weights, atol=1e-6, rtol=0)
    matrix = full(jaccard(encoding))
    expected = oracles.jaccard_distances(weights)
    np.testing.assert_allclose(matrix, expected, atol=1e-6, rtol=0)
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()
    np.testing.assert_array_equal(matrix, matrix.T)
    return matrix


def whole(blocks: Iterator[Tensor]) -> Matrix:
    """All blocks, which are overwritten one by the next, as one matrix."""
    return torch.cat([block.clone() for block in blocks]).double().cpu().numpy()


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# cases worked out on paper

# Points 0, 1, 3 and 7 on a line; squared distances 0-1: 1, 0-2: 9, 0-3: 49, 1-2: 4, 1-3: 36, 2-3: 16. The sets of two
# are {0, 1} for both 0 and 1; 2 has 1 as its neighbour but not the other way round, and is alone, as 3 is.
LINE = [0, 1, 3, 7]
# zhong: 0 weighs itself 1 and 1 by exp(-1/49) = 0.979799, in all 1.979799: 0.505102, 0.494898;
#        1 weighs itself 1 and 0 by exp(-1/36) = 0.972604, in all 1.972604: 0.506944, 0.493056.
#        The smaller ones: 0.493056 + 0.494898 = 0.987954; the larger: 0.505102 + 0.506944 = 1.012046; 1 - 0.976195.
# zhong-squared: exp(-1/49^2) = 0.999584 gives 0.500104, 0.499896; exp(-1/36^2) = 0.999229 gives 0.500193, 0.499807.
#        0.499807 + 0.499896 = 0.999703; 0.500104 + 0.500193 = 1.000297; 1 - 0.999406.
# spcl: exp(-1) for both: 0.731059, 0.268941, so that the quotient is 0.268941 / 0.731059 = exp(-1) again.
OF_0_AND_1 = {"zhong": 0.023805, "zhong-squared": 0.000594, "spcl": 1 - math.exp(-1)}


@each_reading
def test_jaccard_distances_of_four_points_worked_out_on_paper(reading: Reading) -> None:
    size = 2 if reading == "spcl" else 1
    matrix = assert_is_the_oracles(between(LINE), size, 1, reading)
    expected = np.ones((4, 4))
    np.fill_diagonal(expected, 0)
    expected[0, 1] = expected[1, 0] = OF_0_AND_1[reading]
    np.testing.assert_allclose(matrix, expected, atol=2e-6, rtol=0)


@each_reading
def test_averages_over_two_neighbours_worked_out_on_paper(reading: Reading) -> None:
    # 0 and 1 are each other's nearest: the same mean (a, b), a + b = 1. 2 averages itself with 1: half of 1's weights
    # and 1/2 of itself; 3 averages itself with 2: half and half.
    matrix = assert_is_the_oracles(between(LINE), 2 if reading == "spcl" else 1, 2, reading)
    # 2 and 3 share 1/2 of 2's; the larger ones add up to 3/2. 0 and 2 share half of 1's (a', b'): as 1's are (a', b')
    # and the mean's (a, b) are more than half of them, 1/2 in all; the larger ones are 1 and the 1/2 of 2 itself.
    expected = [[0, 0, 2 / 3, 1], [0, 0, 2 / 3, 1], [2 / 3, 2 / 3, 0, 2 / 3], [1, 1, 2 / 3, 0]]
    np.testing.assert_allclose(matrix, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("reading", "k1", "near", "far"),
    [
        # A query at 0 degrees, gallery images at 60 and 180: squared distances 1, 4, and 3 between these two. The sets
        # are {query, 60}, twice, and the one at 180 is alone.
        # exp(-1/4) = 0.778801: 0.562177, 0.437823; exp(-1/3) = 0.716531: 0.582570, 0.417430.
        # (0.417430 + 0.437823) / (0.562177 + 0.582570) = 0.747111. 0.3 * 1/4 + 0.7 * 0.252889.
        ("zhong", 1, 0.252022, 1.0),
        # exp(-1/16) = 0.939413: 0.515620, 0.484380; exp(-1/9) = 0.894839: 0.527749, 0.472251.
        # (0.472251 + 0.484380) / (0.515620 + 0.527749) = 0.916867. 0.3 * 1/16 + 0.7 * 0.083133.
        ("zhong-squared", 1, 0.076943, 1.0),
        # 0.3 * 1 + 0.7 * (1 - exp(-1)), 0.3 * 4 + 0.7.
        ("spcl", 2, 0.742484, 1.9),
    ],
)
def test_re_ranked_distances_worked_out_on_paper(reading: Reading, k1: int, near: float, far: float) -> None:
    query = torch.tensor([[2.0, 0.0]])
    gallery = torch.tensor([[0.5, math.sqrt(0.75)], [-3.0, 0.0]])
    found = whole(rerank(query, gallery, k1=k1, k2=1, share=0.3, reading=reading))
    np.testing.assert_allclose(found, [[near, far]], atol=2e-6, rtol=0)
    told = oracles.reranked([[0, 1, 4], [1, 0, 3], [4, 3, 0]], 1, k1, 1, 0.3, reading)
    np.testing.assert_allclose(told, [[near, far]], atol=2e-6, rtol=0)


def sets(encoding: Encoding) -> list[list[int]]:
    return [row.nonzero()[0].tolist() for row in encoding.weights.toarray()]


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


# what goes wrong elsewhere


@pytest.mark.parametrize("dimensions", [3, 64, 257, 2048])
@pytest.mark.parametrize("constant", [False, True], ids=["drawn", "constant"])
@each_reading
def test_a_collapsed_model_is_no_ranking_by_rounding(dimensions: int, constant: bool, reading: Reading) -> None:
    one = torch.full((1, dimensions), 0.3) if constant else drawn(1, dimensions)
    features = one.repeat(300, 1)
    matrix = full(jaccard(encode_features(features, k1=20, k2=6, reading=reading)))
    np.testing.assert_allclose(matrix, 0, atol=1e-6)
    found = whole(rerank(features[:40], features[40:], k1=20, k2=6, reading=reading))
    np.testing.assert_allclose(found, found[0, 0], atol=1e-6, rtol=0)
    pids = np.arange(260) % 4 + 1
    ranking = rank_distances(
        rerank(features[:4], features[40:], reading=reading),
        query_pids=[1, 2, 3, 4],
        gallery_pids=pids,
        protocol="any-camera",
    )
    assert ranking.ties == 4


def test_first_hits_differ_between_readings_and_are_those_of_their_own_loops() -> None:
    features = clusters(90, 8, 3, spread=2.0)
    squared = of_features(features).tolist()
    firsts: list[npt.NDArray[np.int64]] = []
    for reading in READINGS:
        expected = np.argmin(oracles.reranked(squared, 50, 20, 6, 0.3, reading), axis=1)
        found = whole(rerank(features[:50], features[50:], reading=reading)).argmin(axis=1)
        np.testing.assert_array_equal(found, expected)
        assert all((found != other).any() for other in firsts)
        firsts.append(found)


def test_fewer_images_than_neighbours_bring_the_last_one_into_no_other_set() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]])
    found = neighbours(features, 3, farthest=True)
    padded = torch.cat([found.rows[:, :2], torch.full((3, 1), -1, dtype=torch.int32)], dim=1)
    with pytest.raises(DataError, match="rows that are not from 0 to 2"):
        encode_features(features, k1=3, k2=1, found=replace(found, rows=padded))
    encoding = encode_features(features, k1=2, k2=1)
    assert sets(encoding) == [[0, 1], [0, 1], [2]]


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


# re-ranking


@pytest.mark.parametrize(("k1", "k2", "share"), [(20, 6, 0.3), (5, 1, 0.0), (1, 3, 0.8), (6, 6, 1.0), (200, 100, 0.5)])
@each_reading
def test_re_ranked_distances_equal_the_loops(k1: int, k2: int, share: float, reading: Reading) -> None:
    for features in (clusters(56, 8, 5), signs(56)):
        query, gallery = features[:15], features[15:] * torch.arange(-20.0, 21.0).exp2()[:, None]
        found = whole(rerank(query, gallery, k1=k1, k2=k2, share=share, reading=reading))
        expected = oracles.reranked(of_features(features).tolist(), 15, k1, k2, share, reading)
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@each_reading
def test_re_ranked_blocks_of_every_size_agree(reading: Reading) -> None:
    query, gallery = clusters(30, 8, 6), clusters(80, 8, 6, seed=1)
    expected = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
    for height in (1, 7, 29, 1000):
        sizes, parts = [], []
        for block in rerank(query, gallery, k1=8, k2=3, reading=reading, memory=height * 4 * 110):
            assert block.dtype == torch.float32
            sizes.append(len(block))
            parts.append(block.clone())
        assert sizes == [min(len(parts[0]), 30 - start) for start in range(0, 30, len(parts[0]))]
        assert len(parts[0]) >= min(height, 30)
        np.testing.assert_allclose(torch.cat(parts), expected, atol=1e-6, rtol=0)


@each_reading
def test_re_ranked_distances_are_the_same_bits_for_every_number_of_threads(reading: Reading) -> None:
    query, gallery = signs(40, seed=1), signs(90)
    found = []
    for number in (1, 2):
        with threads(number):
            found.append(whole(rerank(query, gallery, k1=8, k2=3, reading=reading)))
    np.testing.assert_array_equal(found[0], found[1])


@each_reading
def test_a_permuted_gallery_permutes_the_re_ranked_distances(reading: Reading) -> None:
    query, gallery = clusters(20, 8, 6), clusters(70, 8, 6, seed=1)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(2))
    plain = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
    permuted = whole(rerank(query, gallery[order], k1=8, k2=3, reading=reading))
    assert np.ptp(plain) > 0.5
    np.testing.assert_allclose(permuted, plain[:, order], atol=1e-6, rtol=0)


@each_reading
def test_all_of_the_share_for_the_distance_leaves_its_order(reading: Reading) -> None:
    query, gallery = signs(20, seed=1), signs(70)
    found = whole(rerank(query, gallery, share=1, reading=reading))
    plain = cosine_distances(query, gallery).numpy()
    np.testing.assert_array_equal(found.argsort(axis=1, kind="stable"), plain.argsort(axis=1, kind="stable"))
    power = 2 if reading == "zhong-squared" else 1
    top = 1 if reading == "spcl" else (2 * cosine_distances(query, torch.cat([query, gallery])).amax(dim=1)).numpy()
    scale = np.asarray(top)[..., None] ** power
    np.testing.assert_allclose(found, (2 * plain) ** power / scale, atol=1e-6, rtol=0)


@each_reading
def test_none_of_the_share_for_the_distance_leaves_the_jaccard_distance(reading: Reading) -> None:
    query, gallery = clusters(20, 8, 6), clusters(70, 8, 6, seed=1)
    found = whole(rerank(query, gallery, k1=8, k2=3, share=0, reading=reading))
    both = full(jaccard(encode_features(torch.cat([query, gallery]), k1=8, k2=3, reading=reading), rows=20))
    np.testing.assert_allclose(found, both[:, 20:], atol=1e-6, rtol=0)


@each_reading
def test_re_ranking_as_on_a_gpu_equals_the_compiled_loops(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = [(clusters(30, 8, 6), clusters(80, 8, 6, seed=1)), (signs(30), signs(80, seed=1))]
    searches.append((torch.ones(5, 8), torch.ones(60, 8)))
    for query, gallery in searches:
        for share in (0.0, 0.3, 1.0):
            options: dict[str, Any] = {"k1": 8, "k2": 3, "share": share, "reading": reading, "memory": 11 * 4 * 90}
            compiled = whole(rerank(query, gallery, **options))
            with monkeypatch.context() as patch:
                patch.setattr(reranking, "_mix", reranking._mix_on_device)
                np.testing.assert_allclose(whole(rerank(query, gallery, **options)), compiled, atol=1e-6, rtol=0)


@each_reading
def test_re_ranked_evaluation_equals_the_loops_end_to_end(reading: Reading) -> None:
    features = clusters(90, 8, 9, spread=1.0)
    numbers = np.random.default_rng(0)
    pids, cams = numbers.integers(1, 9, 90), numbers.integers(0, 3, 90)
    queries = 20
    ranking = rank_distances(
        rerank(features[:queries], features[queries:], k1=8, k2=3, reading=reading, memory=7 * 4 * 90),
        query_pids=pids[:queries],
        gallery_pids=pids[queries:],
        query_cams=cams[:queries],
        gallery_cams=cams[queries:],
    )
    expected = oracles.reranked(of_features(features).tolist(), queries, 8, 3, 0.3, reading)
    for query in range(queries):
        labels: tuple[int, int, Sequence[int], Sequence[int]] = (
            int(pids[query]),
            int(cams[query]),
            pids[queries:].tolist(),
            cams[queries:].tolist(),
        )
        rows = oracles.ranked(expected[query], *labels, "market")
        relevance = [int(pids[queries + row] == pids[query]) for row in rows]
        assert ranking.average_precision[query] == pytest.approx(
            oracles.trapezoid_average_precision(relevance), abs=1e-9
        )
        assert ranking.first[query] == relevance.index(1)


def test_re_ranking_shows_its_progress_and_leaves_the_features_as_they_are() -> None:
    query, gallery = drawn(5, 4), drawn(20, 4, seed=1)
    seen: list[str] = []

    def show(items: Any, description: str, total: int | None) -> Any:
        seen.append(description)
        return items

    whole(rerank(query, gallery, progress=show))
    assert seen == ["neighbours"]
    assert torch.equal(query, drawn(5, 4))
    assert torch.equal(gallery, drawn(20, 4, seed=1))


# bad input


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 2), "^query features have 3 dimensions, gallery features 2$"),
        (torch.ones(3), torch.ones(4, 3), r"^query features: shape \(3,\) given, \(rows, dimensions\) expected$"),
        (torch.ones(2, 3), torch.ones(0, 3), r"^gallery features: shape \(0, 3\) is empty"),
        (torch.ones(2, 3).double(), torch.ones(4, 3), "^query features: torch.float64 given, torch.float32 expected"),
        (torch.ones(2, 3), torch.full((4, 3), math.nan), r"^gallery features: row 0 holds NaN or infinity \(4 of 4"),
        (torch.full((2, 3), math.inf), torch.ones(4, 3), r"^query features: row 0 holds NaN or infinity \(2 of 2"),
    ],
)
def test_rerank_refuses_features_before_anything_is_asked_of_it(query: Tensor, gallery: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rerank(query, gallery)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"k1": 0}, "^k1 0 and k2 6 must be at least 1$"),
    ({"k1": 20, "k2": 0}, "^k1 20 and k2 0 must be at least 1$"),
    ({"reading": "zheng"}, "^reading 'zheng' is unknown; use one of zhong, zhong-squared, spcl$"),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *BAD_OPTIONS,
        ({"share": -0.1}, "^a share of -0.1 of the original distance is out of range; use 0 to 1$"),
        ({"share": 1.01}, "^a share of 1.01 of the original distance is out of range; use 0 to 1$"),
        ({"share": math.nan}, "^a share of nan of the original distance is out of range; use 0 to 1$"),
    ],
)
def test_rerank_refuses_options_before_anything_is_asked_of_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rerank(torch.ones(2, 3), torch.ones(4, 3), **options)


def test_rerank_refuses_too_little_memory() -> None:
    with pytest.raises(RecipeError, match=r"^memory of 3 bytes is too small: one row takes"):
        whole(rerank(torch.ones(2, 3), torch.ones(4, 3), memory=3))


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


# on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_reading
def test_re_ranking_on_a_gpu_equals_that_on_the_cpu(reading: Reading) -> None:
    for query, gallery in ((clusters(30, 8, 6), clusters(400, 8, 6, seed=1)), (signs(30), signs(400, seed=1))):
        found = list(rerank(query, gallery.cuda(), k1=8, k2=3, reading=reading, memory=16 * 430))
        assert {block.device.type for block in found} == {"cuda"}
        on_gpu = whole(rerank(query.cuda(), gallery.cuda(), k1=8, k2=3, reading=reading, memory=16 * 430))
        on_cpu = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
        np.testing.assert_allclose(on_gpu, on_cpu, atol=2e-6, rtol=0)
        encoding = encode_features(gallery.cuda(), k1=8, k2=3, reading=reading)
        assert encoding.found.rows.device.type == "cuda"
        plain = full(jaccard(encode_features(gallery, k1=8, k2=3, reading=reading)))
        np.testing.assert_allclose(full(jaccard(encoding)), plain, atol=2e-6, rtol=0)


def test_re_ranking_leaves_the_gradient_mode_alone_between_blocks_and_when_it_is_abandoned() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    found: Any = rerank(features[:3], features[3:], k1=2, k2=1, memory=24)
    first = next(found)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    kept = first.clone()
    next(found)
    assert torch.equal(first, kept)  # a block stays what it was
    found.close()
    with pytest.raises(DataError, match="exactly 5 columns are expected"):
        rank_distances(
            rerank(features[:3], features[3:], k1=2, k2=1),
            query_pids=[1] * 3,
            gallery_pids=[1] * 5,
            protocol="any-camera",
        )
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_re_ranking_tells_rows_apart_that_share_nearly_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 1, 2048, generator=generator)
    features = (1 + 0.003 * (centres + 0.5 * torch.randn(20, 10, 2048, generator=generator))).view(200, 2048)
    pids = torch.arange(20).repeat_interleave(10) + 1
    query, gallery = slice(0, 200, 10), torch.arange(200) % 10 > 0
    labels: dict[str, Any] = {"query_pids": pids[query], "gallery_pids": pids[gallery], "protocol": "any-camera"}
    for reading in READINGS:
        ranking = rank_distances(rerank(features[query], features[gallery], k1=8, k2=3, reading=reading), **labels)
        assert ranking.mean(ranking.average_precision) == 1
