from __future__ import annotations

import math
import re

import numpy as np
import pytest

from uda_reid.report.figures import Chart, Scatter, line_chart, nice_ticks, scatter


def chart(**curves: list[tuple[float, float]]) -> Chart:
    drawn = line_chart("a chart", curves, x_label="rounds", unit="percent")
    assert drawn is not None
    return drawn


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


def test_points_of_a_curve_lie_where_the_ticks_say() -> None:
    drawn = chart(mAP=[(0, 0.2), (1, 0.3), (2, 0.4)])
    height = {tick.label: tick.at for tick in drawn.y_ticks}
    along = {tick.label: tick.at for tick in drawn.x_ticks}
    (curve,) = drawn.curves
    expected = [(along["0"], height["20"]), (along["1"], height["30"]), (along["2"], height["40"])]
    assert places(curve.path) == [pytest.approx(place, abs=0.01) for place in expected]
    assert [(mark.x, mark.y) for mark in reversed(curve.marks)] == places(curve.path)
    assert curve.marks[0].label == "mAP 40.0, rounds: 2"
    assert drawn.description == "mAP: from 20.0 at 0 to 40.0 at 2"


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.999, 1.0], [-0.4, 0.3], [0.07]])
def test_vertical_axis_holds_zero_and_every_value(values: list[float]) -> None:
    drawn = chart(ARI=list(enumerate(values)))
    labels = [float(tick.label) for tick in drawn.y_ticks]
    assert 0 in labels
    assert labels[0] <= 100 * min(values)
    assert 100 * max(values) <= labels[-1] <= 100
    assert all(drawn.frame.top <= y <= drawn.frame.bottom for _, y in places(drawn.curves[0].path))


def test_values_that_do_not_exist_are_left_out_and_styles_stay() -> None:
    drawn = chart(mAP=[(1, math.nan)], rank1=[(1, 0.5), (2, math.nan), (3, 0.6)])
    (curve,) = drawn.curves
    assert (curve.name, curve.style) == ("rank1", 1)
    assert len(places(curve.path)) == 2
    assert line_chart("a chart", {"mAP": [(1, math.nan)]}, x_label="rounds", unit="percent") is None
    assert line_chart("a chart", {}, x_label="rounds", unit="number") is None


def test_long_curves_have_few_marks_and_one_on_the_last_point() -> None:
    curve = chart(loss=[(step, 0.5) for step in range(100)]).curves[0]
    assert len(curve.marks) <= 12
    assert (curve.marks[0].x, curve.marks[0].y) == places(curve.path)[-1]


def test_single_step_has_its_point_inside() -> None:
    drawn = chart(loss=[(1, 0.5)])
    assert [tick.label for tick in drawn.x_ticks] == ["1"]
    assert drawn.frame.left < drawn.curves[0].marks[0].x < drawn.frame.right
    assert drawn.description == "loss: 50.0"


def test_level_lies_at_its_value_and_is_inside_the_axis() -> None:
    drawn = line_chart(
        "a chart", {"mAP": [(0, 0.1), (1, 0.2)]}, x_label="rounds", unit="percent",
        levels={"bound": (0.6, 0), "missing": (math.nan, 1)},
    )  # fmt: skip
    assert drawn is not None
    (level,) = drawn.levels
    assert level.y == pytest.approx({tick.label: tick.at for tick in drawn.y_ticks}["60"], abs=0.01)


def test_large_numbers_have_short_ticks() -> None:
    drawn = line_chart("inertia", {"inertia": [(1, 91234.0), (2, 2e6)]}, x_label="rounds", unit="number")
    assert drawn is not None
    assert [tick.label for tick in drawn.y_ticks] == ["0", "500k", "1M", "1.5M", "2M"]


@pytest.mark.parametrize(("low", "high"), [(0, 0.001), (1, 30), (0, 99), (-3, 7), (5, 5), (0, 123456)])
def test_ticks_are_even_and_enclose_the_values(low: float, high: float) -> None:
    for whole in (False, True):
        ticks = nice_ticks(low, high, whole=whole)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 8
        assert np.diff(ticks) == pytest.approx(np.diff(ticks)[0])
        assert not whole or all(tick == int(tick) for tick in ticks)


def drawn_scatter(before: list[float], after: list[float]) -> Scatter:
    drawn = scatter(np.array(before), np.array(after))
    assert drawn is not None
    return drawn


def test_scatter_counts_better_worse_and_same_queries_and_no_skipped_one() -> None:
    drawn = drawn_scatter([0.2, 0.9, 0.5, 0.5, math.nan, 0.1], [0.4, 0.1, 0.5, 0.5004, math.nan, 0.2])
    assert drawn.counts == (2, 1, 2)
    assert drawn.description == "2 queries better, 1 worse, 2 the same"
    assert (drawn.better.count("M"), drawn.same.count("M")) == (2, 2)
    across = {tick.label: tick.at for tick, _ in drawn.ticks}
    up = {tick.label: tick.at for _, tick in drawn.ticks}
    assert places(drawn.better)[0] == pytest.approx((across["20"], up["40"]), abs=0.1)


def test_scatter_of_no_counted_query_is_none() -> None:
    assert scatter(np.array([math.nan]), np.array([math.nan])) is None


def test_values_that_do_not_exist_leave_a_gap() -> None:
    points = [(1.0, 1.0), (2.0, float("inf")), (3.0, 2.0), (4.0, 2.0)]
    chart = line_chart("loss", {"loss": points}, x_label="epochs", unit="number")
    assert chart is not None
    path = chart.curves[0].path
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert len(chart.curves[0].marks) == 3
