from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.examples import MANY, PAIRS, record, runs, varied
from tests.report.test_page import Page
from uda_reid.matrix import sheets
from uda_reid.matrix.drills import drills
from uda_reid.matrix.page import STRONGEST, averages, domains, grid, headline, kept, ledger, render, title
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Summary
from uda_reid.matrix.summary import Runs, summarise


def folders(found: Runs) -> dict[tuple[str, Place], str]:
    cells = [(recipe, place) for recipe, places in found.items() for place in places]
    return {(recipe, place): f"{recipe}-{place.source}-s{place.seed}" for recipe, place in cells}


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(runs(), PAIRS, (0, 1), resamples=100)


def test_page_is_whole_and_loads_nothing(summary: Summary) -> None:
    found = runs()
    text = render(summary, found, folders(found), command="uda-reid matrix --domains a,b", origin="made so.")
    assert "Average over the pairs" in Page(text).text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert "<script" not in text
    for anchor in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{anchor}"' in text, anchor
    assert text.count('<details class="cell">') == 8
    for part in (
        "uda-reid matrix --domains a,b",
        "Made so.",
        'href="up-a-s1/report.html"',
        "a note",
        "Kept on the source",
    ):
        assert part in text, part


def test_squares_have_number_interval_colour_and_mark(summary: Summary) -> None:
    start, up, down, _ = summary.methods
    square = grid(summary, up).squares["a", "b"]
    assert (square.number, square.below) == ("33.0", ("± 0.7", "+10.0", "[+10.0, +10.0]"))
    assert square.colour == 1 and f"var(--s0) {STRONGEST}%" in square.style and not square.mark
    worse = grid(summary, down).squares["a", "b"]
    assert worse.colour == pytest.approx(-0.55) and "var(--s1) 23%" in worse.style and worse.mark == "▼?"
    plain = grid(summary, start).squares["a", "b"]
    assert plain.colour == 0 and plain.style == "" and plain.below[1].startswith("[")
    assert grid(summary, up).sources == grid(summary, up).targets == ("a", "b")


def test_twin_matrix_shows_what_is_kept_on_the_source(summary: Summary) -> None:
    start, up, down, bound = summary.methods
    assert kept(summary, down).squares["b", "a"].number == "−5.5" and kept(summary, down).squares["b", "a"].colour < 0
    assert kept(summary, up).squares["b", "a"].colour == 1
    assert not kept(summary, start).squares and not kept(summary, bound).squares
    without = runs(cost=None)
    part = summarise(without, PAIRS, (0, 1), resamples=10)
    assert not any(kept(part, method).squares for method in part.methods)
    assert "Kept on the source</h2>" not in render(part, without, {}, command="", origin="")


def test_headline_says_which_gains_most_and_what_is_lost(summary: Summary) -> None:
    assert headline(summary) == (
        "The largest gain over source-only on average over 2 pairs is that of up: +10.0 points of mAP [+10.0, +10.0]. "
        "All of the interval is below zero, worse than source-only, in none of the 4 cells of recipes."
    )
    alone = summarise(runs(), PAIRS[:1], (0, 1), resamples=10)
    assert headline(alone).startswith("The largest gain over source-only on a → b is that of up: +10.0 points of mAP [")
    direct = {"source_only": runs()["source_only"]}
    assert headline(summarise(direct, PAIRS, (0, 1), resamples=10)).startswith("Source models as they are")
    part = runs()
    for name in ("up", "down"):
        del part[name][Place("a", "b", 0)], part[name][Place("a", "b", 1)]
    assert (
        headline(summarise(part, PAIRS, (0, 1), resamples=10))
        == "No recipe has all of its runs and a number for mAP yet."
    )


def test_title_names_the_domains_once(summary: Summary) -> None:
    assert title(summary) == "a, b" and domains(summary) == ("a", "b")
    assert title(summarise(runs(), PAIRS[:1], (0, 1), resamples=10)) == "a → b"


def test_averages_are_of_all_pairs(summary: Summary) -> None:
    assert averages(summary)[1] == ("up", "38.0 ± 0.7", "+10.0 [+10.0, +10.0]", "1.0")
    assert averages(summary)[0][2] == "" and averages(summary)[3] == ("supervised bound", "90.0 ± 0.0", "", "")


def test_drill_down_has_every_run_with_its_command_curves_and_warnings(summary: Summary) -> None:
    found = runs()
    place = Place("a", "b", 1)
    found["up"][place] = record(
        "up", place, [0.1] * 6, [0.2] * 6, facts={"warnings": "epoch 2: the discriminator has won"}
    )
    drill = next(each for each in drills(summary, found, folders(found), {}) if each.title == "a → b, up")
    assert [(run.seed, run.before, run.after, run.adapt) for run in drill.runs] == [
        (0, "22.5", "32.5", "12"), (1, "10.0", "20.0", "12"),
    ]  # fmt: skip
    assert drill.runs[0].command == "uda-reid adapt" and drill.runs[0].folder == "up-a-s0"
    assert drill.notes == ("seed 1: epoch 2: the discriminator has won",)
    found["up"][place] = replace(found["up"][place], images=6)
    drill = next(each for each in drills(summary, found, folders(found), {}) if each.title == "a → b, up")
    assert drill.notes[1] == "seed 1: pseudo-labels: explosion at step 1: 5 clusters of 3 images"
    assert [chart.name for chart in drill.charts][:2] == ["mAP on the target", "pairs joined that are right"]
    assert [curve.name for curve in drill.charts[0].curves] == ["seed 0", "seed 1"]
    assert ("gain, interval drawn by person", "[+10.0, +10.0]") in drill.facts
    assert ("gain over source-only, points", "+10.0 ± 0.0") in drill.facts
    assert ("kept on the source, points", "+10.0 ± 0.0") in drill.facts
    assert dict(drill.facts)["share of the gap closed, percent"] == "15 ± 0 [14, 17]"
    assert ("people in the queries", "4; too few for the interval") in drill.facts
    start = next(each for each in drills(summary, found, {}, {}) if each.title == "a → b, source-only")
    assert not start.charts and start.runs[0].folder == ""


def test_ledger_tells_where_runs_of_a_method_differ(summary: Summary) -> None:
    found = runs()
    place = Place("a", "b", 1)
    found["up"][place] = record("up", place, [0.1] * 6, [0.2] * 6, facts={"trained on": "b", "warnings": "one"})
    names, entries = ledger(summary, found)
    assert names == ["source-only", "up", "down", "supervised bound"]
    told = dict(entries)
    assert told["camera ids used"] == ["no"] * 4
    assert told["warnings"] == ["-", "2 different, such as: none", "none", "-"]
    assert told["trained on"][1] == "2 different, such as: -"


def test_rows_of_the_drill_down_and_the_ledger_are_of_the_right_source_model() -> None:
    found = varied()
    for place, each in found["wide"].items():
        rows = tuple(replace(row, facts={**row.facts, "encoder": "wide"}) for row in each.rows)
        found["wide"][place] = replace(each, rows=rows)
    summary = summarise(found, MANY, (0, 1, 2), resamples=300)
    for drill in drills(summary, found, folders(found), {}):
        if drill.title.startswith("a → b, ") and drill.title.endswith("(b)"):
            assert {run.folder for run in drill.runs} == {"wide-a-s0", "wide-a-s1", "wide-a-s2"}, drill.title
            assert all(run.command.startswith("wide a b") for run in drill.runs)
            level = dict(drill.facts)["mAP"].split(" ")[0]
            means = [float(run.before if "source-only" in drill.title else run.after) for run in drill.runs]
            assert sum(means) / 3 == pytest.approx(float(level), abs=0.11)
    names, entries = ledger(summary, found)
    assert dict(entries)["encoder"] == ["-"] * 4 + ["wide"] * 3 and names[4] == "source-only (b)"


def test_intervals_by_person_and_by_query_are_not_mixed_up() -> None:
    summary = summarise(varied(), MANY, (0, 1, 2), resamples=300)
    pul = summary.methods[1]
    drill = next(each for each in drills(summary, varied(), {}, {}) if each.title == "a → b, pul (a)")
    gain = pul.cells["a", "b"].gain
    assert gain is not None
    facts = dict(drill.facts)
    assert facts["gain, interval drawn by person"] == sheets.between(gain.by_identity)
    assert facts["gain, interval drawn by query"] == sheets.between(gain.by_query) != sheets.between(gain.by_identity)
    assert facts["people in the queries"] == "35"


def test_headline_counts_losses_whose_interval_means_what_it_says() -> None:
    summary = summarise(varied(), MANY, (0, 1, 2), resamples=300)
    lost = sum(cell.negative for method in summary.methods for cell in method.cells.values())
    assert lost > 0 and f"worse than source-only, in {lost} of 18 cells of recipes." in headline(summary)
    found = varied()
    del found["pul"][Place("a", "b", 2)]
    assert "1 of 3 recipes lack runs and are left out of that" in headline(
        summarise(found, MANY, (0, 1, 2), resamples=10)
    )


def test_ids_are_never_twice_whatever_domains_are_called() -> None:
    pairs = (("x", "y-z"), ("x-y", "z"), ("a b", "<b>"), ("a_b", "<b>"))
    found = {"up": {Place(*pair, 0): record("up", Place(*pair, 0), [0.1] * 6, [0.2] * 6) for pair in pairs}}
    text = render(summarise(found, pairs, (0,), resamples=10), found, {}, command="", origin="")
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and "<b></th>" not in text and "&lt;b&gt;" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_every_cell_opens_in_a_browser_that_asks_nobody_and_complains_of_nothing(
    scheme: Any, width: int, summary: Summary, tmp_path: Path
) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = runs()
    path = tmp_path / "report.html"
    path.write_text(render(summary, found, folders(found), command="uda-reid matrix", origin="made so."))
    said: list[str] = []
    asked: list[str] = []
    with browsers.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
        assert dark == (scheme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
        links = page.locator(".heat a")
        assert links.count() == 12  # 4 methods and 2 twins on 2 pairs
        for number in range(links.count()):
            links.nth(number).click()
            anchor = links.nth(number).get_attribute("href")
            page.locator(f"details[open] > div[id='{anchor[1:]}']").wait_for(state="visible", timeout=5000)
        assert page.locator("details[open]").count() == 8
        browser.close()
    assert said == [] and {url.split("#")[0] for url in asked} == {path.as_uri()}
