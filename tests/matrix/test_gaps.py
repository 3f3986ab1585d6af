from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from tests.matrix.examples import MANY, PAIRS, runs, varied
from uda_reid.matrix import sheets
from uda_reid.matrix.gaps import gaps
from uda_reid.matrix.page import layers, render
from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import Runs, summarise


def test_gaps_are_those_of_every_pair_and_go_with_the_source_model_over_pairs() -> None:
    records = varied()["pul"]
    found = gaps(records, MANY)
    assert found.measured["a", "b"]["MMD"] == tuple(records[Place("a", "b", seed)].gap["MMD"] for seed in (0, 1, 2))
    assert found.layers["b", "a"] == pytest.approx((0.1, 0.5))
    assert found.correlation["MMD"] == -1  # the larger it is, the lower the source-only mAP
    assert math.isnan(found.correlation["batch norm"])  # it is the same everywhere
    levels = [found.levels[pair] for pair in MANY]
    random = [sum(found.measured[pair]["proxy-A"]) / 3 for pair in MANY]
    expected = stats.spearmanr(levels, random).statistic
    assert found.correlation["proxy-A"] == pytest.approx(expected) and abs(expected) < 1
    assert all(math.isnan(value) for value in gaps(records, MANY[:2]).correlation.values())  # two pairs are no order


def test_measure_that_one_seed_lacks_is_left_out_of_its_pair() -> None:
    records = dict(varied()["pul"])
    place = Place("a", "b", 1)
    records[place] = replace(records[place], gap={"MMD": 0.5})
    assert gaps(records, MANY).measured["a", "b"].keys() == {"MMD"}


def test_table_and_chart_show_them_by_source_model() -> None:
    summary = summarise(varied(), MANY, (0, 1, 2), resamples=10)
    rows = sheets.gap(summary)
    assert [row[0] for row in rows][::6][:2] == ["a → b (a)", "rank correlation over 6 pairs (a)"] and len(rows) == 14
    start = summary.methods[4]
    assert rows[7][0] == "a → b (b)" and rows[7][4] == sheets.number(start.cells["a", "b"].spread("mAP").mean)
    chart = layers(summary, summary.gaps[0])
    assert chart is not None and len(chart.curves) == 6 and chart.name.endswith("(a)")
    assert "How far apart</h2>" in render(summary, varied(), {}, command="", origin="")


def test_matrix_without_gaps_has_no_such_part() -> None:
    found: Runs = runs()
    summary = summarise(found, PAIRS, (0, 1), resamples=10)
    assert summary.gaps == () and sheets.gap(summary) == []
    assert "How far apart</h2>" not in render(summary, found, {}, command="", origin="")
