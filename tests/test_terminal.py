from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from uda_reid import terminal
from uda_reid.terminal import Logged, RichReporter


def test_bars_nest_pass_every_item_and_are_gone_afterwards() -> None:
    shown = io.StringIO()
    reporter = RichReporter(Console(file=shown, force_terminal=True, width=80))
    passed = [
        (outer, inner)
        for outer in reporter.progress([1, 2], "outer", 2)
        for inner in reporter.progress("ab", "inner", 2)
    ]
    assert passed == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert "outer" in shown.getvalue()
    assert reporter.bars is None


def test_without_a_terminal_long_work_speaks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    reporter = RichReporter(Console(file=shown, width=80))
    assert list(reporter.progress(range(3), "work", 3)) == [0, 1, 2]
    assert shown.getvalue() == ""
    monkeypatch.setattr(terminal, "QUIET_SECONDS", -1.0)
    list(reporter.progress(range(2), "work", 2))
    assert shown.getvalue() == "... work, 0 of 2\n... work, 1 of 2\n"


def test_a_log_file_gets_the_lines_and_where_long_work_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    logged = Logged(RichReporter(Console(file=shown, force_terminal=True, width=80)), tmp_path / "log.txt")
    assert list(logged.progress("abc", "work", 3)) == ["a", "b", "c"]
    logged.log("done")
    monkeypatch.setattr(terminal, "QUIET_SECONDS", -1.0)
    list(logged.progress("ab", "more", None))
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["done", "... more, 0", "... more, 1"]
    assert "done" in shown.getvalue() and "..." not in shown.getvalue()  # a bar shows the same there


def test_a_full_disk_under_the_log_does_not_end_what_only_wants_to_say_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(terminal, "QUIET_SECONDS", -1.0)
    logged = Logged(RichReporter(Console(file=io.StringIO())), Path("/dev/full"))
    assert list(logged.progress("ab", "work", 2)) == ["a", "b"]
    with pytest.raises(OSError, match="No space left"):
        logged.log("a line")


def test_lines_are_printed_as_they_are() -> None:
    shown = io.StringIO()
    RichReporter(Console(file=shown, width=20)).log("[bold] is no markup, and a long line is not cut")
    assert shown.getvalue() == "[bold] is no markup, and a long line is not cut\n"
