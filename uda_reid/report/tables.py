"""A run on the terminal: scores, gain, supervision ledger and the definitions in a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from uda_reid.report.records import BOUND, Record, Row, gap_closed, remarks
from uda_reid.terminal import paragraph, words
from uda_reid.types import Scores

DEFINITIONS = (
    "mAP: trapezoid average precision (Market-1501 code); mAP step: by the step rule (torchreid, fast-reid), never "
    "lower; rank-k: CMC; mINP: matches / rank of the last one"
)


def percent(value: float) -> str:
    """Return a fraction in percent with one digit, or n/a.

    >>> percent(0.2345), percent(math.nan)
    ('23.4', 'n/a')
    """
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def points(change: float) -> str:
    """Return a difference of two fractions in points with its sign, or n/a.

    >>> points(0.054), points(-0.0001), points(math.nan)
    ('+5.4', '0.0', 'n/a')
    """
    if math.isnan(change):
        return "n/a"
    return "0.0" if abs(change) < 5e-4 else f"{100 * change:+.1f}"


def fact(value: str | int | float | bool | None) -> str:
    """Return an entry of a ledger as a person writes it.

    >>> fact(True), fact(None), fact(96)
    ('yes', '-', '96')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def title_of(record: Record) -> str:
    """Return what a run is called."""
    return f"{record.source} -> {record.target}, {record.recipe['name']}, profile {record.profile}, seed {record.seed}"


def show(record: Record, *, notes: bool = False) -> RenderableType:
    """Return the table of a run with its gain and its supervision ledger, for a terminal.

    Args:
        record: the run.
        notes: print the notes too; without, only how many there are (the log has said them when the run began).
    """
    scored = [(row.name, row.scores) for row in record.shown if row.scores is not None]
    title = title_of(record)
    parts: list[RenderableType] = [scores_table(title, scored)] if scored else [words(title, "bold")]
    parts += [words(line, "bold") for line in (gain(record), cost(record), *remarks(record)) if line]
    lines = [f"fidelity of the recipe in profile paper: {record.recipe['fidelity']} ({record.recipe['paper']})"]
    if notes:
        lines += [f"note: {note}" for note in record.notes]
    elif record.notes:
        lines.append(
            f"{len(record.notes)} {'note' if len(record.notes) == 1 else 'notes'} in record.json and report.html"
        )
    return Group(*parts, "", _ledger(record.shown), _footnotes([scores for _, scores in scored], lines))


def show_row(title: str, row: Row) -> RenderableType:
    """Return the table of one model with its ledger, for a terminal."""
    if row.scores is None:
        return Group(words(title, "bold"), _ledger([row]))
    return Group(scores_table(title, [(row.name, row.scores)]), _ledger([row]), _footnotes([row.scores], ()))


def scores_table(title: str, rows: Sequence[tuple[str, Scores]]) -> Table:
    """Return a table of models and their scores, in percent."""
    table = _table(title)
    table.add_column("model", no_wrap=True)
    for column in ("mAP", "rank-1", "rank-5", "rank-10", "mINP", "mAP step", "queries", "skipped"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, scores in rows:
        values = [
            scores.mean_ap,
            *(scores.cmc[rank] for rank in (1, 5, 10)),
            scores.mean_inp,
            scores.mean_ap_step,
        ]
        table.add_row(words(name), *map(percent, values), str(scores.counted), str(scores.skipped))
    return table


def _table(title: str) -> Table:
    return Table(title=words(title, "bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def gain(record: Record) -> str:
    """Return in one line what adaptation gained, or why there is nothing to say about it."""
    if record.direct:
        return record.unscored or "no adaptation: this recipe scores the source model as it is"
    if record.compared is None:
        return record.unscored or "not scored"
    before, after = record.compared
    line = (
        f"gain: {points(after.mean_ap - before.mean_ap)} mAP, "
        f"{points(after.cmc[1] - before.cmc[1])} rank-1 (points, one seed)"
    )
    if record.row(BOUND) is not None:
        share = gap_closed(record)
        line += f"; share of the gap to the bound closed: {'n/a' if share is None else f'{share:.0%}'}"
    return line


def cost(record: Record) -> str:
    """Return in one line how the adapted model still does on the source's own test images; nothing if not asked for."""
    if not record.on_source or record.direct:
        return ""
    before, after = record.on_source
    changes = (("mAP", before.mean_ap, after.mean_ap), ("rank-1", before.cmc[1], after.cmc[1]))
    told = [f"{name} {percent(old)} -> {percent(new)} ({points(new - old)})" for name, old, new in changes]
    return f"on the test images of its own source ({record.source}): {', '.join(told)}"


def _ledger(rows: Sequence[Row]) -> Table:
    table = _table("supervision ledger")
    table.add_column("")
    for row in rows:
        table.add_column(words(row.name), overflow="fold")
    for key in dict.fromkeys(key for row in rows for key in row.facts):
        table.add_row(words(key), *(words(fact(row.facts.get(key))) for row in rows))
    return table


def _footnotes(scores: Sequence[Scores], notes: Sequence[str]) -> RenderableType:
    lines = [DEFINITIONS, protocol_line(scores)] if scores else []
    return paragraph((*lines, *notes), "dim")


def protocol_line(scores: Sequence[Scores]) -> str:
    """Return the protocol and what became of queries that it cannot count, in one line."""
    line = f"protocol {scores[0].protocol}; skipped queries have no valid match and are in no mean"
    tied = max(each.ties for each in scores)
    if tied:
        line += f"; queries with equal distances that touch a match: {tied}; ties are broken by gallery order"
    return line
