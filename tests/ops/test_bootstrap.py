from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops import bootstrap
from uda_reid.ops.bootstrap import Estimate, Interval, estimate, interval, resampled_means

Floats = npt.NDArray[np.float64]


def study(
    seeds: int = 3, people: int = 12, *, queries: int = 4, missing: float = 0.0, seed: int = 0
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Values of queries that agree within a person and within a seed, some NaN; people have one query or more."""
    draws = np.random.default_rng(seed)
    identities = np.repeat(np.arange(people) * 7 + 3, draws.integers(1, queries + 1, people))
    draws.shuffle(identities)
    of_person = draws.normal(size=people * 7 + 3)[identities]
    values = (
        of_person + draws.normal(scale=0.3, size=(seeds, 1)) + draws.normal(scale=0.5, size=(seeds, len(of_person)))
    )
    values[:, draws.random(len(of_person)) < missing] = math.nan
    return values, identities


def by_hand(values: Floats, clusters: npt.NDArray[Any], resamples: int, seed: int, name: str) -> list[float]:
    """One draw after another, query by query, in plain numbers."""
    seeds, rows = len(values), [row for row in range(values.shape[1]) if not np.isnan(values[:, row]).all()]
    people = sorted({clusters[row] for row in rows})
    of_seeds = np.random.default_rng([seed, 0]).multinomial(seeds, [1 / seeds] * seeds, size=resamples)
    draws = np.random.default_rng([seed, 1, zlib.crc32(name.encode())])
    found = []
    for times in of_seeds:
        drawn = [people[int(number)] for number in draws.integers(len(people), size=len(people))]
        chosen = [row for person in drawn for row in rows if clusters[row] == person]
        total = 0.0
        for number, often in enumerate(times):
            kept = [float(values[number, row]) for row in chosen if not math.isnan(values[number, row])]
            if often:
                total += often * (sum(kept) / len(kept) if kept else math.nan)
        found.append(total / seeds)
    return found


@pytest.mark.parametrize(("seeds", "missing"), [(1, 0.0), (3, 0.0), (3, 0.2)])
def test_means_are_those_of_drawing_one_person_after_another(seeds: int, missing: float) -> None:
    values, identities = study(seeds, missing=missing)
    expected = by_hand(values, identities, 50, 5, "a pair")
    found = resampled_means(values, identities, resamples=50, seed=5, name="a pair")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_query_that_one_seed_misses_is_out_of_that_seed_alone() -> None:
    values, identities = study()
    values[1, ::3] = math.nan
    expected = by_hand(values, identities, 40, 0, "")
    np.testing.assert_allclose(resampled_means(values, identities, resamples=40), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 40, 1 << 20])
def test_means_do_not_depend_on_how_many_are_held_at_a_time(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, identities = study()
    whole = resampled_means(values, identities, resamples=100)
    monkeypatch.setattr(bootstrap, "ENTRIES", entries)
    np.testing.assert_allclose(resampled_means(values, identities, resamples=100), whole, rtol=0, atol=1e-12)


def test_spread_of_the_draws_is_the_one_that_theory_has_for_equal_clusters() -> None:
    """Of K clusters of one size, the variance of a drawn mean is the clusters' (divisor K) over K."""
    people = np.repeat(np.arange(50), 3)
    values = np.random.default_rng(1).normal(size=(1, 150))
    means = values.reshape(50, 3).mean(1)
    found = resampled_means(values, people)
    assert found.mean() == pytest.approx(means.mean(), abs=4 * means.std() / math.sqrt(50 * 10_000))
    assert found.std() == pytest.approx(means.std() / math.sqrt(50), rel=0.03)  # of 10,000: +- 0.7 %


def test_interval_over_queries_is_that_of_scipy() -> None:
    values = np.random.default_rng(2).gamma(1.0, size=(1, 200))
    theirs = stats.bootstrap(
        (values[0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    )
    mine = estimate(values, np.arange(200)).by_query
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert mine.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert mine.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_interval_over_people_holds_the_truth_as_often_as_it_says_and_that_over_queries_does_not() -> None:
    """Forty people of six queries each, who succeed and fail together; the true mean is 0."""
    held = {"by_identity": 0, "by_query": 0}
    studies = 300
    for number in range(studies):
        draws = np.random.default_rng([9, number])
        people = np.repeat(np.arange(40), 6)
        values = draws.normal(size=40)[people] + draws.normal(scale=0.5, size=(1, 240))
        found = estimate(values, people, resamples=400, seed=number)
        for kind in held:
            low, high = getattr(found, kind)
            held[kind] += low <= 0 <= high
    assert 0.90 <= held["by_identity"] / studies <= 0.98
    assert held["by_query"] / studies < 0.75


def test_estimate_tells_what_was_measured() -> None:
    values, identities = study(missing=0.2)
    found = estimate(values, identities, resamples=200)
    means = [float(np.mean([each for each in row if not math.isnan(each)])) for row in values]
    assert found.mean == pytest.approx(sum(means) / 3)
    assert found.spread == pytest.approx(math.sqrt(sum((each - sum(means) / 3) ** 2 for each in means) / 2))
    assert found.by_identity.low < found.mean < found.by_identity.high
    known = {person for person, column in zip(identities, values.T, strict=True) if not np.isnan(column).all()}
    assert (found.identities, found.seeds) == (len(known), 3)
    assert math.isnan(estimate(values[:1], identities, resamples=10).spread)
    low, high = estimate(values, identities, resamples=200, level=0.5).by_identity
    assert found.by_identity.low < low < high < found.by_identity.high


def test_seeds_are_drawn_alike_under_every_name_and_people_are_not() -> None:
    values, identities = study()
    constant = np.broadcast_to(np.array([[0.0], [1.0], [3.0]]), (3, 4))  # nothing but seeds tells draws apart
    one, other = (resampled_means(constant, np.arange(4), resamples=50, name=name) for name in ("a", "b"))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) > 3
    first = resampled_means(values, identities, resamples=50, name="a")
    np.testing.assert_array_equal(first, resampled_means(values, identities, resamples=50, name="a"))
    assert not np.array_equal(first, resampled_means(values, identities, resamples=50, name="b"))
    assert not np.array_equal(first, resampled_means(values, identities, resamples=50, name="a", seed=1))


def test_few_people_and_losses_are_told() -> None:
    def found(people: int, high: float) -> Estimate:
        return Estimate(-0.1, 0.0, Interval(-0.2, high), Interval(-0.2, 1.0), people, 3)

    assert found(30, -0.1).reliable and not found(29, -0.1).reliable
    assert found(30, -0.1).below_zero and not found(30, 0.0).below_zero


def test_a_draw_without_any_counted_query_is_left_out() -> None:
    values = np.array([[1.0, math.nan], [math.nan, 3.0]])
    drawn = resampled_means(values, np.array([0, 1]), resamples=200)
    assert np.isnan(drawn).any() and not np.isnan(drawn).all()
    assert not any(map(math.isnan, interval(drawn)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": np.zeros(4)}, DataError, r"must be \(S, Q\) and \(Q,\), not \(4,\) and \(4,\)"),
        ({"clusters": np.zeros(3)}, DataError, r"not \(2, 4\) and \(3,\)"),
        ({"values": np.array([[1.0] * 4, [math.nan] * 4])}, DataError, "a seed has no counted query"),
        ({"values": np.zeros((0, 4))}, DataError, "a seed has no counted query"),
        ({"resamples": 0}, RecipeError, "resamples 0 is not a positive number"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resampled_means(**{"values": np.zeros((2, 4)), "clusters": np.arange(4), **change})


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 95.0])
def test_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(RecipeError, match="is not between 0 and 1"):
        interval(np.zeros(3), level)


def test_ends_of_an_interval_are_the_quantiles_of_its_level() -> None:
    drawn = np.random.default_rng(0).permutation(np.arange(10_001.0))
    assert list(interval(drawn, 0.95)) == pytest.approx([250, 9750])


def test_interval_over_queries_is_of_all_seeds() -> None:
    values, identities = study()
    found = estimate(values, identities, resamples=2000)
    drawn = resampled_means(values, np.arange(values.shape[1]), resamples=2000)
    assert found.by_query == interval(drawn)
    assert found.by_query != estimate(values[:1], identities, resamples=2000).by_query


def test_people_count_if_any_of_their_queries_counts_for_any_seed() -> None:
    values = np.array([[0.1, math.nan, math.nan, 0.4], [math.nan, math.nan, 0.3, 0.4]])
    assert estimate(values, np.array([1, 2, 3, 4]), resamples=10).identities == 3
