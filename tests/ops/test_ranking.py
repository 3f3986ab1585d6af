from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.protocols import PROTOCOLS
from uda_reid.ops.ranking import Ranking, rank, rank_distances


@dataclass(frozen=True)
class Search:
    """A random search; distances are small integers, so that many are equal."""

    distances: Sequence[Sequence[float]]
    query_pids: list[int]
    gallery_pids: list[int]
    query_cams: list[int]
    gallery_cams: list[int]
    protocol: str

    def rank(self, *sizes: int) -> Ranking:
        """Rank with blocks of the given sizes, the last one repeated."""
        matrix = torch.tensor(self.distances, dtype=torch.float32)
        return rank_distances(
            blocks(matrix, *sizes or (len(matrix),)),
            query_pids=self.query_pids,
            gallery_pids=self.gallery_pids,
            query_cams=self.query_cams,
            gallery_cams=self.gallery_cams,
            protocol=self.protocol,
        )

    def rows(self, query: int) -> list[int]:
        labels = self.query_pids[query], self.query_cams[query], self.gallery_pids, self.gallery_cams
        return oracles.ranked(self.distances[query], *labels, self.protocol)

    def relevance(self, query: int) -> list[int]:
        return [int(self.gallery_pids[g] == self.query_pids[query]) for g in self.rows(query)]


def blocks(matrix: Tensor, *sizes: int) -> Iterator[Tensor]:
    start, left = 0, list(sizes)
    while start < len(matrix):
        size = left.pop(0) if len(left) > 1 else left[0]
        yield matrix[start : start + size]
        start += size


@st.composite
def searches(draw: st.DrawFn, levels: int = 6) -> Search:
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 14))

    def ints(low: int, high: int, size: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=size, max_size=size))

    return Search(
        distances=[ints(-1, levels, gallery) for _ in range(queries)],
        query_pids=ints(1, 3, queries),
        gallery_pids=ints(-1, 3, gallery),
        query_cams=ints(0, 2, queries),
        gallery_cams=ints(0, 2, gallery),
        protocol=draw(st.sampled_from(sorted(PROTOCOLS))),
    )


def one_query(relevance: list[int], distances: list[float] | None = None) -> Ranking:
    """Rank one query whose gallery, in order of distance, is right (1), wrong (0) or junk (-1)."""
    if distances is None:
        distances = [0.1 * place for place in range(len(relevance))]
    pids = [{1: 5, 0: 0, -1: -1}[kind] for kind in relevance]
    return rank_distances([torch.tensor([distances])], query_pids=[5], gallery_pids=pids, protocol="any-camera")


def assert_identical(a: Ranking, b: Ranking) -> None:
    for field in fields(Ranking):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


# the definitions


@pytest.mark.parametrize(
    ("relevance", "trapezoid", "step"),
    [
        ([1, 0, 1], 0.791667, 0.833333),
        ([0, 1], 0.25, 0.5),
        ([1, 1], 1.0, 1.0),
        ([0, 1, 1], 0.416667, 0.583333),
        ([1, 0, 0, 1], 0.708333, 0.75),
    ],
)
def test_average_precision_of_the_known_vectors(relevance: list[int], trapezoid: float, step: float) -> None:
    ranking = one_query(relevance)
    assert ranking.average_precision[0] == pytest.approx(trapezoid, abs=1e-6)
    assert ranking.average_precision_step[0] == pytest.approx(step, abs=1e-6)
    assert ranking.average_precision_merged[0] == pytest.approx(step, abs=1e-6)
    assert not ranking.tied[0]


@settings(deadline=None, max_examples=300)
@given(search=searches())
def test_rank_distances_equals_the_loops_with_ties(search: Search) -> None:
    ranking = search.rank()
    for query in range(len(search.query_pids)):
        relevance = search.relevance(query)
        assert ranking.valid[query] == any(relevance)
        if not any(relevance):
            assert np.isnan(ranking.average_precision[query])
            assert np.isnan(ranking.average_precision_step[query])
            assert np.isnan(ranking.average_precision_merged[query])
            assert np.isnan(ranking.inverse_penalty[query])
            assert (ranking.first[query], ranking.tied[query]) == (-1, False)
            continue
        assert ranking.average_precision[query] == pytest.approx(
            oracles.trapezoid_average_precision(relevance), abs=1e-12
        )
        assert ranking.average_precision_step[query] == pytest.approx(
            oracles.step_average_precision(relevance), abs=1e-12
        )
        assert ranking.inverse_penalty[query] == pytest.approx(oracles.inverse_penalty(relevance), abs=1e-12)
        assert ranking.first[query] == relevance.index(1)
        scores = [-search.distances[query][g] for g in search.rows(query)]
        merged = average_precision_score(relevance, scores)
        assert ranking.average_precision_merged[query] == pytest.approx(merged, abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(search=searches(levels=3))
def test_tied_says_whether_another_order_of_equal_distances_changes_the_average_precision(
    search: Search,
) -> None:
    ranking = search.rank()
    for query in map(int, np.flatnonzero(ranking.valid)):
        rows = search.rows(query)
        found = []
        for sign in (-1, 1):  # the matches first among equal distances, then last
            key = [
                (search.distances[query][g], sign * (search.gallery_pids[g] == search.query_pids[query])) for g in rows
            ]
            order = sorted(range(len(rows)), key=key.__getitem__)
            found.append(oracles.trapezoid_average_precision([search.relevance(query)[place] for place in order]))
        assert ranking.tied[query] == (abs(found[0] - found[1]) > 1e-12)
    assert ranking.ties == ranking.tied.sum()


@settings(deadline=None, max_examples=100)
@given(search=searches(), ranks=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_cmc_equals_the_loops(search: Search, ranks: list[int]) -> None:
    ranking = search.rank()
    relevances = [search.relevance(query) for query in range(len(search.query_pids))]
    assert ranking.counted == sum(map(any, relevances))
    assert ranking.counted + ranking.skipped == len(relevances)
    if ranking.counted:
        curve = oracles.cmc_curve(relevances, 30)
        assert ranking.cmc(ranks) == pytest.approx({rank: curve[rank - 1] for rank in ranks})


def test_step_rule_equals_sklearn_without_ties() -> None:
    generator = np.random.default_rng(0)
    distances = generator.permuted(np.tile(np.arange(400.0), (20, 1)), axis=1)
    pids = generator.integers(0, 5, 400)
    ranking = rank_distances(
        [torch.from_numpy(distances)],
        query_pids=np.arange(20) % 4 + 1,
        gallery_pids=pids,
        protocol="any-camera",
    )
    expected = [average_precision_score(pids == query % 4 + 1, -distances[query]) for query in range(20)]
    np.testing.assert_allclose(ranking.average_precision_step, expected, rtol=1e-12)
    np.testing.assert_allclose(ranking.average_precision_merged, expected, rtol=1e-12)
    assert ranking.ties == 0


# properties


@settings(deadline=None, max_examples=100)
@given(search=searches())
def test_trapezoid_is_at_most_step_and_both_are_one_only_when_every_match_comes_first(search: Search) -> None:
    ranking = search.rank()
    for query in np.flatnonzero(ranking.valid):
        relevance = search.relevance(int(query))
        trapezoid, step = ranking.average_precision[query], ranking.average_precision_step[query]
        assert trapezoid <= step
        perfect = relevance == sorted(relevance, reverse=True)
        assert (trapezoid == 1) == (step == 1) == (ranking.inverse_penalty[query] == 1) == perfect


@settings(deadline=None, max_examples=100)
@given(search=searches())
def test_monotone_maps_of_the_distances_change_nothing(search: Search) -> None:
    mapped = [[7 * distance**3 - 2 for distance in row] for row in search.distances]
    assert_identical(search.rank(), replace(search, distances=mapped).rank())


@settings(deadline=None, max_examples=100)
@given(search=searches())
def test_deleting_junk_from_the_gallery_changes_nothing(search: Search) -> None:
    kept = [g for g, pid in enumerate(search.gallery_pids) if pid != -1]
    if not kept:
        assert search.rank().counted == 0
        return
    without = Search(
        distances=[[row[g] for g in kept] for row in search.distances],
        query_pids=search.query_pids,
        gallery_pids=[search.gallery_pids[g] for g in kept],
        query_cams=search.query_cams,
        gallery_cams=[search.gallery_cams[g] for g in kept],
        protocol=search.protocol,
    )
    assert_identical(search.rank(), without.rank())


@settings(deadline=None, max_examples=100)
@given(search=searches(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_blocks_of_any_size_give_the_same_bits(search: Search, sizes: list[int]) -> None:
    assert_identical(search.rank(), search.rank(*sizes))


def test_blocks_of_any_size_give_the_same_bits_on_a_big_search() -> None:
    generator = np.random.default_rng(1)
    distances = torch.from_numpy(generator.random((50, 700), dtype=np.float32)).mul(500).round()
    pids = generator.integers(0, 4, 700) ** 2  # identities with many matches: 1, 4 and 9
    labels: dict[str, Any] = {"query_pids": generator.integers(1, 4, 50) ** 2, "gallery_pids": pids}
    cams: dict[str, Any] = {
        "query_cams": generator.integers(0, 3, 50),
        "gallery_cams": generator.integers(0, 3, 700),
    }
    whole = rank_distances([distances], **labels, **cams)
    assert whole.ties > 40
    for sizes in ((1,), (7, 30, 3)):
        assert_identical(whole, rank_distances(blocks(distances, *sizes), **labels, **cams))


# protocols


def test_protocols_remove_what_they_say() -> None:
    # distance:      0  1  2  3  4  5  6
    pids, cams = [1, 2, -1, 0, 1, 2, 1], [1, 1, 2, 2, 2, 2, 3]
    relevances = {
        "market": [0, 0, 1, 0, 1],  # without the own image of camera 1 and the junk
        "cross-camera": [0, 1, 0, 1],  # also without identity 2 in camera 1
        "any-camera": [1, 0, 0, 1, 0, 1],
    }
    assert set(relevances) == set(PROTOCOLS)
    for protocol, relevance in relevances.items():
        ranking = rank_distances(
            [torch.arange(7.0)[None]],
            query_pids=[1],
            gallery_pids=pids,
            query_cams=[1],
            gallery_cams=cams,
            protocol=protocol,
        )
        assert ranking.protocol == protocol
        assert ranking.average_precision[0] == pytest.approx(oracles.trapezoid_average_precision(relevance))
        assert ranking.first[0] == relevance.index(1)


def test_any_camera_gives_the_same_with_and_without_cameras() -> None:
    distances = [torch.arange(4.0)[None]]
    labels: dict[str, Any] = {"query_pids": [1], "gallery_pids": [2, 1, 0, 1]}
    bare = rank_distances(distances, **labels, protocol="any-camera")
    told = rank_distances(distances, **labels, query_cams=[1], gallery_cams=[1, 1, 2, 2], protocol="any-camera")
    assert_identical(bare, told)


# what goes wrong elsewhere


def test_junk_counts_neither_as_right_nor_as_wrong_and_distractors_count_as_wrong() -> None:
    assert one_query([-1, 1, -1, 0, -1, 1]).average_precision[0] == one_query([1, 0, 1]).average_precision[0]
    assert one_query([-1, 1]).average_precision[0] == 1
    assert one_query([0, 1]).average_precision[0] == 0.25


def test_cmc_holds_beyond_the_last_allowed_gallery_image() -> None:
    assert one_query([0, 1]).cmc((1, 2, 3, 4)) == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    assert one_query([0, 1, -1, -1]).cmc((1, 2, 3, 4)) == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize("matches_first", [True, False])
def test_a_collapsed_model_is_flagged_whatever_the_order_of_the_gallery(matches_first: bool) -> None:
    pids = sorted([1] * 5 + [0] * 95, reverse=matches_first)
    labels: dict[str, Any] = {"query_pids": [1, 1, 1], "gallery_pids": pids}
    ranking = rank(torch.ones(3, 8), torch.ones(100, 8), **labels, protocol="any-camera")
    assert ranking.ties == ranking.counted == 3
    np.testing.assert_allclose(ranking.average_precision_merged, 0.05)
    relevance = [int(pid == 1) for pid in pids]
    np.testing.assert_allclose(ranking.average_precision, oracles.trapezoid_average_precision(relevance))


def test_equal_distances_of_matches_alone_are_no_tie() -> None:
    assert not one_query([1, 1, 0], distances=[0.5, 0.5, 0.7]).tied[0]
    assert not one_query([1, 0, 0], distances=[0.5, 0.7, 0.7]).tied[0]
    assert not one_query([1, -1, 0], distances=[0.5, 0.5, 0.7]).tied[0]
    assert one_query([1, 0, 0], distances=[0.5, 0.5, 0.7]).tied[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_row(bad: float) -> None:
    query, gallery = torch.ones(3, 2), torch.ones(4, 2)
    labels: dict[str, Any] = {"query_pids": [1, 1, 1], "gallery_pids": [1, 1, 0, 0]}
    broken = query.clone()
    broken[2, 1] = bad
    with pytest.raises(DataError, match="query features: row 2 holds NaN or infinity"):
        rank(broken, gallery, **labels, protocol="any-camera")
    broken = gallery.clone()
    broken[3, 0] = bad
    with pytest.raises(DataError, match="gallery features: row 3 holds NaN or infinity"):
        rank(query, broken, **labels, protocol="any-camera")
    distances = torch.ones(3, 4)
    distances[1, 3] = bad
    with pytest.raises(DataError, match="distances of query 1 hold NaN or infinity"):
        rank_distances(blocks(distances, 1), **labels, protocol="any-camera")


def test_queries_without_a_match_are_counted_and_in_no_mean() -> None:
    ranking = rank_distances(
        [torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])],
        query_pids=[1, 9, 1],
        gallery_pids=[1, 2],
        query_cams=[1, 1, 2],
        gallery_cams=[2, 1],
    )
    assert ranking.valid.tolist() == [True, False, False]
    assert (ranking.counted, ranking.skipped) == (1, 2)
    assert ranking.cmc((1,)) == {1: 1.0}
    assert ranking.mean(ranking.average_precision) == 1.0


def test_means_without_any_valid_query_are_refused() -> None:
    ranking = rank_distances([torch.ones(2, 1)], query_pids=[1, 2], gallery_pids=[3], protocol="any-camera")
    assert ranking.counted == 0
    with pytest.raises(DataError, match="none of the 2 queries has a match in the gallery under protocol 'any-camera'"):
        ranking.cmc()
    with pytest.raises(DataError, match="none of the 2 queries"):
        ranking.mean(ranking.average_precision)


# from features


@pytest.mark.parametrize("block", [1, 7, 256])
def test_rank_equals_the_loops_on_cosine_distances(block: int) -> None:
    generator = torch.Generator().manual_seed(3)
    query, gallery = torch.randn(9, 6, generator=generator), torch.randn(40, 6, generator=generator)
    search = Search(
        distances=[],
        query_pids=[1, 2, 3] * 3,
        gallery_pids=[-1, 0, 1, 2, 3] * 8,
        query_cams=[1, 2, 3, 2, 3, 1, 3, 1, 2],
        gallery_cams=[camera for camera in (1, 2, 3, 1) for _ in range(10)],
        protocol="market",
    )
    distances = [[oracles.cosine_distance(q, g) for g in gallery.tolist()] for q in query.tolist()]
    labels: dict[str, Any] = {key: value for key, value in vars(search).items() if key != "distances"}
    ranking = rank(query, gallery * 17, **labels, memory=block * 160)
    search = replace(search, distances=distances)
    expected = [oracles.trapezoid_average_precision(search.relevance(q)) for q in range(9)]
    np.testing.assert_allclose(ranking.average_precision, expected, rtol=1e-12)


def test_rank_leaves_the_features_as_they_are() -> None:
    query, gallery = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    rank(query, gallery, query_pids=[1, 1], gallery_pids=[1, 2, 1, 2], protocol="any-camera")
    assert torch.equal(query, torch.arange(6.0).view(2, 3))
    assert torch.equal(gallery, torch.arange(12.0).view(4, 3))


def test_rank_refuses_unfitting_features_and_too_little_memory() -> None:
    labels: dict[str, Any] = {"query_pids": [1, 1], "gallery_pids": [1, 2, 1], "protocol": "any-camera"}
    with pytest.raises(DataError, match="query features have 3 dimensions, gallery features 2"):
        rank(torch.ones(2, 3), torch.ones(3, 2), **labels)
    with pytest.raises(DataError, match="5 query features but 2 query_pids"):
        rank(torch.ones(5, 3), torch.ones(3, 3), **labels)
    with pytest.raises(DataError, match="2 gallery features but 3 gallery_pids"):
        rank(torch.ones(2, 3), torch.ones(2, 3), **labels)
    with pytest.raises(DataError, match=r"gallery features: shape \(0, 3\) is empty"):
        rank(torch.ones(2, 3), torch.ones(0, 3), **labels)
    with pytest.raises(RecipeError, match="memory of 11 bytes is too small: one row takes 12"):
        rank(torch.ones(2, 3), torch.ones(3, 3), **labels, memory=11)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([torch.ones(1, 3)], "hold 1 rows for 2 queries"),
        ([], "hold 0 rows for 2 queries"),
        (
            [torch.ones(2, 3), torch.ones(1, 3)],
            r"shape \(1, 3\) at query 2: at most 0 rows and exactly 3 columns",
        ),
        ([torch.ones(2, 4)], r"shape \(2, 4\) at query 0"),
        ([torch.ones(3)], r"shape \(3,\) at query 0"),
        ([torch.ones(2, 3, dtype=torch.int64)], "torch.int64 at query 0"),
    ],
)
def test_rank_distances_refuses_blocks_that_do_not_fit(matrices: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank_distances(matrices, query_pids=[1, 1], gallery_pids=[1, 2, 1], protocol="any-camera")


def test_rank_distances_takes_empty_and_strided_blocks() -> None:
    distances = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    labels: dict[str, Any] = {"query_pids": [1, 1], "gallery_pids": [1, 2, 1]}
    plain = rank_distances([distances], **labels, protocol="any-camera")
    strided = [distances[:0], distances.T.contiguous().T]
    assert_identical(plain, rank_distances(strided, **labels, protocol="any-camera"))
