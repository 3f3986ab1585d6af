"""The page of a matrix: heat maps, intervals and every run behind them, in one file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from uda_reid.matrix import sheets
from uda_reid.matrix.gaps import Gaps
from uda_reid.matrix.plan import Pair, Place
from uda_reid.matrix.summary import Method, Result, Runs, Spread, Summary, scores_of
from uda_reid.ops.quality import alarms
from uda_reid.report import BOUND, Record
from uda_reid.report.figures import Chart, line_chart
from uda_reid.report.page import templates
from uda_reid.report.tables import fact

STRONGEST = 42
"""Per cent of colour in the square with the largest gain or loss: text on it stays easy to read."""
CURVES = {
    "mean_ap": "mAP on the target",
    "pair_precision": "pairs joined that are right",
    "used": "images in clusters",
    "clusters": "clusters",
    "camera_purity": "camera purity",
    "churn": "churn since the round before",
    "nmi": "NMI with the identities",
}
COUNTS = ("clusters",)


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


class Made(NamedTuple):
    """One run of a cell, for its line in the drill-down."""

    seed: int
    before: str
    after: str
    rank1: str
    adapt: str
    folder: str
    command: str


class Drill(NamedTuple):
    """Everything behind one cell."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    runs: tuple[Made, ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]


def render(summary: Summary, runs: Runs, folders: Mapping[tuple[str, Place], str], *, command: str, origin: str) -> str:
    """Return the page as HTML text.

    Args:
        summary: what the runs say together.
        runs: the finished runs.
        folders: of every run, by recipe and place, beside the page.
        command: the command line that makes the matrix.
        origin: everything that the numbers depend on.
    """
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
            drills=drills(summary, runs, folders),
            ledger=ledger(summary, runs),
            recipes=recipes(runs),
            meanings=sheets.MEANINGS,
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
        anchor, mark = _anchor(summary, method, pair), sheets.mark(cell).strip()
        squares[pair] = Square(sheets.number(found.mean), tuple(below), colour, anchor, mark)
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
        squares[pair] = Square(sheets.number(found.mean, "+.1f"), (deviation,), colour, _anchor(summary, method, pair))
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


def drills(summary: Summary, runs: Runs, folders: Mapping[tuple[str, Place], str]) -> list[Drill]:
    """Return what is behind every cell, in the order of pairs."""
    return [
        _drill(summary, method, method.cells[pair], runs, folders)
        for pair in summary.pairs
        for method in summary.methods
        if pair in method.cells
    ]


def _drill(
    summary: Summary, method: Method, cell: Result, runs: Runs, folders: Mapping[tuple[str, Place], str]
) -> Drill:
    found = [(seed, *_record(method, Place(*cell.pair, seed), runs)) for seed in cell.seeds]
    records = {seed: record for seed, _, record in found}
    expected = len(summary.seeds)
    facts = [(name, sheets.spread(values, expected=expected)) for name, values in cell.values.items()]
    if method.adapts and cell.gain is not None:
        facts += [
            ("gain, drawn by person", sheets.between(cell.gain.by_identity)),
            ("gain, drawn by query", sheets.between(cell.gain.by_query)),
        ]
    if cell.level is not None:
        few = "" if cell.level.reliable else "; too few for the interval"
        facts.append(("people in the queries", f"{cell.level.identities}{few}"))
    lines = [
        Made(
            seed,
            sheets.number(100 * record.start.scored.mean_ap),
            sheets.number(100 * scores_of(record, method.name).mean_ap),
            sheets.number(100 * scores_of(record, method.name).cmc[1]),
            sheets.number(record.seconds.get("adapt", math.nan), ".0f") if method.adapts else "",
            folders.get((recipe, Place(*cell.pair, seed)), ""),
            record.command,
        )
        for seed, recipe, record in found
    ]
    notes = (
        tuple(dict.fromkeys(note for record in records.values() for note in _alarms(record))) if method.adapts else ()
    )
    title = f"{sheets.named_pair(cell.pair)}, {sheets.named(summary, method)}"
    charts = tuple(_charts(records)) if method.adapts else ()
    return Drill(_anchor(summary, method, cell.pair), title, tuple(facts), tuple(lines), charts, tuple(notes))


def _record(method: Method, place: Place, runs: Runs) -> tuple[str, Record]:
    """Return a run that holds the method's row, of those with its source model, and its recipe."""
    recipes = [method.name] if method.adapts else method.recipes
    return next(
        (recipe, runs[recipe][place])
        for recipe in recipes
        if place in runs.get(recipe, {}) and runs[recipe][place].row(method.name)
    )


def _charts(records: Mapping[int, Record]) -> Iterable[Chart]:
    """Yield small charts over steps with one curve for every seed."""
    for key, name in CURVES.items():
        curves = {}
        for seed, record in records.items():
            points = [(entry["step"], entry[key]) for entry in record.curve if key in entry and entry["step"] > 0]
            if key == "mean_ap" and record.start.scores is not None:
                points = [(0.0, record.start.scores.mean_ap), *points]
            if points and any(step for step, _ in points):
                curves[f"seed {seed}"] = points
        drawn = line_chart(name, curves, x_label="step", unit="number" if key in COUNTS else "percent")
        if drawn is not None:
            yield drawn


def _alarms(record: Record) -> Iterable[str]:
    told = str(record.adapted.facts.get("warnings", "none"))
    if told != "none":
        yield f"seed {record.seed}: {told}"
    for alarm in alarms(record.curve, record.images) if record.images else ():
        yield f"seed {record.seed}: pseudo-labels: {alarm}"


def _anchor(summary: Summary, method: Method, pair: Pair) -> str:
    """Return the id of a cell: by numbers, since names may be alike once they are put together."""
    return f"cell-{summary.methods.index(method) + 1}-{summary.pairs.index(pair) + 1}"


def ledger(summary: Summary, runs: Runs) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the methods and, for every entry of their ledgers, what each knew; runs that differ are told of."""
    names, columns = [], []
    for method in summary.methods:
        facts = []
        for cell in method.cells.values():
            for seed in cell.seeds:
                _, record = _record(method, Place(*cell.pair, seed), runs)
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
