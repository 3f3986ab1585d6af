from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.matrix.examples import PAIRS, runs
from uda_reid.matrix import tables
from uda_reid.matrix.gaps import gaps
from uda_reid.matrix.page import layers, render
from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import Runs, summarise
from uda_reid.report import Record


def measured() -> dict[str, dict[Place, Record]]:
    """Runs whose gap is the larger the lower their source-only mAP is."""
    found = runs()
    for places in found.values():
        for place, record in places.items():
            size = 1 - record.start.scored.mean_ap
            names = {"MMD": size, "proxy-A": 1.0, "batch norm": size, "batch norm, layer 01": size}
            places[place] = replace(record, gap={**names, "batch norm, layer 02": 2 * size})
    return found


def test_gaps_are_those_of_every_pair_and_seed_and_foretell_the_source_model() -> None:
    found = gaps(measured()["up"], PAIRS)
    assert found.measured["a", "b"]["MMD"] == pytest.approx((0.775, 0.765))
    assert found.layers["b", "a"] == pytest.approx((0.67, 1.34))
    assert found.correlation["MMD"] == found.correlation["batch norm"] == -1
    assert math.isnan(found.correlation["proxy-A"]) and found.runs == 4


def test_table_and_chart_show_them() -> None:
    summary = summarise(measured(), PAIRS, (0, 1), resamples=10)
    assert tables.gap(summary) == [
        ["a → b", "0.770", "0.770", "1.000", "23.0"],
        ["b → a", "0.670", "0.670", "1.000", "33.0"],
        ["rank correlation with it, 4 pairs and seeds", "−1.00", "−1.00", "n/a", ""],
    ]
    chart = layers(summary)
    assert chart is not None and [curve.name for curve in chart.curves] == ["a → b", "b → a"]
    assert "How far apart</h2>" in render(summary, measured(), {}, command="", origin="")


def test_matrix_without_gaps_has_no_such_part() -> None:
    found: Runs = runs()
    summary = summarise(found, PAIRS, (0, 1), resamples=10)
    assert summary.gaps is None and layers(summary) is None and tables.gap(summary) == []
    assert "How far apart</h2>" not in render(summary, found, {}, command="", origin="")
