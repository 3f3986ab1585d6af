"""How far a matrix has got: a table that stays on the screen, or a line for every run that has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.table import Table

from uda_reid.matrix.plan import Cell
from uda_reid.matrix.workers import Answer, Began, Ended, Postponed
from uda_reid.report import Record
from uda_reid.report.tables import percent
from uda_reid.terminal import words

AROUND = 8
"""Lines of a screen that are not rows of the table."""


def outcome(answer: Answer, seconds: float) -> str:
    """Return what came of a run, for a line on progress."""
    if answer.record is None:
        return f"FAILED: {answer.failure}"
    return f"mAP {change(answer.record)}, {'found' if answer.found else f'{seconds:.0f} s'}"


def change(record: Record) -> str:
    """Return mAP before and after, in percent, n/a where the protocol has none."""
    return " -> ".join(percent(row.scored.mean_ap) for row in (record.start, record.adapted))


def until(left: float) -> str:
    """Return when the end is to be expected, some seconds from now; nothing where that is not known."""
    form = "%H:%M" if left < 20 * 3600 else "%a %H:%M"
    return f"; end at about {time.strftime(form, time.localtime(time.time() + left))}" if left else ""


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(42.4), duration(125), duration(7_260)
    ('42 s', '2 min', '2 h 1 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Board:
    """What has happened to every run so far.

    Args:
        cells: all runs, in their order.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        self.running: dict[Cell, tuple[int, float]] = {}
        self.ended: dict[Cell, Ended] = {}
        self.postponed: set[Cell] = set()
        self.end = 0.0

    def take(self, event: Began | Postponed | Ended) -> str:
        """Note what has happened; return it as a line where it is worth one."""
        if isinstance(event, Began):
            self.running[event.cell] = (event.worker, time.monotonic())
            # Later the runs that end say enough; the first ones wait for source models, and that takes a while.
            return "" if self.ended else f"begun: {event.cell}; source models that are missing are trained first"
        if isinstance(event, Postponed):
            self.running.pop(event.cell, None)
            if event.cell in self.postponed:
                return ""
            self.postponed.add(event.cell)
            return f"{event.cell}: another command is making it; the others come first"
        self.running.pop(event.cell, None)
        self.ended[event.cell] = event
        self.end = time.time() + event.left
        said = f"{event.cell}: {outcome(event.answer, event.seconds)}{until(event.left)}"
        return f"[{len(self.ended)}/{len(self.cells)}] {said}"

    @property
    def failed(self) -> tuple[Ended, ...]:
        """The runs that failed."""
        return tuple(event for event in self.ended.values() if event.answer.record is None)

    def __rich_console__(self, console: object, options: ConsoleOptions) -> RenderResult:
        """Draw the table: pairs and recipes below one another, seeds side by side."""
        seeds = list(dict.fromkeys(cell.place.seed for cell in self.cells))
        rows: dict[tuple[str, str, str], dict[int, Cell]] = {}
        for cell in self.cells:
            rows.setdefault((*cell.place.pair, cell.recipe), {})[cell.place.seed] = cell
        room = (options.height or options.size.height) - AROUND
        busy = {key: row for key, row in rows.items() if any(cell in self.running for cell in row.values())}
        shown = rows if len(rows) <= room else dict(list(busy.items())[: max(room, 1)])
        table = Table(box=SIMPLE_HEAD)
        for title in ("from", "to", "recipe", *(f"seed {seed}" for seed in seeds)):
            table.add_column(title, no_wrap=True)
        for (source, target, recipe), row in shown.items():
            table.add_row(*map(words, (source, target, recipe)), *(self._state(row.get(seed)) for seed in seeds))
        yield table
        hidden = (
            f", {len(rows) - len(shown)} rows without a running one are not shown" if len(shown) < len(rows) else ""
        )
        found = sum(event.answer.found for event in self.ended.values())
        parts = [f"{len(self.ended)} of {len(self.cells)} runs", f"{found} of them found" if found else ""]
        parts += [f"{len(self.failed)} failed" if self.failed else "", f"{len(self.running)} running"]
        left = self.end - time.time()
        expected = until(left).removeprefix("; ") if self.ended and left > 0 else ""
        yield words(", ".join(filter(None, [*parts, expected])) + hidden)

    def _state(self, cell: Cell | None) -> RenderableType:
        if cell is None:
            return ""
        if cell in self.running:
            worker, began = self.running[cell]
            return words(f"{duration(time.monotonic() - began)}, process {worker}", "bold")
        if cell not in self.ended:
            return words("made elsewhere" if cell in self.postponed else ".", "dim")
        record = self.ended[cell].answer.record
        if record is None:
            return words("failed", "red")
        return words(change(record))
