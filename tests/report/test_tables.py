from __future__ import annotations

import io
import math
from dataclasses import replace

from rich.console import Console, RenderableType

from tests.report.examples import DIRECT, RECORD, UNSCORED, WHY, scores
from uda_reid.report import BOUND, SOURCE_ONLY, Row, show, show_row


def printed(what: RenderableType, *, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def test_table_shows_scores_gain_ledger_and_definitions() -> None:
    text = printed(show(RECORD))
    for expected in (
        "alpha -> beta, pul, profile paper, seed 0", "source-only", "20.0", "25.0", "+5.0 mAP", "0.0 rank-1",
        "camera ids used", "number of clusters given", "trapezoid", "equal distances", "protocol market",
        "only 2 counted queries", "fidelity of the recipe in profile paper: official (Fan)",
    ):  # fmt: skip
        assert expected in text, expected


def test_footnotes_take_few_lines_and_notes_are_printed_on_request() -> None:
    text = printed(show(RECORD))
    assert len(text[text.index("mAP: trapezoid") :].strip().splitlines()) <= 5
    assert "something unusual" not in text
    assert "1 note in record.json" in text
    assert "note: something unusual" in printed(show(RECORD, notes=True))


def test_what_adapting_cost_the_source_is_shown_where_it_was_measured() -> None:
    cost = "on the test images of its own source (alpha): mAP 90.0 -> 75.5 (-14.5), rank-1 50.0 -> 50.0 (0.0)"
    measured = replace(RECORD, on_source=(scores(0.9), scores(0.755)))
    assert cost in printed(show(measured))
    assert "own source" not in printed(show(RECORD))
    assert "own source" not in printed(show(replace(DIRECT, on_source=measured.on_source)))


def test_share_of_the_gap_is_shown_beside_the_gain() -> None:
    assert "closed: 25%" in printed(show(RECORD.with_row(Row(BOUND, scores(0.4), {}), command="")))
    assert "closed: n/a" in printed(show(RECORD.with_row(Row(BOUND, scores(0.21), {}), command="")))


def test_recipe_without_adaptation_has_one_row_and_no_gain() -> None:
    text = printed(show(DIRECT))
    assert text.count("20.0") == 1
    assert "25.0" not in text
    assert "gain" not in text
    assert "no adaptation" in text


def test_unscored_run_shows_why_and_its_ledger() -> None:
    text = printed(show(UNSCORED))
    assert WHY in text
    assert "number of clusters given" in text
    assert "gain" not in text
    assert "mAP" not in text
    assert "camera ids used" in printed(show_row("a model", UNSCORED.start))


def test_missing_map_is_shown_as_not_available() -> None:
    shot = replace(scores(0.2), mean_ap=math.nan, mean_ap_step=math.nan, mean_inp=math.nan)
    rows = (Row(SOURCE_ONLY, shot, {}), Row("pul", shot, {}), Row(BOUND, shot, {}))
    text = printed(show(replace(RECORD, rows=rows)))
    assert "gain: n/a mAP" in text
    assert "closed: n/a" in text
    assert "nan" not in text


def test_brackets_in_names_are_text() -> None:
    odd = replace(RECORD, target="[red]beta[/]", rows=(replace(RECORD.start, facts={"[a]": "[b]"}), RECORD.adapted))
    text = printed(show(odd))
    assert "alpha -> [red]beta[/]" in text
    assert "[a]" in text
    assert "[b]" in text


def test_row_of_one_model_has_its_table_and_ledger() -> None:
    text = printed(show_row("a model", RECORD.start))
    for expected in ("a model", "20.0", "camera ids used", "protocol market"):
        assert expected in text, expected
