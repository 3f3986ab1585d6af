"""The page of a matrix: heat maps, intervals and every run behind them, in one file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from uda_reid.matrix import sheets
from uda_reid.matrix.drills import albums, anchor, drills, record_of
from uda_reid.matrix.gaps import Gaps
from uda_reid.matrix.plan import Pair, Place
from uda_reid.matrix.results import Method, Spread, Summary
from uda_reid.matrix.summary import Runs
from uda_reid.report import BOUND, Shown
from uda_reid.report.figures import Chart, line_chart
from uda_reid.report.page import templates
from uda_reid.report.pictures import real_people
from uda_reid.report.tables import fact

STRONGEST = 42
"""Per cent of colour in the square with the largest gain or loss: text on it stays easy to read."""


class Square(NamedTuple):
    """One cell of a heat map: its number, the lines below, its colour from -1 to 1, a link to its runs, and a mark."""

    number: str
    below: tuple[str, ...]
    colour: float
    anchor: str
    mark: str = ""

    @property
    def style(self) -> str:
        """The square's background."""
        if not self.colour:
            return ""
        part = f"var({'--s0' if self.colour > 0 else '--s1'}) {abs(self.colour) * STRONGEST:.0f}%"
        return f"background: color-mix(in srgb, {part}, var(--back))"


class Grid(NamedTuple):
    """A heat map: sources below one another, targets side by side."""

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    squares: Mapping[Pair, Square]


def render(
    summary: Summary,
    runs: Runs,
    folders: Mapping[tuple[str, Place], str],
    *,
    command: str,
    origin: str,
    shown: Mapping[tuple[str, Place], Shown] | None = None,
    pictures: bool = True,
) -> str:
    """Return the page as HTML text.

    Args:
        summary: what the runs say together.
        runs: the finished runs.
        folders: of every run, by recipe and place, beside the page.
        command: the command line that makes the matrix.
        origin: everything that the numbers depend on.
        shown: of some runs, by recipe and place, what they show beside their numbers.
        pictures: put small copies of the images into the page; without, places, marks and maps remain.
    """
    drilled = drills(summary, runs, folders, shown or {})
    small = albums(drilled) if pictures else {}
    average = len(summary.pairs) > 1
    return (
        templates()
        .get_template("matrix.html.jinja")
        .render(
            summary=summary,
            headline=headline(summary),
            remarks=sheets.remarks(summary),
            grids=[grid(summary, method) for method in summary.methods],
            kept=[each for method in summary.methods if (each := kept(summary, method)).squares],
            averages=averages(summary) if average else [],
            parts=sheets.sheets(summary),
            layers=[drawn for each in summary.gaps if (drawn := layers(summary, each))],
            drills=drilled,
            albums=small,
            photographs=any(real_people(Path(root), each) for root, each in small.items()),
            ledger=ledger(summary, runs),
            recipes=recipes(runs),
            meanings=sheets.meanings(summary),
            command=command,
            origin=origin,
            title=title(summary),
        )
    )


def headline(summary: Summary) -> str:
    """Return in a sentence or two what came out."""
    adapting = [method for method in summary.methods if method.adapts]
    if not adapting:
        return "Source models as they are: nothing was adapted."
    several, wanted = len(summary.pairs) > 1, len(summary.seeds)
    alone = {method.name: next(iter(method.cells.values())) for method in adapting if len(method.cells) == 1}
    gained = {
        method.name: method.average_gain if several else alone[method.name].gains if method.name in alone else ()
        for method in adapting
    }
    whole = {name: Spread.of(gains).mean for name, gains in gained.items() if len(gains) == wanted}
    finite = {name: gain for name, gain in whole.items() if math.isfinite(gain)}
    if not finite:
        return "No recipe has all of its runs and a number for mAP yet."
    best = max(finite, key=lambda name: finite[name])
    method = next(each for each in adapting if each.name == best)
    gain = None if several else alone[best].gain
    found = method.interval if several else gain.by_identity if gain else None
    where = f"on average over {len(summary.pairs)} pairs" if several else f"on {sheets.named_pair(summary.pairs[0])}"
    told = f"{sheets.number(finite[best], '+.1f')} points of mAP {sheets.between(found)}".strip()
    text = f"The largest gain over source-only {where} is that of {best}: {told}."
    if len(finite) < len(adapting):
        text += f" {len(adapting) - len(finite)} of {len(adapting)} recipes lack runs and are left out of that."
    cells = [cell for each in adapting for cell in each.cells.values()]
    lost = sum(cell.negative and not cell.unsure for cell in cells)
    if len(cells) == 1:
        return text + " All of the interval is below zero: worse than source-only." * bool(lost)
    share = f"{lost} of {len(cells)} cells of recipes" if lost else f"none of the {len(cells)} cells of recipes"
    return f"{text} All of the interval is below zero, worse than source-only, in {share}."


def grid(summary: Summary, method: Method) -> Grid:
    """Return a method's heat map of mAP, coloured by the gain over source-only where it is a recipe."""
    gains = [Spread.of(cell.gains).mean for each in summary.methods if each.adapts for cell in each.cells.values()]
    largest = max((abs(gain) for gain in gains if math.isfinite(gain)), default=1.0)
    squares = {}
    for pair, cell in method.cells.items():
        gain = Spread.of(cell.gains).mean if method.adapts else 0.0
        found = cell.spread("mAP")
        deviation = f"± {sheets.number(found.deviation)}" if found.seeds > 1 else "one seed"
        below = [deviation]
        if method.adapts and cell.gain is not None:
            below += [sheets.number(gain, "+.1f"), sheets.between(cell.gain.by_identity)]
        elif method.adapts:
            below.append(sheets.number(gain, "+.1f"))
        elif cell.level is not None:
            below.append(sheets.between(cell.level.by_identity, ".1f"))
        colour = gain / largest if math.isfinite(gain) and largest else 0.0
        link, mark = anchor(summary, method, pair), sheets.mark(cell).strip()
        squares[pair] = Square(sheets.number(found.mean), tuple(below), colour, link, mark)
    return _grid(summary, method, squares)


def kept(summary: Summary, method: Method) -> Grid:
    """Return the twin heat map: what the method costs on the source's own test images; no squares where not scored."""
    squares = {}
    cells = {pair: cell for pair, cell in method.cells.items() if cell.forgotten and method.adapts}
    costs = [Spread.of(each.forgotten).mean for line in summary.methods for each in line.cells.values()]
    largest = max((abs(cost) for cost in costs if math.isfinite(cost)), default=1.0)
    for pair, cell in cells.items():
        found = Spread.of(cell.forgotten)
        colour = found.mean / largest if math.isfinite(found.mean) and largest else 0.0
        deviation = f"± {sheets.number(found.deviation)}" if found.seeds > 1 else "one seed"
        squares[pair] = Square(sheets.number(found.mean, "+.1f"), (deviation,), colour, anchor(summary, method, pair))
    return _grid(summary, method, squares)


def _grid(summary: Summary, method: Method, squares: Mapping[Pair, Square]) -> Grid:
    order = domains(summary)
    sources = tuple(name for name in order if any(source == name for source, _ in summary.pairs))
    targets = tuple(name for name in order if any(target == name for _, target in summary.pairs))
    return Grid(sheets.named(summary, method), sources, targets, squares)


def domains(summary: Summary) -> tuple[str, ...]:
    """Return the names of all domains, sources first."""
    return tuple(dict.fromkeys([*(source for source, _ in summary.pairs), *(target for _, target in summary.pairs)]))


def title(summary: Summary) -> str:
    """Return what the page is called: the domains of a whole matrix, or from where to where."""
    sources, targets = ({pair[end] for pair in summary.pairs} for end in (0, 1))
    order = domains(summary)
    if sources == targets:
        return ", ".join(order)
    return " → ".join(", ".join(name for name in order if name in part) for part in (sources, targets))


def averages(summary: Summary) -> list[tuple[str, str, str, str]]:
    """Return name, average mAP, average gain with its interval, and mean rank of every method."""
    expected = len(summary.seeds)
    return [
        (
            sheets.named(summary, method),
            sheets.spread(method.average, expected=expected),
            sheets.with_interval(method.average_gain, method.interval, expected) if method.adapts else "",
            "" if method.name == BOUND else sheets.number(method.rank),
        )
        for method in summary.methods
    ]


def layers(summary: Summary, each: Gaps) -> Chart | None:
    """Return how far apart the pairs are in every batch-norm layer of a source model; None where it has none."""
    curves = {
        sheets.named_pair(pair): [(float(number), value) for number, value in enumerate(values, 1)]
        for pair, values in each.layers.items()
    }
    name = "divergence of batch norm, nats" + (f" ({chr(ord('a') + each.start)})" if summary.starts > 1 else "")
    return line_chart(name, curves, x_label="layer, first to last", unit="number")


def ledger(summary: Summary, runs: Runs) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the methods and, for every entry of their ledgers, what each knew; runs that differ are told of."""
    names, columns = [], []
    for method in summary.methods:
        facts = []
        for cell in method.cells.values():
            for seed in cell.seeds:
                _, record = record_of(method, Place(*cell.pair, seed), runs)
                row = record.row(method.name)
                general = {record.source: "the source", record.target: "the target"}
                known = row.facts if row else {}
                facts.append({key: general.get(str(value), fact(value)) for key, value in known.items()})
        names.append(sheets.named(summary, method))
        columns.append(facts)
    keys = dict.fromkeys(key for facts in columns for each in facts for key in each)
    return names, [(key, [_together([each.get(key, "-") for each in facts]) for facts in columns]) for key in keys]


def _together(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else f"{len(different)} different, such as: {different[0]}"


def recipes(runs: Runs) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Return name, paper, fidelity and notes of every recipe."""
    found = []
    for name, records in runs.items():
        recipe = next(iter(records.values())).recipe
        found.append((name, str(recipe["paper"]), str(recipe["fidelity"]), tuple(map(str, recipe.get("notes", ())))))
    return found
