from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.table import Table

from uda_reid import terminal
from uda_reid.terminal import Logged, RichReporter, Screen, visible, words


def test_bars_nest_pass_every_item_and_are_gone_afterwards() -> None:
    shown = io.StringIO()
    reporter = RichReporter(Screen(file=shown, force_terminal=True, width=80))
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
    reporter = RichReporter(Screen(file=shown, width=80))
    assert list(reporter.progress(range(3), "work", 3)) == [0, 1, 2]
    assert shown.getvalue() == ""
    monkeypatch.setattr(terminal, "QUIET_SECONDS", -1.0)
    list(reporter.progress(range(2), "work", 2))
    assert shown.getvalue() == "... work, 0 of 2\n... work, 1 of 2\n"


def test_a_log_file_gets_the_lines_and_where_long_work_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    logged = Logged(RichReporter(Screen(file=shown, force_terminal=True, width=80)), tmp_path / "log.txt")
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
    logged = Logged(RichReporter(Screen(file=io.StringIO())), Path("/dev/full"))
    assert list(logged.progress("ab", "work", 2)) == ["a", "b"]
    with pytest.raises(OSError, match="No space left"):
        logged.log("a line")


def test_lines_are_printed_as_they_are() -> None:
    shown = io.StringIO()
    RichReporter(Screen(file=shown, width=20)).log("[bold] is no markup, and a long line is not cut")
    assert shown.getvalue() == "[bold] is no markup, and a long line is not cut\n"


NASTY = {
    "escape": "a\x1b[31mb",
    "operating system command": "\x1b]0;title\x07",
    "one byte control": "a\x9b31mb",
    "line break": "a\nb",
    "carriage return": "safe\rlie",
    "right to left": "gpj.\u202eexe",
    "stray byte": "caf\udce9",
    "markup": "[bold red]x[/] and [/y]",
    "emoji": ":skull:",
}
"""What a name may hold."""


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_no_name_is_an_order_to_a_terminal(name: str) -> None:
    shown = io.StringIO()
    screen = Screen(file=shown, force_terminal=True, width=300)
    table = Table(title=words(name, "bold"))
    table.add_column(words(name))
    table.add_row(words(name))
    screen.say(f"run: {name}")
    screen.print(table)
    screen.json(f'{{"name": "{name}"}}')
    screen.print(name)  # also where it was not made of `words`
    list(RichReporter(screen).progress("ab", name, 2))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())  # what rich itself says to the terminal
    assert plain.count(visible(name)) >= 5
    assert all(sign.isprintable() or sign in "\n\r" for sign in plain)
    assert name.isprintable() or "\n" in name or name not in shown.getvalue()


def test_a_log_file_holds_what_can_be_shown(tmp_path: Path) -> None:
    logged = Logged(RichReporter(Screen(file=io.StringIO())), tmp_path / "log.txt")
    for name in NASTY.values():
        logged.log(name)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [visible(name) for name in NASTY.values()]


def test_there_is_one_door_to_a_terminal() -> None:
    """Whatever else writes to a stream would show names as they are."""
    package = Path(terminal.__file__).parent
    allowed = {
        "terminal.py": ".",
        "cli/arguments.py": r"sys\.stdout\.write",  # the stream that tables go through into a pipe
        "data/scenes/workers.py": r"sys\.stdout\.write",  # to the process that started it
    }
    doors = re.compile(
        r"(?<![\w.])print\(|\bConsole\(|typer\.s?echo|sys\.std(out|err)\.write|\bText\(|markup=True|print_exc"
    )
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        code = re.sub(r">>> .*", "", path.read_text())
        for found in doors.finditer(code):
            line = code[: found.start()].count("\n") + 1
            text = code.splitlines()[line - 1]
            assert re.search(allowed.get(name, "(?!)"), text), f"{name}:{line}: {text.strip()}"
