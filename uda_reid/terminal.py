"""The one door to a terminal and to a log: lines, tables, JSON and progress bars, with every character visible.

Names of files, of data sets and of recipes come from others: what a terminal would take for an order, and what `rich`
would take for markup, is shown as text. No other file writes to a stream, makes a `Console`, or a `Text`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from uda_reid.writing import append_text

if TYPE_CHECKING:  # `run` imports torch, which takes a second that --help does not have
    from uda_reid.run import Reporter

T = TypeVar("T")

QUIET_SECONDS = 20.0
"""Without a terminal, long work says where it is this often."""


def visible(text: str) -> str:
    r"""Return text as one line that a terminal shows as it is: control characters and stray bytes are spelt out.

    Names of files may hold line breaks, escape sequences, and bytes that no encoding knows.

    >>> visible("a\nb\x1b[1m \udce9 ü")
    'a\\nb\\x1b[1m \\udce9 ü'
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def words(text: str, style: str = "") -> Text:
    """Return text for a cell, a heading or a line: one line of visible characters, none of which is markup."""
    return Text(visible(text), style=style)


def paragraph(lines: Iterable[str], style: str = "") -> Text:
    """Return several lines, each as of `words`."""
    return Text("\n".join(map(visible, lines)), style=style)


class Screen(Console):
    """A console that shows what it is given: markup and emoji codes are text, control characters are spelt out.

    Args:
        options: as of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def say(self, text: str) -> None:
        """Print text as one line, which is neither cut nor wrapped."""
        self.print(words(text), soft_wrap=True)

    def json(self, text: str) -> None:
        """Print JSON text as it is."""
        self.file.write("".join(f"{visible(line)}\n" for line in text.removesuffix("\n").split("\n")))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the pieces of whatever is printed, tables and progress bars too, with visible characters only."""
        return map(_visible_piece, super().render(renderable, options))


def _visible_piece(piece: Segment) -> Segment:
    if piece.control or piece.text.isprintable():
        return piece
    return Segment("\n".join(map(visible, piece.text.split("\n"))), piece.style)


def where(description: str, done: int, total: int | None) -> str:
    """Return where long work is, as one line."""
    return f"... {description}, {done}{f' of {total}' if total else ''}"


class RichReporter:
    """Lines and progress bars on the terminal's error stream, so that the output stream stays clean."""

    def __init__(self, console: Screen) -> None:
        self.console = console
        self.bars: Progress | None = None
        self.spoken = time.monotonic()

    def log(self, message: str) -> None:
        """Print one line above the bars."""
        self.spoken = time.monotonic()
        self.console.say(message)

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Show a bar while `items` pass, nested bars below one another; without a terminal, a line now and then."""
        if not self.console.is_terminal:
            for done, item in enumerate(items):
                if time.monotonic() - self.spoken > QUIET_SECONDS:
                    self.log(where(description, done, total))
                yield item
            return
        outermost = self.bars is None
        if self.bars is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
            )
            self.bars = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.bars.start()
        bars = self.bars
        task = bars.add_task(visible(description), total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self.bars = None


class Logged:
    """A reporter that also writes every line into a file."""

    def __init__(self, reporter: Reporter, path: Path) -> None:
        self.reporter, self.path, self.spoken = reporter, path, time.monotonic()

    def log(self, message: str) -> None:
        """Say one line, and write it with the time."""
        self.reporter.log(message)
        self._write(message)

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Show progress; the file gets a line now and then, where work takes long."""
        for done, item in enumerate(self.reporter.progress(items, description, total)):
            if time.monotonic() - self.spoken > QUIET_SECONDS:
                with suppress(OSError):  # a full disk is told by what has to be written
                    self._write(where(description, done, total))
            yield item

    def _write(self, message: str) -> None:
        self.spoken = time.monotonic()
        append_text(self.path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(message)}\n")
