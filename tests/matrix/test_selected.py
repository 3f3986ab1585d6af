from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.matrix.examples import PAIRS, runs
from tests.test_selection import CURVE
from uda_reid.matrix import sheets
from uda_reid.matrix.plan import Place
from uda_reid.matrix.selected import RULES, selected
from uda_reid.matrix.summary import summarise
from uda_reid.selection import SOURCE

WHOLE = tuple({**entry, SOURCE: 0.1 * entry["step"]} for entry in CURVE)


def test_choices_are_averaged_over_the_runs_that_have_them() -> None:
    found = runs()
    first, second = Place("a", "b", 0), Place("b", "a", 0)
    worse = tuple({**entry, "mean_ap": entry["mean_ap"] / 2} for entry in WHOLE)
    found["up"][first] = replace(found["up"][first], curve=WHOLE)
    found["up"][second] = replace(found["up"][second], curve=worse)
    for place in (Place("a", "b", 1), Place("b", "a", 1)):
        found["up"][place] = replace(found["up"][place], curve=())
    (each,) = selected(found)
    assert (each.recipe, each.runs) == ("up", 2) and list(each.mean_ap) == list(RULES)
    assert each.mean_ap["oracle"] == pytest.approx(37.5) and each.regret["oracle"] == 0
    assert each.mean_ap["last"] == each.mean_ap[SOURCE] == pytest.approx(30) and each.regret["last"] == pytest.approx(
        7.5
    )
    assert each.regret["density"] == pytest.approx(15)
    assert each.correlation["silhouette"] == 1 and each.correlation["density"] == -1
    summary = summarise(found, PAIRS, (0, 1), resamples=10)
    assert sheets.selection(summary) == [
        ["up (2 runs)", "30.0 (7.5)", "37.5 (0.0)", "22.5 (15.0)", "37.5 (0.0)", "30.0 (7.5)", "37.5 (0.0)"]
    ]
    assert sheets.correlations(summary) == [["up", "+1.00", "−1.00", "0.00", "+0.50"]]
    assert [title.split(":")[0] for title, _, _ in sheets.sheets(summary)][5] == "Selection"


def test_runs_without_proxies_or_with_one_snapshot_have_no_choice() -> None:
    found = runs()
    place = Place("a", "b", 0)
    assert selected(found) == ()
    found["up"][place] = replace(found["up"][place], curve=WHOLE[:1])
    assert selected(found) == ()
    found["up"][place] = replace(found["up"][place], curve=WHOLE[:2])
    assert math.isnan(selected(found)[0].correlation["density"])


def test_rule_that_some_runs_do_not_know_is_averaged_over_the_others_and_told() -> None:
    found = runs()
    places = [Place("a", "b", seed) for seed in (0, 1)]
    part = tuple({key: value for key, value in entry.items() if key != "agreement"} for entry in WHOLE)
    for place, curve in zip(places, (WHOLE, part), strict=True):
        found["up"][place] = replace(found["up"][place], curve=curve)
    for place in (Place("b", "a", 0), Place("b", "a", 1)):
        found["up"][place] = replace(found["up"][place], curve=())
    (each,) = selected(found)
    assert each.runs == 2 and each.known["agreement"] == 1 and each.known["density"] == 2
    row = sheets.selection(summarise(found, PAIRS, (0, 1), resamples=10))[0]
    assert row[4] == "50.0 (0.0), 1 runs" and row[1] == "40.0 (10.0)"
