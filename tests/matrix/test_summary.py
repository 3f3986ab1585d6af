from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.matrix.examples import IDENTITIES, MANY, PAIRS, record, runs, scores, varied
from uda_reid.errors import DataError
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Spread
from uda_reid.matrix.summary import groups, metrics, per_query, scores_of, summarise
from uda_reid.ops.bootstrap import estimate, interval, resampled_means
from uda_reid.report import BOUND, SOURCE_ONLY, Row


def test_metrics_are_in_percent() -> None:
    assert metrics(scores([0.2, 0.4])) == pytest.approx(
        {"mAP": 30, "mAP step": 31, "rank-1": 40, "rank-5": 50, "rank-10": 60, "mINP": 15}
    )


def test_summary_has_the_rows_that_frame_the_recipes_and_the_numbers_of_every_seed() -> None:
    summary = summarise(runs(), PAIRS, (0, 1), resamples=200)
    assert [method.name for method in summary.methods] == [SOURCE_ONLY, "up", "down", BOUND]
    start, up, down, bound = summary.methods
    assert [method.adapts for method in summary.methods] == [False, True, True, False]
    assert start.cells["a", "b"].values["mAP"] == pytest.approx((22.5, 23.5))
    assert start.cells["b", "a"].values["mAP"] == pytest.approx((32.5, 33.5))
    assert up.cells["a", "b"].gains == pytest.approx((10, 10)) and down.cells["b", "a"].gains == pytest.approx((-5, -6))
    assert up.average == pytest.approx((37.5, 38.5)) and up.average_gain == pytest.approx((10, 10))
    assert down.cells["a", "b"].spread("mAP").mean == pytest.approx(17.5)
    assert up.cells["a", "b"].shares == pytest.approx((10 / 67.5, 10 / 66.5))
    assert down.cells["a", "b"].forgotten == pytest.approx((-5, -6))
    assert bound.cells["a", "b"].values["mAP"] == pytest.approx((90, 90)) and bound.cells["a", "b"].shares == ()
    assert start.cells["a", "b"].gain is None and start.cells["a", "b"].gains == () and start.interval is None
    assert summary.starts == 1


def test_intervals_are_those_of_the_bootstrap_on_the_differences() -> None:
    found = runs()
    summary = summarise(found, PAIRS, (0, 1), resamples=200)
    down = summary.methods[2]
    records = [found["down"][Place("a", "b", seed)] for seed in (0, 1)]
    values = np.stack([each.adapted.scored.average_precision for each in records])
    before = np.stack([each.start.scored.average_precision for each in records])
    people = np.array(IDENTITIES)
    assert down.cells["a", "b"].level == estimate(values, people, resamples=200, name="b")
    assert down.cells["a", "b"].gain == estimate(values - before, people, resamples=200, name="b")
    assert down.cells["a", "b"].negative and not summary.methods[1].cells["a", "b"].negative
    drawn = []
    for source, target in PAIRS:
        own = [found["down"][Place(source, target, seed)] for seed in (0, 1)]
        gains = np.stack([each.adapted.scored.average_precision - each.start.scored.average_precision for each in own])
        drawn.append(resampled_means(gains, people, resamples=200, name=target))
    assert down.interval == interval((drawn[0] + drawn[1]) / 2)


def test_interval_of_the_share_draws_the_same_people_above_and_below() -> None:
    found = varied()
    cell = summarise(found, MANY, (0, 1, 2), resamples=4000).methods[1].cells["a", "b"]
    records = [found["pul"][Place("a", "b", seed)] for seed in (0, 1, 2)]
    people = np.array(records[0].identities)
    rows = [np.stack([scores_of(each, name).average_precision for each in records]) for name in ("pul", BOUND)]
    start = np.stack([scores_of(each, SOURCE_ONLY).average_precision for each in records])
    gain, gap = rows[0] - start, rows[1] - start
    chance, shares = np.random.default_rng(1), []
    queries = [np.flatnonzero(people == person) for person in range(35)]
    for _ in range(4000):
        chosen = np.concatenate([queries[person] for person in chance.integers(35, size=35)])
        seeds = chance.integers(3, size=3)
        shares.append(np.mean(gain[seeds][:, chosen].mean(1) / gap[seeds][:, chosen].mean(1)))
    low, high = np.quantile(shares, [0.025, 0.975])
    assert cell.share is not None
    assert cell.share.low == pytest.approx(low, abs=0.006) and cell.share.high == pytest.approx(high, abs=0.006)
    assert high - low > 0.03 and low < np.mean([share for share in cell.shares if share is not None]) < high


def test_share_of_a_gap_that_is_hardly_there_has_no_interval() -> None:
    found = runs()
    for seed in (0, 1):
        place = Place("a", "b", seed)
        before = [0.1, 0.1, 0.9, 0.1, 0.1, 0.88]
        found["up"][place] = record("up", place, before, [value + 0.01 for value in before], 0.4)
    cell = summarise(found, PAIRS, (0, 1), resamples=400).methods[1].cells["a", "b"]
    assert None not in cell.shares and len(cell.shares) == 2 and cell.share is None
    assert summarise(runs(bound=None), PAIRS, (0, 1), resamples=10).methods[1].cells["a", "b"].share is None
    near = runs()
    place = Place("a", "b", 0)
    near["up"][place] = record("up", place, [0.89] * 6, [0.9] * 6)  # one seed without a share, and a gap to draw from
    cell = summarise(near, PAIRS, (0, 1), resamples=400).methods[1].cells["a", "b"]
    assert cell.shares[0] is None and cell.share is None


def test_places_are_among_source_only_and_the_recipes() -> None:
    start, up, down, bound = summarise(runs(), PAIRS, (0, 1), resamples=10).methods
    assert (start.rank, up.rank, down.rank) == (2, 1, 3)
    assert math.isnan(bound.rank)
    found = runs()
    found["same"] = {
        place: replace(each, rows=(each.rows[0], replace(each.rows[1], name="same"), *each.rows[2:]))
        for place, each in found["up"].items()
    }
    tied = {method.name: method.rank for method in summarise(found, PAIRS, (0, 1), resamples=10).methods}
    assert (tied["up"], tied["same"], tied[SOURCE_ONLY]) == (1.5, 1.5, 3)


def test_a_run_that_is_missing_takes_no_other_with_it() -> None:
    found = runs()
    del found["up"][Place("a", "b", 1)]
    summary = summarise(found, PAIRS, (0, 1), missing=("a -> b, up, seed 1 (failed)",), resamples=10)
    start, up, down, _ = summary.methods
    assert up.cells["a", "b"].seeds == (0,) and down.cells["a", "b"].seeds == start.cells["a", "b"].seeds == (0, 1)
    assert up.average == pytest.approx((37.5,)) and up.interval is None and down.interval is not None
    assert (start.rank, up.rank, down.rank) == (2, 1, 3)  # of the places where all are there
    del found["up"][Place("a", "b", 0)]
    up = summarise(found, PAIRS, (0, 1), resamples=10).methods[1]
    assert up.cells.keys() == {("b", "a")} and up.average == () and up.average_gain == ()


def test_recipes_with_another_source_model_stand_apart_with_a_source_only_of_their_own() -> None:
    found = runs()
    place = Place("a", "b", 0)
    found["wide"] = {place: record("wide", place, [0.4] * 6, [0.5] * 6, options={"encoder": {"hidden": 256}})}
    assert groups(found) == [["source_only", "up", "down"], ["wide"]]
    summary = summarise(found, PAIRS, (0, 1), resamples=10)
    names = [(method.name, method.start) for method in summary.methods]
    assert names[4:] == [(SOURCE_ONLY, 1), ("wide", 1), (BOUND, 1)] and summary.starts == 2
    assert summary.methods[4].cells["a", "b"].values["mAP"] == pytest.approx((40,))


def test_matrix_without_bounds_has_none_and_no_shares() -> None:
    summary = summarise(runs(bound=None), PAIRS, (0, 1), resamples=10)
    assert [method.name for method in summary.methods] == [SOURCE_ONLY, "up", "down"]
    assert summary.methods[1].cells["a", "b"].shares == ()


def test_seeds_that_were_asked_other_queries_have_no_interval() -> None:
    place = Place("a", "b", 0)
    one, other = (record("up", place, [0.1] * 6, [0.2] * 6) for _ in range(2))
    found = per_query([one, other], "up", SOURCE_ONLY)
    assert found is not None
    np.testing.assert_allclose(found[0], np.full((2, 6), 0.1))
    assert per_query([one, replace(other, identities=IDENTITIES[::-1])], "up", None) is None
    assert per_query([replace(one, identities=())], "up", None) is None
    unscored = replace(one, rows=(one.rows[0], Row("up", scores([math.nan] * 5 + [0.1]), {}), one.rows[2]))
    assert per_query([unscored], "up", None) is not None
    nothing = replace(scores([0.1]), average_precision=np.full(6, math.nan))
    assert per_query([replace(one, rows=(one.rows[0], Row("up", nothing, {})))], "up", None) is None


def test_spread_of_no_seed_is_no_number() -> None:
    found = Spread.of([])
    assert math.isnan(found.mean) and math.isnan(found.deviation) and found.seeds == 0


def test_pairs_with_one_target_draw_the_same_people() -> None:
    found = varied()
    summary = summarise(found, MANY, (0, 1, 2), resamples=300)
    pul = next(method for method in summary.methods if method.name == "pul")
    drawn = []
    for source, target in MANY:
        own = [found["pul"][Place(source, target, seed)] for seed in (0, 1, 2)]
        values = np.stack([each.adapted.scored.average_precision - each.start.scored.average_precision for each in own])
        drawn.append(resampled_means(values, np.array(own[0].identities), resamples=300, name=target))
    assert pul.interval == interval(np.mean(drawn, axis=0))
    assert pul.interval is not None and pul.interval.low < np.mean(pul.average_gain) / 100 < pul.interval.high


def test_rows_that_recipes_share_come_from_the_run_that_has_them() -> None:
    found = varied()
    place = Place("a", "b", 1)
    for recipe in ("pul", "adda"):  # neither the first nor the last one's loss is everybody's
        broken = {**found, recipe: dict(found[recipe])}
        broken[recipe][place] = replace(found[recipe][place], rows=found[recipe][place].rows[:2], gap={})
        summary = summarise(broken, MANY, (0, 1, 2), resamples=10)
        bound = next(method for method in summary.methods if method.name == BOUND and method.start == 0)
        assert bound.cells["a", "b"].seeds == (0, 1, 2)
        assert len(summary.gaps[0].measured["a", "b"]["MMD"]) == 3
        assert next(method for method in summary.methods if method.name == recipe).cells["a", "b"].shares == ()


def test_every_source_model_has_its_own_rows_and_gaps() -> None:
    summary = summarise(varied(), MANY, (0, 1, 2), resamples=10)
    assert [(method.name, method.start, method.recipes) for method in summary.methods] == [
        *((name, 0, ("pul", "adda")) for name in (SOURCE_ONLY, "pul", "adda", BOUND)),
        *((name, 1, ("wide",)) for name in (SOURCE_ONLY, "wide", BOUND)),
    ]  # fmt: skip
    assert [each.start for each in summary.gaps] == [0, 1]
    assert summary.methods[6].cells["a", "b"].values["mAP"] == pytest.approx((90, 90, 90))
    levels = [each.levels["a", "b"] for each in summary.gaps]
    assert levels[1] - levels[0] == pytest.approx(0.2)
    assert 100 * levels[1] == pytest.approx(summary.methods[4].cells["a", "b"].spread("mAP").mean)


def test_what_adapting_cost_is_told_where_all_seeds_have_it() -> None:
    found = runs()
    place = Place("a", "b", 1)
    found["up"][place] = replace(found["up"][place], on_source=())
    up = summarise(found, PAIRS, (0, 1), resamples=10).methods[1]
    assert up.cells["a", "b"].forgotten == () and len(up.cells["b", "a"].forgotten) == 2


def test_run_without_a_row_is_no_other_row() -> None:
    place = Place("a", "b", 0)
    with pytest.raises(DataError, match="the run of up has no row supervised"):
        scores_of(record("up", place, [0.1] * 6, [0.2] * 6, bound=None), BOUND)


def test_spread_of_numbers_that_do_not_exist_is_none() -> None:
    found = Spread.of([math.nan, math.nan])
    assert math.isnan(found.mean) and math.isnan(found.deviation) and found.seeds == 2
