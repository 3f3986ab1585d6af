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
from uda_reid.matrix import sheets
from uda_reid.matrix.page import render
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Summary
from uda_reid.matrix.summary import summarise
from uda_reid.matrix.tables import comma_separated, json_lines, latex, markdown, show
from uda_reid.report import read


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(runs(), PAIRS, (0, 1), missing=("b -> a, late, seed 0 (not made yet)",), resamples=100)


def test_terminal_shows_every_table(summary: Summary) -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(show(summary))
    text = capture.get()
    for part in (
        "mAP on the target",
        "Rank-1 on the target",
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
    assert text.count("|---|") == len(sheets.sheets(summary)) == 5


def test_latex_has_the_best_in_bold_and_its_remarks(summary: Summary) -> None:
    text = latex(summary, ["uda-reid matrix --domains a_b"])
    assert r"up & \textbf{33.0 $\pm$ 0.7} & \textbf{43.0 $\pm$ 0.7} & \textbf{38.0 $\pm$ 0.7}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 5 and text.count(r"\textbf") == 3
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
    assert (down["seeds"], down["query_identities"], down["too_few"]) == ("2", "4", "people and seeds")
    assert down["negative_transfer"] == "yes" and float(down["source_change"]) == pytest.approx(-5.5)
    assert (
        start["gap_closed_low"] == ""
        and 13 < float(rows[2]["gap_closed_low"]) < 14.9 < float(rows[2]["gap_closed_high"]) < 18
    )
    assert float(rows[2]["gap_closed"]) == pytest.approx(50 * (10 / 67.5 + 10 / 66.5), abs=1e-3)
    assert float(down["source_change_sd"]) == pytest.approx(0.7071, abs=1e-3)
    assert float(rows[2]["gap_closed_sd"]) == pytest.approx(1000 * (1 / 66.5 - 1 / 67.5) / 2**0.5, abs=1e-3)


def test_records_are_kept_one_to_a_line(tmp_path: Path) -> None:
    found = runs()
    lines = json_lines(found).splitlines()
    assert len(lines) == 12
    (tmp_path / "record.json").write_text(lines[-1])
    assert read(tmp_path / "record.json").recipe["name"] == "down"
    assert json.loads(lines[0])["target"] == "b"


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
            assert row["too_few"] == "seeds"
    assert {row["source_model"] for row in rows.values()} == {"a", "b"}


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
    assert sheets.scores(summary)[1][1:] == ["n/a ± n/a", "n/a ± n/a", "n/a ± n/a", "n/a"]
    assert "n/a" in markdown(summary, []) and "n/a" in latex(summary, []) and comma_separated(summary)
    text = render(summary, found, {}, command="", origin="")
    assert "nan" not in text and "No recipe has all of its runs and a number for mAP" in text


def test_columns_with_bars_in_their_names_stay_one_in_markdown() -> None:
    odd = (("a|x", "b"),)
    found = {"pul": {Place("a|x", "b", 0): record("pul", Place("a|x", "b", 0), [0.1] * 6, [0.2] * 6)}}
    assert "| | a\\|x → b |" in markdown(summarise(found, odd, (0,), resamples=10), [])
