from __future__ import annotations

import math
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from tests.report.examples import RECORD
from uda_reid.matrix.board import Board, change, outcome, until
from uda_reid.matrix.plan import Cell, Place
from uda_reid.matrix.workers import Answer, Began, Ended, Postponed

CELLS = [Cell(recipe, Place("a", "b", seed)) for recipe in ("pul", "adda") for seed in (0, 1)]


def drawn(board: Board, height: int = 40) -> str:
    console = Console(width=100, height=height, color_system=None)
    with console.capture() as capture:
        console.print(board)
    return capture.get()


def test_outcome_tells_what_came_of_a_run() -> None:
    assert outcome(Answer(None, failure="no space left"), 3.0) == "FAILED: no space left"
    assert outcome(Answer(RECORD), 61.7) == "mAP 20.0 -> 25.0, 62 s"
    assert outcome(Answer(RECORD, found=True), 0.1) == "mAP 20.0 -> 25.0, found"


def test_end_is_told_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    assert until(3_720.0) == "; end at about 01:02"
    assert until(0.0) == ""


def test_board_shows_what_runs_where_and_what_came_of_the_rest() -> None:
    board = Board(CELLS)
    first, second, third, _ = CELLS
    told = "begun: a -> b, pul, seed 0; source models that are missing are trained first"
    assert board.take(Began(first, 1)) == told and board.take(Began(second, 2)).startswith("begun: ")
    assert re.search(r"a +b +pul +0 s, process 1 +0 s, process 2", drawn(board))
    assert "0 of 4 runs, 2 running" in drawn(board)
    line = board.take(Ended(first, Answer(RECORD), 30.0, 90.0))
    assert re.fullmatch(r"\[1/4\] a -> b, pul, seed 0: mAP 20\.0 -> 25\.0, 30 s; end at about \d\d:\d\d", line)
    board.take(Ended(second, Answer(None, failure="no space left"), 3.0, 60.0))
    assert board.take(Began(third, 1)) == ""
    found = drawn(board)
    assert re.search(r"pul +20\.0 -> 25\.0 +failed", found) and re.search(r"adda +0 s, process 1 +\.", found)
    assert re.search(r"2 of 4 runs, 1 failed, 1 running, end at about \d\d:\d\d", found)
    assert [event.cell for event in board.failed] == [second]


def test_board_that_is_higher_than_the_screen_shows_what_runs() -> None:
    cells = [Cell(f"recipe{number:02d}", Place("a", "b", 0)) for number in range(30)]
    board = Board(cells)
    board.take(Began(cells[7], 1))
    found = drawn(board, height=20)
    assert "recipe07" in found and "recipe08" not in found and "29 rows without a running one are not shown" in found
    assert "recipe29" in drawn(board, height=60)


def test_run_that_another_command_makes_is_shown_and_told_once() -> None:
    board = Board(CELLS)
    first, second, *_ = CELLS
    board.take(Began(first, 1))
    assert "another command is making it" in board.take(Postponed(first))
    board.take(Began(second, 1))
    found = drawn(board)
    assert "made elsewhere" in found and "1 running" in found and found.count("process 1") == 1
    board.take(Began(first, 1))
    assert board.take(Postponed(first)) == ""


def test_protocol_without_map_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(row, scores=replace(row.scored, mean_ap=math.nan)) for row in RECORD.rows)
    assert change(replace(RECORD, rows=rows)) == "n/a -> n/a"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    assert until(90_000.0) == "; end at about Fri 01:00"
