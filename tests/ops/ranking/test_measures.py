from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from tests import oracles
from tests.ops.ranking.searches import (
    NAMES,
    Search,
    assert_equal,
    assert_identical,
    big_search,
    blocks,
    one_query,
    random_search,
    searches,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.kernels import SORT_FROM
from uda_reid.ops.protocols import PROTOCOLS
from uda_reid.ops.ranking import Ranking, rank_distances

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ranking.json").read_text(encoding="utf-8"))["cases"]


# the definitions


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "".join(map(str, case["relevance"])))
def test_every_measure_of_the_cases_by_hand(case: dict[str, Any]) -> None:
    rates = [float(rate) for rate in case["accepted"]]
    ranking = one_query(case["relevance"], case.get("distances"), rates)
    found = {
        "trapezoid": ranking.average_precision,
        "step": ranking.average_precision_step,
        "merged": ranking.average_precision_merged,
        "inverse_penalty": ranking.inverse_penalty,
    }
    for name, values in found.items():
        assert values[0] == pytest.approx(float(Fraction(case[name])), abs=1e-15), name
    assert list(ranking.cmc((1, 2, 3, 4)).values()) == case["cmc"]
    assert (ranking.tied[0], ranking.near[0]) == (case["tied"], case["near"])
    assert ranking.accepted == {float(rate): float(Fraction(share)) for rate, share in case["accepted"].items()}


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


def test_every_measure_equals_the_loops_on_ten_thousand_searches() -> None:
    generator = np.random.default_rng(0)
    cases = [random_search(generator) for _ in range(10_000)]
    rates = (0.1, 0.3, 0.5, 1.0)
    expected = [case.by_loops(rates) for case in cases]
    assert_equal([case.rank(rates=rates) for case in cases], expected)
    # what was to be met was met
    for protocol in NAMES:
        assert sum(ranking.protocol == protocol for ranking in expected) > 3000
    assert sum(ranking.ties for ranking in expected) > 2000
    assert sum(ranking.skipped for ranking in expected) > 2000
    assert sum(int((ranking.near > 0).sum()) for ranking in expected) > sum(ranking.ties for ranking in expected) + 500


@limits(max_examples=200)
@given(search=searches())
def test_every_measure_equals_the_loops_and_merged_precision_sklearn(search: Search) -> None:
    ranking = search.rank()
    assert_equal([ranking], [search.by_loops()])
    for query in map(int, np.flatnonzero(ranking.valid)):
        scores = [-search.distances[query][g] for g in search.rows(query)]
        merged = average_precision_score(search.relevance(query), scores)
        assert ranking.average_precision_merged[query] == pytest.approx(merged, abs=1e-12)


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


@limits(max_examples=200)
@given(search=searches(levels=3))
def test_tied_says_whether_another_order_of_equal_distances_changes_the_average_precision(search: Search) -> None:
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


@limits(max_examples=100)
@given(search=searches(), ranks=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_cmc_and_means_equal_the_loops_by_both_denominators(search: Search, ranks: list[int]) -> None:
    ranking = search.rank()
    relevances = [search.relevance(query) for query in range(len(search.query_pids))]
    answered = [relevance for relevance in relevances if any(relevance)]
    assert (ranking.counted, ranking.skipped) == (len(answered), len(relevances) - len(answered))
    if not answered:
        return
    curve = oracles.cmc_curve(relevances, 30)
    assert ranking.cmc(ranks) == pytest.approx({rank: curve[rank - 1] for rank in ranks})
    wins = {rank: sum(any(relevance[:rank]) for relevance in relevances) for rank in ranks}
    assert ranking.cmc(ranks, over="all") == pytest.approx({rank: wins[rank] / len(relevances) for rank in ranks})
    total = sum(map(oracles.step_average_precision, answered))
    assert ranking.mean(ranking.average_precision_step) == pytest.approx(total / len(answered))
    assert ranking.mean(ranking.average_precision_step, over="all") == pytest.approx(total / len(relevances))


# the two ways of counting, and what blocks may look like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matches", [SORT_FROM - 1, SORT_FROM, SORT_FROM + 76])
def test_very_many_matches_equal_the_loops(matches: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(matches)
    pids = generator.permutation([1] * matches + [0] * 300 + [2] * 3 + [-1] * 40).tolist()
    search = Search(
        distances=[(0.5 + 4e-7 * generator.integers(0, 200, len(pids))).astype(np.float32).tolist() for _ in range(2)],
        query_pids=[1, 2],
        gallery_pids=pids,
        query_cams=[1, 1],
        gallery_cams=[2] * len(pids),
        protocol="market",
        dtype=dtype,
    )
    found, expected = search.rank(rates=()), search.by_loops(rates=())
    assert_equal([found], [expected])
    assert found.near[0] > found.tied[0] == 1


def test_very_many_wrong_images_are_counted_to_the_last() -> None:
    # More than the narrow counters are summed over, and no multiple of it.
    gallery = 3 * 4096 + 5
    ranking = one_query([0] * (gallery - 1) + [1], [0.0] * (gallery - 1) + [1.0], rates=(0.5, 1.0))
    assert (ranking.first[0], ranking.near[0], ranking.accepted) == (gallery - 1, 0, {0.5: 0.0, 1.0: 1.0})
    assert ranking.average_precision_step[0] == 1 / gallery


@pytest.mark.parametrize(("pid", "first", "accepted"), [(7, 0, 1.0), (2, -1, None), (0, -1, None), (-1, -1, None)])
def test_a_gallery_of_one_image(pid: int, first: int, accepted: float | None) -> None:
    ranking = rank_distances([torch.tensor([[0.3]])], query_pids=[7], gallery_pids=[pid], protocol="any-camera")
    assert ranking.first.tolist() == [first]
    assert ranking.valid.tolist() == [first == 0]
    assert [None if np.isnan(share) else share for share in ranking.accepted.values()] == [accepted] * 2


def test_blocks_of_any_layout_give_the_same_bits() -> None:
    distances, labels = big_search()
    plain = rank_distances([distances], **labels)
    wide = torch.full((100, 1400), 3.0)
    wide[::2, ::2] = distances
    for block in (wide[::2, ::2], distances.T.contiguous().T, distances.flip(1).flip(1)):
        assert_identical(plain, rank_distances([block[:0], block, block[:0]], **labels))
    row = distances[:1].expand(50, -1)
    assert_identical(rank_distances([row.clone()], **labels), rank_distances([row], **labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_and_labels_are_left_as_they_are(dtype: torch.dtype) -> None:
    distances, labels = big_search(dtype)
    before = distances.clone(), {name: column.copy() for name, column in labels.items()}
    for protocol in NAMES:
        rank_distances(blocks(distances, 20), **labels, protocol=protocol)
    assert torch.equal(distances, before[0])
    for name, column in labels.items():
        np.testing.assert_array_equal(column, before[1][name])


def test_float32_and_float64_blocks_of_the_same_numbers_agree() -> None:
    single, labels = big_search()
    assert_identical(rank_distances([single], **labels), rank_distances([single.double()], **labels))


def test_blocks_that_hold_gradients_are_ranked_by_their_values() -> None:
    distances, labels = big_search()
    assert_identical(
        rank_distances([distances], **labels), rank_distances([distances.clone().requires_grad_()], **labels)
    )


def test_blocks_are_let_go_once_they_are_ranked() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for query in range(30):
            block = torch.arange(50.0)[None] + query
            alive.append(weakref.ref(block))
            yield block
            del block
            assert sum(reference() is not None for reference in alive) <= 1

    ranking = rank_distances(stream(), query_pids=[1] * 30, gallery_pids=[0, 1] * 25, protocol="any-camera")
    assert ranking.counted == len(alive) == 30


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


def test_equal_distances_of_matches_alone_are_no_tie() -> None:
    assert not one_query([1, 1, 0], distances=[0.5, 0.5, 0.7]).tied[0]
    assert not one_query([1, 0, 0], distances=[0.5, 0.7, 0.7]).tied[0]
    assert not one_query([1, -1, 0], distances=[0.5, 0.5, 0.7]).tied[0]
    assert one_query([1, 0, 0], distances=[0.5, 0.5, 0.7]).tied[0]


# means and refusals


def unanswered() -> Ranking:
    """Three queries: one answered at rank 2, one of nobody in the gallery, one whose only match its camera took."""
    return rank_distances(
        [torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])],
        query_pids=[1, 9, 1],
        gallery_pids=[1, 2],
        query_cams=[1, 1, 2],
        gallery_cams=[2, 1],
    )


def test_queries_without_a_match_are_counted_and_in_no_mean_but_that_over_all() -> None:
    ranking = unanswered()
    assert ranking.valid.tolist() == [True, False, False]
    assert (ranking.counted, ranking.skipped) == (1, 2)
    assert ranking.cmc((1, 2)) == {1: 0.0, 2: 1.0}
    assert ranking.mean(ranking.average_precision) == 0.25
    assert ranking.cmc((1, 2), over="all") == pytest.approx({1: 0.0, 2: 1 / 3})
    assert ranking.mean(ranking.average_precision, over="all") == pytest.approx(0.25 / 3)


def test_means_without_any_valid_query_are_refused() -> None:
    ranking = rank_distances([torch.ones(2, 1)], query_pids=[1, 2], gallery_pids=[3], protocol="any-camera")
    assert ranking.counted == 0
    with pytest.raises(DataError, match="none of the 2 queries has a match in the gallery under protocol 'any-camera'"):
        ranking.cmc()
    with pytest.raises(DataError, match="none of the 2 queries"):
        ranking.mean(ranking.average_precision, over="all")


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([torch.ones(1, 3)], "hold 1 rows for 2 queries"),
        ([], "hold 0 rows for 2 queries"),
        ([torch.ones(2, 3), torch.ones(1, 3)], r"shape \(1, 3\) at query 2: at most 0 rows and exactly 3 columns"),
        ([torch.ones(2, 4)], r"shape \(2, 4\) at query 0"),
        ([torch.ones(3)], r"shape \(3,\) at query 0"),
        ([torch.ones(2, 3, dtype=torch.int64)], "torch.int64 at query 0"),
        ([torch.ones(1, 3), torch.ones(1, 3, dtype=torch.float16)], "torch.float16 at query 1"),
        ([torch.ones(1, 3), torch.ones(1, 3, dtype=torch.float64)], "torch.float64 at query 1"),
    ],
)
def test_rank_distances_refuses_blocks_that_do_not_fit(matrices: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank_distances(matrices, query_pids=[1, 1], gallery_pids=[1, 2, 1], protocol="any-camera")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("column", [0, 3])  # of a match and of junk: whatever takes no part is looked at too
def test_distances_that_are_not_finite_are_refused_by_query(bad: float, dtype: torch.dtype, column: int) -> None:
    distances = torch.ones(3, 4, dtype=dtype)
    distances[1, column] = distances[2, column] = bad
    for sizes in ((1,), (3,)):
        with pytest.raises(DataError, match="distances of query 1 hold NaN or infinity"):
            rank_distances(
                blocks(distances, *sizes), query_pids=[1, 1, 1], gallery_pids=[1, 1, 0, -1], protocol="any-camera"
            )


def test_unknown_means_and_ranks_below_one_are_refused() -> None:
    ranking = rank_distances([torch.ones(1, 1)], query_pids=[1], gallery_pids=[1], protocol="any-camera")
    with pytest.raises(RecipeError, match="rank 0 is not positive"):
        ranking.cmc((1, 0))
    unknown: Any = "vaild"
    with pytest.raises(RecipeError, match="means over 'vaild' are unknown; use valid or all"):
        ranking.mean(ranking.average_precision, over=unknown)
