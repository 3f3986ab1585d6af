from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.matrix.examples import IDENTITIES, PAIRS, record, runs, scores
from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import Spread, groups, metrics, per_query, summarise
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
    assert down.cells["a", "b"].level == estimate(values, people, resamples=200, name="a -> b")
    assert down.cells["a", "b"].gain == estimate(values - before, people, resamples=200, name="a -> b")
    assert down.cells["a", "b"].negative and not summary.methods[1].cells["a", "b"].negative
    drawn = []
    for source, target in PAIRS:
        own = [found["down"][Place(source, target, seed)] for seed in (0, 1)]
        gains = np.stack([each.adapted.scored.average_precision - each.start.scored.average_precision for each in own])
        drawn.append(resampled_means(gains, people, resamples=200, name=f"{source} -> {target}"))
    assert down.interval == interval((drawn[0] + drawn[1]) / 2)


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
