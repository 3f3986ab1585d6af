from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.report.examples import DIRECT, RECORD, UNSCORED, WHY, scores
from uda_reid.report import BOUND, Lists, Record, Row
from uda_reid.report.sections import (
    groups,
    headline,
    history,
    learning,
    options,
    pretraining,
    pseudo_labels,
    queries,
    score_table,
    tiles,
)

SHOT = replace(
    RECORD,
    rows=tuple(
        replace(
            row,
            scores=replace(
                scores(0.2), mean_ap=math.nan, mean_ap_step=math.nan, mean_inp=math.nan,
                average_precision=np.full(3, math.nan), protocol="single-gallery-shot",
            ),
        )
        for row in RECORD.rows
    ),
)  # fmt: skip


def test_headline_says_before_after_gain_and_one_seed() -> None:
    text = headline(RECORD)
    assert "mAP went from 20.0 to 25.0 (+5.0 points)" in text
    assert "rank-1 went from 50.0 to 50.0 (0.0 points)" in text
    assert "One seed" in text
    assert "25% of the gap" in headline(RECORD.with_row(Row(BOUND, scores(0.4), {}), command=""))
    assert "is not given" in headline(RECORD.with_row(Row(BOUND, scores(0.21), {}), command=""))


def test_headline_of_runs_without_a_gain_claims_none() -> None:
    assert headline(UNSCORED) == f"{WHY}."
    assert "went from" not in headline(DIRECT)
    assert "20.0 mAP and 50.0 rank-1" in headline(DIRECT)
    assert "mAP" not in headline(SHOT)
    assert tiles(UNSCORED) == ()
    assert [tile.change for tile in tiles(DIRECT)] == ["", ""]


def test_tiles_tell_the_direction_of_the_change() -> None:
    worse = replace(RECORD, rows=(RECORD.adapted, RECORD.start))
    assert [(tile.change, tile.better, tile.worse) for tile in tiles(RECORD)] == [
        ("+5.0", True, False), ("0.0", False, False),
    ]  # fmt: skip
    assert (tiles(worse)[0].change, tiles(worse)[0].worse) == ("-5.0", True)


def test_score_table_has_a_column_per_shown_model() -> None:
    models, lines = score_table(RECORD.with_row(Row(BOUND, scores(0.4), {}), command=""))
    assert models == ("source-only", "pul", "supervised")
    table = {line.name: (line.values, line.change) for line in lines}
    assert table["mAP"] == (("20.0", "25.0", "40.0"), "+5.0")
    assert table["mAP, all queries"] == (("13.3", "16.7", "26.7"), "+3.3")
    assert table["queries"] == (("2", "2", "2"), "")
    assert table["ties"] == (("1", "1", "1"), "")
    assert score_table(DIRECT)[0] == ("source-only",)
    assert {line.change for line in score_table(DIRECT)[1]} == {""}
    assert score_table(UNSCORED) == ((), ())


def test_score_table_leaves_out_numbers_that_a_protocol_does_not_have() -> None:
    assert [line.name for line in score_table(SHOT)[1]][:3] == ["rank-1", "rank-5", "rank-10"]
    assert not {"mAP", "mINP", "mAP step"} & {line.name for line in score_table(SHOT)[1]}


def test_learning_curve_starts_with_the_source_model_and_has_the_bound() -> None:
    curves = learning(RECORD.with_row(Row(BOUND, scores(0.4), {}), command=""))
    assert curves.columns == ("step", "mAP (%)", "rank-1 (%)")
    assert curves.lines == (("0", "20.0", "50.0"), ("1", "21.0", "50.0"), ("2", "25.0", "50.0"))
    (chart,) = curves.charts
    assert [level.name for level in chart.levels] == ["mAP of the bound", "rank-1 of the bound"]
    assert learning(RECORD).charts[0].levels == ()


def test_snapshot_before_the_first_step_does_not_stand_beside_the_source_model() -> None:
    twice = replace(RECORD, curve=({"step": 0.0, "mean_ap": 0.9, "rank1": 0.9}, *RECORD.curve))
    assert learning(twice).lines == learning(RECORD).lines


def test_missing_curves_say_why() -> None:
    assert "adapts nothing" in learning(DIRECT).missing
    assert "no snapshots" in learning(replace(RECORD, curve=())).missing
    assert "labelled queries" in learning(UNSCORED).missing
    assert "adapts nothing" in pseudo_labels(DIRECT).missing
    assert "not compared" in pseudo_labels(UNSCORED).missing
    assert "handed out none" in pseudo_labels(replace(RECORD, curve=({"step": 1.0, "mean_ap": 0.2},))).missing
    assert "Nothing was adapted" in history(DIRECT).missing
    assert "reported nothing" in history(replace(RECORD, history=())).missing
    assert "no losses" in pretraining(replace(RECORD, pretraining=())).missing


def test_pseudo_labels_show_whatever_was_audited_and_explain_what_is_known() -> None:
    entries = tuple({**entry, "something_new": 7.0} for entry in RECORD.curve)
    curves = pseudo_labels(replace(RECORD, curve=entries))
    assert [chart.name for chart in curves.charts] == [
        "Pairs put together", "Agreement with identities", "Cameras within clusters", "Images used", "Clusters",
        "something new",
    ]  # fmt: skip
    assert curves.columns == (
        "step", "pair precision (%)", "NMI (%)", "purity (%)", "camera purity (%)", "images used (%)", "clusters",
        "something new",
    )  # fmt: skip
    assert curves.lines[1] == ("2", "70.0", "80.0", "90.0", "n/a", "40.0", "4", "7")
    assert curves.meanings.keys() == {"pair precision", "NMI", "purity", "camera purity", "images used", "clusters"}


def test_unscored_target_with_identities_still_has_its_audit() -> None:
    curve = tuple(
        {key: value for key, value in entry.items() if key not in ("mean_ap", "rank1")} for entry in RECORD.curve
    )
    found = replace(UNSCORED, curve=curve)
    assert learning(found).missing
    assert pseudo_labels(found).lines == pseudo_labels(RECORD).lines


def test_history_has_a_chart_per_number_counted_from_one() -> None:
    entries = ({"loss": 2.0}, {"loss": 1.0, "selected": 1234.0})
    curves = history(replace(RECORD, history=entries))
    assert [chart.name for chart in curves.charts] == ["loss", "selected"]
    assert curves.lines == (("1", "2", "n/a"), ("2", "1", "1,234"))
    trained = pretraining(replace(RECORD, pretraining=entries))
    assert trained.lines == curves.lines
    assert trained.charts[0].x_label == "epochs"


def test_queries_are_compared_where_there_is_a_before_and_an_after() -> None:
    figure, why = queries(RECORD)
    assert figure is not None
    assert figure.counts == (2, 0, 0)
    assert why == ""
    for record, expected in (
        (DIRECT, "Nothing was adapted"),
        (UNSCORED, "Nothing was scored"),
        (SHOT, "single-gallery"),
    ):
        figure, why = queries(record)
        assert figure is None
        assert expected in why


@pytest.mark.parametrize(
    ("record", "lists", "expected"),
    [
        (UNSCORED, None, "Nothing was scored"),
        (RECORD, None, "no ranked.json"),
        (RECORD, Lists("data", 0, ()), "no average precision per query"),
    ],
)
def test_missing_ranked_lists_say_why(record: Record, lists: Lists | None, expected: str) -> None:
    found, why = groups(lists, record)
    assert found == ()
    assert expected in why


def test_options_are_listed_by_section() -> None:
    recipe = {
        "name": "pul",
        "notes": ["long"],
        "adapt": {"lr": 1e-3, "milestones": [30, 50], "flip": True, "rate": None},
    }
    assert options(recipe) == (
        ("recipe", (("name", "pul"),)),
        ("adapt", (("lr", "0.001"), ("milestones", "30, 50"), ("flip", "yes"), ("rate", "none"))),
    )
