from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.matrix.examples import MANY, PAIRS, record, runs, varied
from uda_reid.matrix import tables
from uda_reid.matrix.page import render
from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import Summary, summarise
from uda_reid.matrix.tables import comma_separated, json_lines, latex, markdown, remarks, show
from uda_reid.ops.bootstrap import Interval
from uda_reid.report import read


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(runs(), PAIRS, (0, 1), missing=("b -> a, late, seed 0 (not made yet)",), resamples=100)


def test_scores_have_mean_deviation_average_and_rank(summary: Summary) -> None:
    assert tables.head(summary) == ["", "a → b", "b → a", "average"]
    assert tables.scores(summary) == [
        ["source-only", "23.0 ± 0.7", "33.0 ± 0.7", "28.0 ± 0.7", "2.0"],
        ["up", "33.0 ± 0.7", "43.0 ± 0.7", "38.0 ± 0.7", "1.0"],
        ["down", "17.5 ± 0.0", "27.5 ± 0.0", "22.5 ± 0.0", "3.0"],
        ["supervised bound", "90.0 ± 0.0", "90.0 ± 0.0", "90.0 ± 0.0", ""],
    ]


def test_gains_have_their_interval_and_a_loss_its_mark(summary: Summary) -> None:
    assert tables.gains(summary) == [
        ["up", "+10.0 [+10.0, +10.0]", "+10.0 [+10.0, +10.0]", "+10.0 [+10.0, +10.0]"],
        ["down", *["−5.5 [−6.0, −5.0] ▼?"] * 2, "−5.5 [−6.0, −5.0]"],
    ]
    alone = summarise(runs(), PAIRS[:1], (0, 1), resamples=10)
    assert tables.gains(alone)[0] == ["up", "+10.0 [+10.0, +10.0]"] and tables.head(alone) == ["", "a → b"]


def test_shares_and_what_is_kept_on_the_source(summary: Summary) -> None:
    assert tables.shares(summary)[0] == ["up", "15 ± 0", "18 ± 0"]
    assert tables.forgetting(summary) == [["up", "+10.0 ± 0.0", "+10.0 ± 0.0"], ["down", "−5.5 ± 0.7", "−5.5 ± 0.7"]]
    unscored = summarise(runs(bound=None), PAIRS, (0, 1), resamples=10)
    assert tables.shares(unscored) == []
    close = runs()
    place = Place("a", "b", 0)
    close["up"][place] = record("up", place, [0.89] * 6, [0.9] * 6)  # a bound that is one point away
    assert tables.shares(summarise(close, PAIRS, (0, 1), resamples=10))[0][1] == "n/a"


def test_missing_runs_leave_a_dash_and_are_told(summary: Summary) -> None:
    found = runs()
    del found["up"][Place("a", "b", 0)], found["up"][Place("a", "b", 1)], found["down"][Place("b", "a", 1)]
    part = summarise(found, PAIRS, (0, 1), resamples=10)
    assert tables.scores(part)[1][1:4] == ["–", "43.0 ± 0.7", "–"]
    assert tables.scores(part)[2][2:4] == ["27.5 (1 of 2 seeds)", "22.5 (1 of 2 seeds)"]
    assert tables.gains(part)[0][1] == "–"
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
    names = [row[0] for row in tables.scores(summarise(found, PAIRS, (0, 1), resamples=10))]
    assert names == [
        "source-only (a)",
        "up (a)",
        "down (a)",
        "supervised bound (a)",
        "source-only (b)",
        "wide (b)",
        "supervised bound (b)",
    ]


def test_terminal_shows_every_table(summary: Summary) -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(show(summary))
    text = capture.get()
    for part in (
        "mAP on the target",
        "Gain over source-only",
        "Share of the gap",
        "Kept on the source",
        "rank",
        "▼",
        "bootstrap",
    ):
        assert part in text, part


def test_markdown_has_a_table_for_every_sheet(summary: Summary) -> None:
    text = markdown(summary, ["made so"])
    assert text.startswith(
        "made so\n\n**mAP on the target, percent**\n\n| | a → b | b → a | average | rank |\n|---|---:|"
    )
    assert "| up | +10.0 [+10.0, +10.0] |" in text and "- missing: b -> a" in text
    assert text.count("|---|") == len(tables.sheets(summary)) == 4


def test_latex_has_the_best_in_bold_and_its_remarks(summary: Summary) -> None:
    text = latex(summary, ["uda-reid matrix --domains a_b"])
    assert r"up & \textbf{33.0 $\pm$ 0.7} & \textbf{43.0 $\pm$ 0.7} & 38.0" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 4 and text.count(r"\textbf") == 2
    assert r"$-$5.5 [$-$6.0, $-$5.0] $\blacktriangledown$?" in text
    assert all(line.startswith("%") for line in text.splitlines() if "a_b" in line)
    assert "\\par\\footnotesize intervals on b are unreliable" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex on this machine")
def test_latex_can_be_set(summary: Summary, tmp_path: Path) -> None:
    text = latex(summary, ["uda-reid matrix --domains a_b"])
    document = f"\\documentclass{{article}}\\usepackage{{booktabs,amssymb}}\\begin{{document}}{text}\\end{{document}}"
    (tmp_path / "x.tex").write_text(document)
    subprocess.run(["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_csv_has_a_line_for_every_method_on_every_pair(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(summary))))
    assert [(row["source"], row["target"], row["method"]) for row in rows][:3] == [
        ("a", "b", "source-only"), ("b", "a", "source-only"), ("a", "b", "up"),
    ]  # fmt: skip
    assert len(rows) == 8
    start, down = rows[0], rows[4]
    assert (start["gain"], start["gain_low"], start["negative_transfer"], start["source_change"]) == ("",) * 4
    assert (down["mAP"], down["rank1"], down["gain"], down["gain_low"], down["gain_high_by_query"]) == (
        "17.5", "27.5", "-5.5", "-6", "-5",
    )  # fmt: skip
    assert (down["seeds"], down["query_identities"], down["interval_reliable"]) == ("2", "4", "no")
    assert down["negative_transfer"] == "yes" and float(down["source_change"]) == pytest.approx(-5.5)
    assert float(rows[2]["gap_closed"]) == pytest.approx(50 * (10 / 67.5 + 10 / 66.5), abs=1e-3)


def test_records_are_kept_one_to_a_line(tmp_path: Path) -> None:
    found = runs()
    lines = json_lines(found).splitlines()
    assert len(lines) == 12
    (tmp_path / "record.json").write_text(lines[-1])
    assert read(tmp_path / "record.json").recipe["name"] == "down"
    assert json.loads(lines[0])["target"] == "b"


def test_numbers_that_do_not_exist_are_told() -> None:
    assert tables.with_interval((1.0, 3.0), None, 2) == "+2.0 ± 1.4"
    assert tables.with_interval((), None, 2) == "–"
    assert tables.with_interval((2.0,), Interval(0.01, 0.03), 2) == "+2.0 [+1.0, +3.0] (1 of 2 seeds)"


def test_columns_of_the_csv_are_what_they_are_called() -> None:
    summary = summarise(varied(), MANY, (0, 1, 2), resamples=300)
    rows = {
        (row["source"], row["target"], row["method"], row["source_model"]): row
        for row in csv.DictReader(io.StringIO(comma_separated(summary)))
    }
    for method in summary.methods[:4]:
        for (source, target), cell in method.cells.items():
            row = rows[source, target, method.name, "a"]
            if cell.gain is None or cell.level is None:
                continue
            ends = [float(row[name]) for name in ("gain_low", "gain_high", "gain_low_by_query", "gain_high_by_query")]
            expected = (*cell.gain.by_identity, *cell.gain.by_query)
            assert ends == pytest.approx([100 * end for end in expected], rel=1e-4)
            assert cell.gain.by_identity != cell.gain.by_query
            assert float(row["mAP_low"]) == pytest.approx(100 * cell.level.by_identity.low, rel=1e-4)
            assert row["interval_reliable"] == "yes"
    assert {row["source_model"] for row in rows.values()} == {"a", "b"}


def test_marks_say_whether_an_interval_means_what_it_says() -> None:
    few = summarise(varied(), MANY, (0, 1, 2), resamples=300)
    adda = next(method for method in few.methods if method.name == "adda")
    assert {tables.mark(cell) for cell in adda.cells.values()} <= {"", " ▼"} and any(
        cell.negative for cell in adda.cells.values()
    )
    one = summarise(varied((0,)), MANY, (0,), resamples=300)
    adda = next(method for method in one.methods if method.name == "adda")
    assert {tables.mark(cell) for cell in adda.cells.values() if cell.negative} == {" ▼?"}
    assert any(line.startswith("3 seeds: where trainings differ much") for line in remarks(few))


def test_protocol_without_map_has_tables_all_the_same() -> None:
    """Single gallery shot has CMC and nothing else."""
    found = runs()
    for places in found.values():
        for place, each in places.items():
            rows = tuple(
                replace(
                    row,
                    scores=replace(
                        row.scored,
                        mean_ap=math.nan,
                        mean_ap_step=math.nan,
                        mean_inp=math.nan,
                        average_precision=np.full(6, math.nan),
                    ),
                )
                for row in each.rows
            )
            places[place] = replace(each, rows=rows, on_source=())
    summary = summarise(found, PAIRS, (0, 1), resamples=10)
    assert tables.scores(summary)[1][1:] == ["n/a ± n/a", "n/a ± n/a", "n/a ± n/a", "n/a"]
    assert "n/a" in markdown(summary, []) and "n/a" in latex(summary, []) and comma_separated(summary)
    text = render(summary, found, {}, command="", origin="")
    assert "nan" not in text and "No recipe has all of its runs and a number for mAP" in text


def test_columns_with_bars_in_their_names_stay_one_in_markdown() -> None:
    odd = (("a|x", "b"),)
    found = {"pul": {Place("a|x", "b", 0): record("pul", Place("a|x", "b", 0), [0.1] * 6, [0.2] * 6)}}
    assert "| | a\\|x → b |" in markdown(summarise(found, odd, (0,), resamples=10), [])
