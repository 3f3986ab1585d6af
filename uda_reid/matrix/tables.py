"""A matrix as text: for the terminal, Markdown, LaTeX, CSV and JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from uda_reid.cells import text_of
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Method, Result, Spread, Summary
from uda_reid.matrix.sheets import ENOUGH, meanings, remarks, sheets
from uda_reid.matrix.summary import METRICS
from uda_reid.report import BOUND, Record, to_json
from uda_reid.terminal import paragraph, words


def show(summary: Summary) -> RenderableType:
    """Return the tables for a terminal."""
    parts: list[RenderableType] = []
    for title, columns, rows in sheets(summary):
        table = Table(title=words(title, "bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, column in enumerate(columns):
            table.add_column(words(column), justify="right" if place else "left", no_wrap=not place)
        for row in rows:
            table.add_row(*map(words, row))
        parts.append(table)
    parts += [words(line, "bold") for line in remarks(summary)]
    return Group(*parts, paragraph(meanings(summary), "dim"))


def markdown(summary: Summary, origin: Sequence[str]) -> str:
    """Return the tables as Markdown, with how they were made."""
    parts = [*origin]
    for title, columns, rows in sheets(summary):
        marks = ["---", *["---:"] * (len(columns) - 1)]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
        written = ["| " + " | ".join(row).replace("|  |", "| |") + " |" for row in escaped]
        lines = [written[0].replace("|  ", "| "), "|" + "|".join(marks) + "|", *written[1:]]
        parts += [f"**{title}**", "\n".join(lines)]
    parts += ["\n".join(f"- {line}" for line in remarks(summary))] if remarks(summary) else []
    return "\n\n".join([*parts, "\n".join(meanings(summary))]) + "\n"


SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$", "±": r"$\pm$", "−": "$-$",
    "▼": r"$\blacktriangledown$", "–": "--",
}  # fmt: skip


def tex(text: str) -> str:
    r"""Return text with what LaTeX would take for commands escaped.

    >>> tex("daam_v1 → 50 %"), tex("1.0 ± 0.2")
    ('daam\\_v1 $\\rightarrow$ 50 \\%', '1.0 $\\pm$ 0.2')
    """
    return "".join(SPECIAL.get(sign, sign) for sign in text)


def latex(summary: Summary, origin: Sequence[str]) -> str:
    """Return the tables as LaTeX (packages booktabs and amssymb), the best of every column in bold."""
    lines = ["% needs \\usepackage{booktabs,amssymb}", *(f"% {line}" for text in origin for line in text.splitlines())]
    best = _best(summary)
    for title, columns, rows in sheets(summary):
        first = title.startswith("mAP on")
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{tex(title)}}}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", "\\toprule"]
        lines += [" & ".join(map(tex, columns)) + r" \\", "\\midrule"]
        for place, row in enumerate(rows):
            bold = [first and (place, column) in best for column in range(len(row))]
            cells = [
                f"\\textbf{{{tex(cell)}}}" if strong else tex(cell) for cell, strong in zip(row, bold, strict=True)
            ]
            lines.append(" & ".join(cells) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    lines += [f"\\par\\footnotesize {tex(line)}." for line in remarks(summary)]
    return "\n".join([*lines, *(f"% {line}" for line in meanings(summary))]) + "\n"


def _best(summary: Summary) -> set[tuple[int, int]]:
    """Return (row, column) of the highest mean mAP of every pair and of their average; the bound is left out.

    A method that lacks a seed does not compete.
    """
    rows = {place: method for place, method in enumerate(summary.methods) if method.name != BOUND}
    columns = [
        {
            place: method.cells[pair].spread("mAP").mean
            for place, method in rows.items()
            if pair in method.cells and method.cells[pair].seeds == summary.seeds
        }
        for pair in summary.pairs
    ]
    if len(summary.pairs) > 1:
        whole = {place: method.average for place, method in rows.items() if len(method.average) == len(summary.seeds)}
        columns.append({place: Spread.of(values).mean for place, values in whole.items()})
    found = set()
    for column, means in enumerate(columns, start=1):
        known = {place: mean for place, mean in means.items() if math.isfinite(mean)}
        if known:
            found.add((max(known, key=lambda place: known[place]), column))
    return found


def comma_separated(summary: Summary) -> str:
    """Return one line for every method on every pair, as CSV; what does not exist is empty."""
    names = [name.replace(" ", "_").replace("-", "") for name in METRICS]
    columns = ["source", "target", "method", "source_model", "seeds"]
    columns += [f"{name}{part}" for name in names for part in ("", "_sd")]
    columns += [f"mAP_{end}" for end in ("low", "high")] + ["gain", "gain_sd"]
    columns += [f"gain_{end}{by}" for by in ("", "_by_query") for end in ("low", "high")]
    columns += ["query_identities", "too_few", "negative_transfer", "gap_closed", "gap_closed_sd"]
    columns += ["gap_closed_low", "gap_closed_high", "source_change", "source_change_sd"]
    cells = (
        map(_plain, _line(method, pair, cell)) for method in summary.methods for pair, cell in method.cells.items()
    )
    return text_of([columns, *cells])


def _line(method: Method, pair: tuple[str, str], cell: Result) -> Iterable[Any]:
    yield from (*pair, method.name, chr(ord("a") + method.start), len(cell.seeds))
    for metric in METRICS:
        yield from cell.spread(metric)[:2]
    yield from (None, None) if cell.level is None else (100 * end for end in cell.level.by_identity)
    yield from Spread.of(cell.gains)[:2]
    ends = (None,) * 4 if cell.gain is None else (*cell.gain.by_identity, *cell.gain.by_query)
    yield from (None if end is None else 100 * end for end in ends)
    yield None if cell.level is None else cell.level.identities
    people = ["people"] * (cell.level is not None and not cell.level.reliable)
    yield " and ".join([*people, *["seeds"] * (len(cell.seeds) < ENOUGH)])
    yield cell.negative if cell.gain else None
    closed = [share for share in cell.shares if share is not None]
    yield from (100 * value for value in Spread.of(closed if len(closed) == len(cell.shares) else ())[:2])
    yield from (None, None) if cell.share is None else (100 * end for end in cell.share)
    yield from Spread.of(cell.forgotten)[:2]


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else value


def json_lines(runs: Mapping[str, Mapping[Place, Record]]) -> str:
    """Return every record of a finished run, one to a line."""
    records = (record for places in runs.values() for record in places.values())
    return "".join(f"{json.dumps(json.loads(to_json(record)))}\n" for record in records)
