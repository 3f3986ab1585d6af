"""How long work shows itself to a person: lines and progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")

QUIET_SECONDS = 20.0
"""Without a terminal, long work says where it is this often."""


class RichReporter:
    """Lines and progress bars on the terminal's error stream, so that the output stream stays clean."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Progress | None = None
        self.spoken = time.monotonic()

    def log(self, message: str) -> None:
        """Print one line above the bars."""
        self.spoken = time.monotonic()
        self.console.print(message, markup=False, soft_wrap=True)

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Show a bar while `items` pass, nested bars below one another; without a terminal, a line now and then."""
        if not self.console.is_terminal:
            for done, item in enumerate(items):
                if time.monotonic() - self.spoken > QUIET_SECONDS:
                    self.log(f"... {description}, {done}{f' of {total}' if total else ''}")
                yield item
            return
        outermost = self.bars is None
        if self.bars is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bars = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.bars.start()
        bars = self.bars
        task = bars.add_task(description, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self.bars = None
