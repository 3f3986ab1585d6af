from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from uda_reid.errors import CheckpointError
from uda_reid.report import BOUND, SOURCE_ONLY, Record, Row, gap_closed, read, show, to_json, write
from uda_reid.types import Scores


def scores(mean_ap: float) -> Scores:
    return Scores(
        domain="beta", protocol="market", mean_ap=mean_ap, mean_ap_step=mean_ap + 0.01, mean_inp=0.1,
        cmc={1: 0.5, 5: 0.75, 10: 0.8, 20: 0.9}, counted=2, skipped=1, ties=1,
        average_precision=np.array([mean_ap, math.nan, mean_ap]),
    )  # fmt: skip


RECORD = Record(
    command="uda-reid adapt", version="0", source="alpha", target="beta", seed=0, profile="paper",
    recipe={"name": "pul", "fidelity": "official", "paper": "Fan", "adapt": {"clusters": 5}},
    rows=(
        Row(SOURCE_ONLY, scores(0.2), {"camera ids used": False}),
        Row("pul", scores(0.25), {"number of clusters given": 5}),
    ),
    validation={"mean_ap": 0.5}, history=({"selected": 3.0},), curve=({"step": 1.0, "mean_ap": 0.25},),
    seconds={"adapt": 1.5}, environment={"threads": 2}, notes=("something unusual",),
)  # fmt: skip


def printed(record: Record) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(show(record))
    return console.export_text()


def test_record_survives_the_disk(tmp_path: Path) -> None:
    write(RECORD, tmp_path / "record.json")
    back = read(tmp_path / "record.json")
    assert to_json(back) == to_json(RECORD)
    assert np.array_equal(
        back.adapted.scores.average_precision, RECORD.adapted.scores.average_precision, equal_nan=True
    )
    assert back.adapted.scores.cmc == {1: 0.5, 5: 0.75, 10: 0.8, 20: 0.9}


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    text = to_json(RECORD)
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["scores"]["average_precision"][1] is None


def test_table_shows_scores_gain_ledger_and_definitions() -> None:
    text = printed(RECORD)
    for expected in (
        "alpha -> beta, pul, profile paper, seed 0", "source-only", "20.0", "25.0", "+5.0 mAP", "+0.0 rank-1",
        "camera ids used", "number of clusters given", "trapezoid", "something unusual", "equal distances",
    ):  # fmt: skip
        assert expected in text, expected


def test_share_of_the_gap_is_the_formula_and_not_available_under_two_points() -> None:
    assert gap_closed(RECORD) is None
    assert gap_closed(RECORD.with_row(Row(BOUND, scores(0.4), {}), command="")) == pytest.approx(0.25)
    assert gap_closed(RECORD.with_row(Row(BOUND, scores(0.219), {}), command="")) is None
    assert "closed: 25%" in printed(RECORD.with_row(Row(BOUND, scores(0.4), {}), command=""))
    assert "closed: n/a" in printed(RECORD.with_row(Row(BOUND, scores(0.21), {}), command=""))


def test_missing_map_is_shown_as_not_available() -> None:
    shot = replace(scores(0.2), mean_ap=math.nan, mean_ap_step=math.nan, mean_inp=math.nan)
    rows = (Row(SOURCE_ONLY, shot, {}), Row("pul", shot, {}), Row(BOUND, shot, {}))
    text = printed(replace(RECORD, rows=rows))
    assert "gain: n/a mAP" in text
    assert "closed: n/a" in text
    assert "nan" not in text


def test_foreign_and_broken_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text in (
        "",
        "{}",
        "[1]",
        '{"format": 99}',
        to_json(RECORD)[:200],
        to_json(replace(RECORD, rows=())),
        to_json(replace(RECORD, recipe={})),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"record\.json: is not a record of this version"):
            read(path)


def test_record_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write(RECORD, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"record.json.*No space left on device"):
        write(replace(RECORD, seed=9), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
