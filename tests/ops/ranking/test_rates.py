from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from torch import Tensor

from tests import oracles
from tests.ops.ranking.searches import NAMES, Search, assert_identical, blocks, one_query, random_search, searches
from uda_reid.errors import RecipeError
from uda_reid.ops.ranking import RATES, rank_distances
from uda_reid.ops.ranking.rates import Nearest


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_sklearn(matches: list[float], wrongs: list[float], rate: float) -> float:
    """The true-positive rate at the largest threshold that keeps to the rate, by scikit-learn."""
    false, true, _ = roc_curve(
        [1] * len(matches) + [0] * len(wrongs), -np.array(matches + wrongs), drop_intermediate=False
    )
    return float(true[false <= rate].max())


def busy_search(seed: int, *, queries: int = 60, gallery: int = 300) -> Search:
    """Many pairs, few identities, ties all over."""
    generator = np.random.default_rng(seed)
    return Search(
        distances=generator.integers(0, 400, (queries, gallery)).tolist(),
        query_pids=generator.integers(1, 4, queries).tolist(),
        gallery_pids=generator.integers(-1, 6, gallery).tolist(),
        query_cams=generator.integers(0, 3, queries).tolist(),
        gallery_cams=generator.integers(0, 3, gallery).tolist(),
        protocol=NAMES[seed % 3],
    )


# the value


@limits(max_examples=150)
@given(search=searches(), rate=st.floats(0, 1, exclude_min=True))
def test_accepted_equals_the_loops_and_sklearn_at_any_rate(search: Search, rate: float) -> None:
    matches, wrongs = search.pairs()
    found = search.rank(rates=(rate,)).accepted[rate]
    if not matches:
        assert math.isnan(found)
        return
    assert found == pytest.approx(oracles.true_positive_rate(matches, wrongs, rate), abs=1e-12)
    if wrongs:
        assert found == pytest.approx(by_sklearn(matches, wrongs, rate), abs=1e-12)


def test_accepted_equals_sklearn_where_a_share_of_the_wrong_pairs_is_the_rate_itself() -> None:
    # In floating point 0.29 * 100 is a little less than 29, and 29 / 100 is 0.29.
    rates = tuple(percent / 100 for percent in range(1, 101))
    ranking = one_query([0, 1] * 100, rates=rates)
    matches, wrongs = [0.1 * place for place in range(1, 200, 2)], [0.1 * place for place in range(0, 200, 2)]
    assert ranking.accepted == {rate: by_sklearn(matches, wrongs, rate) for rate in rates}
    assert ranking.accepted[0.29] == 0.29


def test_accepted_falls_between_the_decisive_distances() -> None:
    # Of 4 wrong images 0, 1, 2 and all may be nearer than the threshold; matches at a threshold's distance stay out.
    relevance, distances = [1, 0, 1, 0, 1, 0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0, 4.0, 6.0, 7.0, 8.0, 9.0]
    found = one_query(relevance, distances, rates=(0.2, 0.25, 0.49, 0.5, 0.75, 0.99, 1.0)).accepted
    assert found == {0.2: 0.2, 0.25: 0.4, 0.49: 0.4, 0.5: 0.6, 0.75: 0.8, 0.99: 0.8, 1.0: 1.0}


def test_perfect_separation_is_one_and_reversed_zero() -> None:
    rates = (1e-4, 0.1, 0.9)
    assert one_query([1] * 5 + [0] * 20, rates=rates).accepted == dict.fromkeys(rates, 1.0)
    assert one_query([0] * 20 + [1] * 5, rates=rates).accepted == dict.fromkeys(rates, 0.0)
    assert one_query([0] * 20 + [1] * 5, rates=(1.0,)).accepted == {1.0: 1.0}


def test_pairs_of_all_queries_count_and_what_the_protocol_removes_does_not() -> None:
    # Pairs left: 0.2 and 0.9 match; 0.1, 0.3 and 0.4 are wrong, 0.4 for a query that nobody answers.
    ranking = rank_distances(
        [torch.tensor([[0.0, 0.2, 0.9, 0.3, 0.05], [0.4, 0.0, 0.0, 0.1, 0.0]])],
        query_pids=[1, 3],
        gallery_pids=[1, 1, 1, 0, -1],
        query_cams=[1, 2],
        gallery_cams=[1, 2, 2, 1, 1],
        protocol="cross-camera",
        rates=(0.3, 0.5, 1.0),
    )
    assert ranking.valid.tolist() == [True, False]
    assert ranking.accepted == {0.3: 0.0, 0.5: 0.5, 1.0: 1.0}


def test_a_match_without_any_wrong_pair_is_accepted() -> None:
    assert one_query([1, 1, -1]).accepted == {1e-4: 1.0, 1e-3: 1.0}


def test_accepted_is_nan_without_a_match() -> None:
    ranking = one_query([0, 0, -1], rates=(0.5, 1.0))
    assert list(ranking.accepted) == [0.5, 1.0]
    assert all(map(math.isnan, ranking.accepted.values()))


def test_rates_are_told_in_the_order_asked_and_none_where_none_is() -> None:
    assert list(one_query([1, 0]).accepted) == list(RATES)
    assert list(one_query([1, 0], rates=(0.5, 1e-4, 1.0)).accepted) == [0.5, 1e-4, 1.0]
    assert one_query([1, 0], rates=()).accepted == {}


def test_accepted_cannot_be_changed() -> None:
    accepted: Any = one_query([1, 0]).accepted
    with pytest.raises(TypeError, match="does not support item assignment"):
        accepted[0.5] = 1.0


@pytest.mark.parametrize("rate", [0, -0.1, 1.0000001, 2, float("nan"), float("inf")])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(RecipeError, match=f"a false-positive rate of {rate} is out of range; use more than 0"):
        one_query([1, 0], rates=(0.5, rate))


# the same for every way to get there


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("pool", [1 << 18, 1])  # with 1, a thread hands over after every query or two
@pytest.mark.parametrize("rates", [(1e-4, 1e-3), (0.05, 0.5), (1.0,), ()])
def test_blocks_threads_and_full_pools_change_no_bit(
    threads: int, pool: int, rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = busy_search(len(rates))
    matrix = search.matrix()
    torch.set_num_threads(1)
    expected = search.rank_matrix(matrix, rates=rates)
    matches, wrongs = map(np.sort, search.pairs())
    for rate in rates:
        cut = wrongs[int(rate * len(wrongs))] if rate < 1 else np.inf
        assert expected.accepted[rate] == (matches < cut).mean()
    torch.set_num_threads(threads)
    monkeypatch.setattr("uda_reid.ops.ranking.POOL", pool)
    for sizes in ((60,), (1,), (7, 30, 3)):
        assert_identical(expected, search.rank_matrix(matrix, *sizes, rates=rates))


@pytest.mark.parametrize("seed", range(20))
def test_pools_that_hold_one_row_give_the_loops_values(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uda_reid.ops.ranking.POOL", 1)
    search = random_search(np.random.default_rng(seed), queries=8, gallery=12)
    assert dict(search.rank(rates=(0.1, 0.5, 1.0)).accepted) == pytest.approx(
        {rate: oracles.true_positive_rate(*search.pairs(), rate) for rate in (0.1, 0.5, 1.0)}, nan_ok=True
    )


# the stream


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("eager", [False, True])
def test_nearest_equals_the_loops_however_the_stream_is_cut(seed: int, eager: bool) -> None:
    generator = np.random.default_rng(seed)
    wrongs = generator.integers(0, 50, generator.integers(1, 300)).astype(np.float32)
    matches = generator.integers(0, 50, generator.integers(1, 60)).astype(np.float32)
    rates = (0.01, 0.1, 0.5) if seed % 2 else (0.02,)
    nearest = Nearest(rates, len(wrongs) + int(generator.integers(0, 200)))
    cuts = (np.sort(generator.integers(0, len(side) + 1, 12)) for side in (wrongs, matches))
    for part, hits in zip(
        *(np.split(side, cut) for side, cut in zip((wrongs, matches), cuts, strict=True)), strict=True
    ):
        if eager:  # leave out what cannot matter any more
            part, hits = part[part < nearest.cutoff], hits[hits < nearest.cutoff]
        nearest.add(part, hits)
    assert nearest.accepted(len(matches), len(wrongs)) == pytest.approx(
        {rate: oracles.true_positive_rate(matches.tolist(), wrongs.tolist(), rate) for rate in rates}
    )


def test_added_distances_are_left_as_they_are() -> None:
    wrongs, matches = np.array([3.0, 1.0, 2.0, 0.0] * 5), np.array([1.0, 0.0])
    nearest = Nearest((0.1,), 20)
    nearest.add(wrongs, matches)
    assert nearest.cutoff < math.inf
    np.testing.assert_array_equal(wrongs, [3.0, 1.0, 2.0, 0.0] * 5)
    np.testing.assert_array_equal(matches, [1.0, 0.0])


def test_no_more_is_kept_than_the_highest_rate_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uda_reid.ops.ranking.POOL", 1)
    queries, gallery = 300, 5000
    generator = torch.Generator().manual_seed(0)

    def stream() -> Iterator[Tensor]:
        for _ in range(queries):
            yield torch.rand(1, gallery, generator=generator)

    pids = [1] * 10 + [0] * (gallery - 10)
    rank_distances(blocks(torch.rand(1, gallery), 1), query_pids=[1], gallery_pids=pids, protocol="any-camera")
    tracemalloc.start()
    rank_distances(stream(), query_pids=[1] * queries, gallery_pids=pids, protocol="any-camera", rates=(1e-3,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < queries * gallery * 4 / 10  # a tenth of all distances
