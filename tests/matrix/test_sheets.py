from __future__ import annotations

from dataclasses import replace

import pytest

from tests.matrix.examples import MANY, PAIRS, record, runs, varied
from uda_reid.matrix import sheets
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Summary
from uda_reid.matrix.sheets import remarks
from uda_reid.matrix.summary import summarise
from uda_reid.ops.bootstrap import Interval


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(runs(), PAIRS, (0, 1), missing=("b -> a, late, seed 0 (not made yet)",), resamples=100)


def test_scores_have_mean_deviation_average_and_rank(summary: Summary) -> None:
    assert sheets.head(summary) == ["", "a → b", "b → a", "average"]
    assert sheets.scores(summary) == [
        ["source-only", "23.0 ± 0.7", "33.0 ± 0.7", "28.0 ± 0.7", "2.0"],
        ["up", "33.0 ± 0.7", "43.0 ± 0.7", "38.0 ± 0.7", "1.0"],
        ["down", "17.5 ± 0.0", "27.5 ± 0.0", "22.5 ± 0.0", "3.0"],
        ["supervised bound", "90.0 ± 0.0", "90.0 ± 0.0", "90.0 ± 0.0", ""],
    ]


def test_gains_have_their_interval_and_a_loss_its_mark(summary: Summary) -> None:
    assert sheets.gains(summary) == [
        ["up", "+10.0 [+10.0, +10.0]", "+10.0 [+10.0, +10.0]", "+10.0 [+10.0, +10.0]"],
        ["down", *["−5.5 [−6.0, −5.0] ▼?"] * 2, "−5.5 [−6.0, −5.0]"],
    ]
    alone = summarise(runs(), PAIRS[:1], (0, 1), resamples=10)
    assert sheets.gains(alone)[0] == ["up", "+10.0 [+10.0, +10.0]"] and sheets.head(alone) == ["", "a → b"]


def test_shares_and_what_is_kept_on_the_source(summary: Summary) -> None:
    assert sheets.shares(summary)[0] == ["up", "15 ± 0 [14, 17]", "18 ± 0 [16, 20]"]
    assert sheets.forgetting(summary) == [["up", "+10.0 ± 0.0", "+10.0 ± 0.0"], ["down", "−5.5 ± 0.7", "−5.5 ± 0.7"]]
    unscored = summarise(runs(bound=None), PAIRS, (0, 1), resamples=10)
    assert sheets.shares(unscored) == []
    close = runs()
    place = Place("a", "b", 0)
    close["up"][place] = record("up", place, [0.89] * 6, [0.9] * 6)  # a bound that is one point away
    assert sheets.shares(summarise(close, PAIRS, (0, 1), resamples=10))[0][1] == "n/a"


def test_meanings_are_those_of_tables_that_are_there(summary: Summary) -> None:
    found = sheets.meanings(summary)
    assert [line.split(" ")[0].rstrip(":") for line in found] == ["mAP", "In", "Share", "Rank", "Kept"]
    bare = summarise(runs(bound=None, cost=None), PAIRS, (0, 1), resamples=10)
    assert [line.split(" ")[0].rstrip(":") for line in sheets.meanings(bare)] == ["mAP", "In", "Rank"]


def test_targets_without_cameras_are_told_of() -> None:
    found = runs()
    for places in found.values():
        for place, each in places.items():
            if place.target == "b":
                rows = tuple(replace(row, scores=replace(row.scored, protocol="any-camera")) for row in each.rows)
                places[place] = replace(each, rows=rows)
    lines = remarks(summarise(found, PAIRS, (0, 1), resamples=10))
    assert f"on b: {sheets.ANY_CAMERA}" in lines and not any(line.startswith("on a:") for line in lines)


def test_missing_runs_leave_a_dash_and_are_told(summary: Summary) -> None:
    found = runs()
    del found["up"][Place("a", "b", 0)], found["up"][Place("a", "b", 1)], found["down"][Place("b", "a", 1)]
    part = summarise(found, PAIRS, (0, 1), resamples=10)
    assert sheets.scores(part)[1][1:4] == ["–", "43.0 ± 0.7", "–"]
    assert sheets.scores(part)[2][2:4] == ["27.5 (1 of 2 seeds)", "22.5 (1 of 2 seeds)"]
    assert sheets.gains(part)[0][1] == "–"
    assert remarks(summary)[0] == "missing: b -> a, late, seed 0 (not made yet)"


def test_remarks_say_what_makes_intervals_unsure(summary: Summary) -> None:
    told = remarks(summary)
    assert any(
        line.startswith("intervals on b are unreliable: its queries show 4 people, and under 30") for line in told
    )
    assert told[-1] == "negative transfer, all of the interval is below zero: down on a → b ▼?, b → a ▼?"
    one = remarks(summarise(runs(seeds=(0,)), PAIRS, (0,), resamples=10))
    assert "one seed: no interval knows how much another training would change the numbers" in one
    nameless = runs()
    nameless["up"] = {place: replace(each, identities=()) for place, each in nameless["up"].items()}
    assert any(
        line.startswith("some intervals are missing")
        for line in remarks(summarise(nameless, PAIRS, (0, 1), resamples=10))
    )


def test_source_models_that_differ_are_told_apart_by_letters() -> None:
    found = runs()
    place = Place("a", "b", 0)
    found["wide"] = {place: record("wide", place, [0.4] * 6, [0.5] * 6, options={"encoder": {"hidden": 256}})}
    names = [row[0] for row in sheets.scores(summarise(found, PAIRS, (0, 1), resamples=10))]
    assert names == [
        "source-only (a)",
        "up (a)",
        "down (a)",
        "supervised bound (a)",
        "source-only (b)",
        "wide (b)",
        "supervised bound (b)",
    ]


def test_numbers_that_do_not_exist_are_told() -> None:
    assert sheets.with_interval((1.0, 3.0), None, 2) == "+2.0 ± 1.4"
    assert sheets.with_interval((), None, 2) == "–"
    assert sheets.with_interval((2.0,), Interval(0.01, 0.03), 2) == "+2.0 [+1.0, +3.0] (1 of 2 seeds)"


def test_marks_say_whether_an_interval_means_what_it_says() -> None:
    few = summarise(varied(), MANY, (0, 1, 2), resamples=300)
    adda = next(method for method in few.methods if method.name == "adda")
    assert {sheets.mark(cell) for cell in adda.cells.values()} <= {"", " ▼"} and any(
        cell.negative for cell in adda.cells.values()
    )
    one = summarise(varied((0,)), MANY, (0,), resamples=300)
    adda = next(method for method in one.methods if method.name == "adda")
    assert {sheets.mark(cell) for cell in adda.cells.values() if cell.negative} == {" ▼?"}
    assert any(line.startswith("3 seeds: where trainings differ much") for line in remarks(few))
