from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.examples import DIRECT, RECORD, UNSCORED, scores
from uda_reid.errors import CheckpointError, DataError
from uda_reid.report import BOUND, LABELLED, Row, gap_closed, read, scores_json, to_json, write
from uda_reid.report.records import remarks


def test_record_survives_the_disk(tmp_path: Path) -> None:
    write(RECORD, tmp_path / "record.json")
    back = read(tmp_path / "record.json")
    assert to_json(back) == to_json(RECORD)
    assert back.adapted.scores is not None and RECORD.adapted.scores is not None
    assert np.array_equal(
        back.adapted.scores.average_precision, RECORD.adapted.scores.average_precision, equal_nan=True
    )
    assert back.adapted.scores.cmc == {1: 0.5, 5: 0.75, 10: 0.8, 20: 0.9}


def test_record_without_scores_survives_the_disk(tmp_path: Path) -> None:
    write(UNSCORED, tmp_path / "record.json")
    assert read(tmp_path / "record.json") == UNSCORED
    assert json.loads(to_json(UNSCORED))["rows"][0]["scores"] is None
    assert gap_closed(UNSCORED.with_row(Row(BOUND, None, {}), command="")) is None


def test_record_from_before_the_newer_fields_is_read(tmp_path: Path) -> None:
    data = json.loads(to_json(RECORD))
    del data["unscored"], data["pretraining"]
    (tmp_path / "record.json").write_text(json.dumps(data))
    assert to_json(read(tmp_path / "record.json")) == to_json(replace(RECORD, pretraining=()))


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    text = to_json(RECORD)
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["scores"]["average_precision"][1] is None
    assert scores_json(None) == "null\n"


def test_numbers_of_a_curve_that_do_not_exist_come_back_as_such(tmp_path: Path) -> None:
    write(replace(RECORD, curve=({"step": 1.0, "mean_ap": math.nan, "rank1": 0.5},)), tmp_path / "record.json")
    (entry,) = read(tmp_path / "record.json").curve
    assert math.isnan(entry["mean_ap"])
    assert entry["rank1"] == 0.5


def test_share_of_the_gap_is_the_formula_and_not_available_under_two_points() -> None:
    assert gap_closed(RECORD) is None
    assert gap_closed(RECORD.with_row(Row(BOUND, scores(0.4), {}), command="")) == pytest.approx(0.25)
    assert gap_closed(RECORD.with_row(Row(BOUND, scores(0.219), {}), command="")) is None


def test_row_without_scores_says_so_to_those_who_need_them() -> None:
    with pytest.raises(DataError, match="pul was not scored"):
        Row("pul", None, {}).scored  # noqa: B018


def test_rows_to_show_are_those_that_differ() -> None:
    bound = Row(BOUND, scores(0.4), {})
    assert [row.name for row in RECORD.with_row(bound, command="").shown] == ["source-only", "pul", "supervised"]
    assert [row.name for row in DIRECT.with_row(bound, command="").shown] == ["source-only", "supervised"]
    assert RECORD.compared == (RECORD.start.scores, RECORD.adapted.scores)
    assert DIRECT.compared is None
    assert UNSCORED.compared is None


def test_remarks_name_few_queries_and_one_data_set_on_both_sides() -> None:
    def counting(counted: int) -> tuple[str, ...]:
        rows = tuple(replace(row, scores=scores(0.2, counted=counted)) for row in RECORD.rows)
        return remarks(replace(RECORD, rows=rows))

    assert counting(50) == ()
    assert counting(40) == ("only 40 counted queries: the numbers are coarse (one query = 2.5 points of rank-1)",)
    assert counting(1)[0].startswith("only 1 counted query: ")
    assert remarks(UNSCORED) == ()
    same = remarks(replace(UNSCORED, source="beta"))
    assert same == ("source and target are the same data set (beta): nothing is carried anywhere",)


def test_remark_names_a_target_that_is_one_of_the_sources() -> None:
    def of(labelled: str) -> tuple[str, ...]:
        rows = tuple(replace(row, facts={**row.facts, LABELLED: labelled}) for row in UNSCORED.rows)
        return remarks(replace(UNSCORED, source=labelled.replace(", ", "+"), rows=rows))

    for labelled in ("alpha, beta", "beta, alpha"):
        assert of(labelled) == (
            "the target is one of the sources (beta): the source model is trained with its labels, so its numbers do "
            "not show what can be done without",
        )
    assert of("alpha, gamma") == of("alpha, beta2") == of("alpha") == ()
    assert len(of("beta")) == 1  # that of one data set on both sides, and no second


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
        to_json(RECORD).replace('"5": 0.75', '"6": 0.75'),
        to_json(RECORD).replace('"curve": [', '"curve": [3,'),
        to_json(replace(RECORD, identities=(1,) * 99)),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"record\.json: is no record, or is damaged"):
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
