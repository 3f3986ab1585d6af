"""What holds of every measure, whatever the search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.ops.ranking.searches import (
    Search,
    assert_identical,
    big_search,
    blocks,
    searches,
)
from uda_reid.ops.ranking import rank_distances


@limits(max_examples=100)
@given(search=searches())
def test_trapezoid_is_at_most_step_and_both_are_one_only_when_every_match_comes_first(search: Search) -> None:
    ranking = search.rank()
    for query in np.flatnonzero(ranking.valid):
        relevance = search.relevance(int(query))
        trapezoid, step = ranking.average_precision[query], ranking.average_precision_step[query]
        assert trapezoid <= step
        perfect = relevance == sorted(relevance, reverse=True)
        assert (trapezoid == 1) == (step == 1) == (ranking.inverse_penalty[query] == 1) == perfect


@limits(max_examples=100)
@given(search=searches())
def test_monotone_maps_of_the_distances_change_nothing(search: Search) -> None:
    mapped = [[7 * distance**3 - 2 for distance in row] for row in search.distances]
    assert_identical(search.rank(), replace(search, distances=mapped).rank())


@limits(max_examples=100)
@given(search=searches())
def test_deleting_junk_from_the_gallery_changes_nothing(search: Search) -> None:
    kept = [g for g, pid in enumerate(search.gallery_pids) if pid != -1]
    if not kept:
        assert search.rank().counted == 0
        return
    without = replace(
        search,
        distances=[[row[g] for g in kept] for row in search.distances],
        gallery_pids=[search.gallery_pids[g] for g in kept],
        gallery_cams=[search.gallery_cams[g] for g in kept],
    )
    assert_identical(search.rank(), without.rank())


@limits(max_examples=100)
@given(search=searches(), seed=st.integers(0, 99))
def test_another_order_of_the_gallery_changes_no_query_without_a_tie(search: Search, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(search.gallery_pids))
    shuffled = replace(
        search,
        distances=[[row[g] for g in order] for row in search.distances],
        gallery_pids=[search.gallery_pids[g] for g in order],
        gallery_cams=[search.gallery_cams[g] for g in order],
    )
    one, other = search.rank(), shuffled.rank()
    for name in ("valid", "average_precision_merged", "tied", "near"):  # by these, order never matters
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("average_precision", "average_precision_step", "inverse_penalty", "first"):
        clear = getattr(one, name)[~one.tied]
        np.testing.assert_array_equal(getattr(other, name)[~one.tied], clear, err_msg=name)
    np.testing.assert_equal(dict(one.accepted), dict(other.accepted))


@limits(max_examples=100)
@given(search=searches(), seed=st.integers(0, 99))
def test_another_order_of_the_queries_only_orders_the_result(search: Search, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(search.query_pids))
    shuffled = replace(
        search,
        distances=[search.distances[query] for query in order],
        query_pids=[search.query_pids[query] for query in order],
        query_cams=[search.query_cams[query] for query in order],
    )
    one, other = search.rank(), shuffled.rank()
    for name in ("valid", "average_precision", "average_precision_merged", "inverse_penalty", "first", "tied", "near"):
        np.testing.assert_array_equal(getattr(one, name)[order], getattr(other, name), err_msg=name)
    np.testing.assert_equal(dict(one.accepted), dict(other.accepted))


@limits(max_examples=100)
@given(search=searches(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_blocks_of_any_size_give_the_same_bits(search: Search, sizes: list[int]) -> None:
    assert_identical(search.rank(), search.rank(*sizes))


def test_blocks_of_any_size_give_the_same_bits_on_a_big_search() -> None:
    distances, labels = big_search()
    whole = rank_distances([distances], **labels)
    assert whole.ties > 40
    for sizes in ((1,), (7, 30, 3)):
        assert_identical(whole, rank_distances(blocks(distances, *sizes), **labels))
