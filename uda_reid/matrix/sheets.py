"""What a matrix says, as rows of words: scores, gains, shares, what is kept, selection, gaps; and what to mind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from uda_reid.gap import MEASURES
from uda_reid.matrix.results import Method, Result, Spread, Summary
from uda_reid.matrix.selected import PROXIES, RULES
from uda_reid.ops.bootstrap import FEW, LEVEL, Interval
from uda_reid.report import BOUND

Rows = list[list[str]]

ANY_CAMERA = "protocol any-camera, since cameras are unknown; its numbers are higher than those across cameras"
ENOUGH = 5
"""Seeds below which the spread of training is hardly known: an interval of draws ends at the extremes of a few."""

MEANINGS = {
    "mAP": "mAP: trapezoid average precision (Market-1501 code), in percent; mean ± sample standard deviation over "
    "seeds.",
    "Gain": f"In brackets the {LEVEL:.0%} interval of the gain over source-only, paired by query and seed: people are "
    "drawn, each with all queries, and seeds (percentile bootstrap).",
    "Share": "Share of the gap closed: (adapted - source-only) / (bound - source-only), mean over seeds, with its "
    "interval, drawn as that of the gain; n/a if a gap is under 2 points.",
    "rank": "Rank: mean place by mAP among source-only and the recipes, over pairs and seeds.",
    "Kept": "Kept on the source: change of mAP on the source's own test images.",
    "How": "How far apart: larger is further; no label is used. Its rank correlation with the source-only mAP is over "
    "pairs (n/a for fewer than three), means of their seeds; pairs also differ in how hard their targets are.",
    "Selection": "Selection: all other tables use the last checkpoint. The oracle looks at the target's test labels: "
    "nobody can.",
}
"""What the tables mean, by the word that their titles begin with."""


def number(value: float, form: str = ".1f") -> str:
    """Return a number, or n/a.

    >>> number(27.449), number(math.nan), number(-0.04, "+.1f")
    ('27.4', 'n/a', '0.0')
    """
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:{form}}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def spread(values: Sequence[float], *, expected: int, form: str = ".1f") -> str:
    """Return mean ± sample standard deviation; fewer seeds than expected are told.

    >>> spread([19.0, 21.0], expected=3), spread([20.0], expected=1), spread([], expected=2)
    ('20.0 ± 1.4 (2 of 3 seeds)', '20.0', '–')
    """
    if not values:
        return "–"
    found = Spread.of(values)
    deviation = f" ± {number(found.deviation, form.lstrip('+'))}" if found.seeds > 1 else ""
    few = f" ({found.seeds} of {expected} seeds)" if found.seeds < expected else ""
    return f"{number(found.mean, form)}{deviation}{few}"


def between(found: Interval | None, form: str = "+.1f") -> str:
    """Return an interval of fractions in points; nothing where there is none.

    >>> between(Interval(0.021, 0.0456)), between(None)
    ('[+2.1, +4.6]', '')
    """
    return "" if found is None else f"[{number(100 * found.low, form)}, {number(100 * found.high, form)}]"


def named_pair(pair: tuple[str, str]) -> str:
    """Return what a pair is called."""
    return "{} → {}".format(*pair)


def letter(summary: Summary, method: Method) -> str:
    """Return which source model a row belongs to, where there are several; recipes are told apart by their names."""
    return f" ({chr(ord('a') + method.start)})" if summary.starts > 1 else ""


def named(summary: Summary, method: Method) -> str:
    """Return a row's name."""
    name = f"{BOUND} bound" if method.name == BOUND else method.name
    return f"{name}{letter(summary, method)}"


def head(summary: Summary) -> list[str]:
    """Return the columns of a table by pair."""
    average = ["average"] if len(summary.pairs) > 1 else []
    return ["", *map(named_pair, summary.pairs), *average]


def levels(summary: Summary, metric: str) -> Rows:
    """Return a metric of every method, with its average over the pairs where there are several."""
    expected = len(summary.seeds)
    rows = []
    for method in summary.methods:
        cells = [spread(cell.values[metric], expected=expected) if cell else "–" for cell in _in_order(summary, method)]
        average = [spread(method.averages[metric], expected=expected)] if len(summary.pairs) > 1 else []
        rows.append([named(summary, method), *cells, *average])
    return rows


def scores(summary: Summary) -> Rows:
    """Return mAP of every method, and its mean rank."""
    ranks = ["" if method.name == BOUND else number(method.rank) for method in summary.methods]
    return [[*row, rank] for row, rank in zip(levels(summary, "mAP"), ranks, strict=True)]


def gains(summary: Summary) -> Rows:
    """Return what every recipe gains over source-only, with its interval."""
    expected = len(summary.seeds)
    rows = []
    for method in summary.methods:
        if not method.adapts:
            continue
        cells = [_gain(cell, expected) for cell in _in_order(summary, method)]
        if len(summary.pairs) > 1:
            cells.append(with_interval(method.average_gain, method.interval, expected))
        rows.append([named(summary, method), *cells])
    return rows


def _gain(cell: Result | None, expected: int) -> str:
    if cell is None:
        return "–"
    found = None if cell.gain is None else cell.gain.by_identity
    return f"{with_interval(cell.gains, found, expected)}{mark(cell)}"


def mark(cell: Result) -> str:
    """Return the mark of negative transfer, with a question mark where the interval does not mean what it says."""
    return "" if not cell.negative else " ▼?" if cell.unsure else " ▼"


def with_interval(values: Sequence[float], found: Interval | None, expected: int) -> str:
    """Return the mean with its interval, or with its deviation where there is no interval."""
    if found is None or not values:
        return spread(values, expected=expected, form="+.1f")
    few = f" ({len(values)} of {expected} seeds)" if len(values) < expected else ""
    return f"{number(Spread.of(values).mean, '+.1f')} {between(found)}{few}"


def by_cell(summary: Summary, read: Callable[[Result], Sequence[float | None]], form: str) -> Rows:
    """Return a table of one number for every seed, of the recipes; nothing where no cell has any."""
    rows = []
    for method in summary.methods:
        if method.adapts:
            found = [() if cell is None else read(cell) for cell in _in_order(summary, method)]
            rows.append([named(summary, method), *(_told(values, len(summary.seeds), form) for values in found)])
    return rows if any(set(row[1:]) != {"–"} for row in rows) else []


def _told(values: Sequence[float | None], expected: int, form: str) -> str:
    known = [value for value in values if value is not None]
    return "n/a" if len(known) < len(values) else spread(known, expected=expected, form=form)


def shares(summary: Summary) -> Rows:
    """Return which share of the gap every recipe closes, in percent, with its interval."""
    rows = by_cell(summary, lambda cell: [None if share is None else 100 * share for share in cell.shares], ".0f")
    cells = [cell for method in summary.methods if method.adapts for cell in _in_order(summary, method)]
    intervals = iter([between(cell.share, ".0f") if cell else "" for cell in cells])
    return [[row[0], *(f"{value} {next(intervals)}".strip() for value in row[1:])] for row in rows]


def forgetting(summary: Summary) -> Rows:
    """Return what adapting costs on the source's own test images, in points of mAP."""
    return by_cell(summary, lambda cell: cell.forgotten, "+.1f")


def selection(summary: Summary) -> Rows:
    """Return the mean mAP of what every rule chooses, and what the best snapshot has beyond it."""
    return [
        [
            f"{each.recipe} ({each.runs} runs)",
            *(
                f"{number(each.mean_ap[rule])} ({number(each.regret[rule])})"
                + f", {each.known[rule]} runs" * (each.known[rule] < each.runs)
                for rule in RULES
            ),
        ]
        for each in summary.selected
    ]


def correlations(summary: Summary) -> Rows:
    """Return the mean rank correlation of every proxy with mAP on the target, over the snapshots of a run."""
    return [[each.recipe, *(number(each.correlation[proxy], "+.2f") for proxy in PROXIES)] for each in summary.selected]


def gap(summary: Summary) -> Rows:
    """Return how far apart every pair is, its source-only mAP, and how well the one goes with the other."""
    rows = []
    for each in summary.gaps:
        of = f" ({chr(ord('a') + each.start)})" if summary.starts > 1 else ""
        for pair, measured in each.measured.items():
            values = [Spread.of(measured.get(name, ())).mean for name in MEASURES]
            cells = [number(value, ".3f") for value in values]
            rows.append([f"{named_pair(pair)}{of}", *cells, number(100 * each.levels[pair])])
        told = [number(each.correlation[name], "+.2f") for name in MEASURES]
        rows.append([f"rank correlation over {len(each.measured)} pair{'s' * (len(each.measured) > 1)}{of}", *told, ""])
    return rows


def literature(summary: Summary) -> Rows:
    """Return what others have published for these pairs."""
    return [
        [
            f"{row.method}, published", f"{row.source} → {row.target}", number(row.mean_ap),
            number(row.rank1).replace("n/a", "not given"), row.average_precision, row.backbone, row.remark, row.cite,
        ]
        for row in summary.published
    ]  # fmt: skip


def _in_order(summary: Summary, method: Method) -> list[Result | None]:
    return [method.cells.get(pair) for pair in summary.pairs]


def meanings(summary: Summary) -> list[str]:
    """Return what the tables mean that are there."""
    there = {"rank", *(title.split(" ")[0].rstrip(":") for title, _, _ in sheets(summary))}
    return [meaning for word, meaning in MEANINGS.items() if word in there]


def remarks(summary: Summary) -> list[str]:
    """Return what a reader must know before believing the numbers, one line each."""
    found = [f"missing: {line}" for line in summary.missing]
    cells = [cell for method in summary.methods for cell in method.cells.values()]
    few = {cell.pair[1]: cell.level.identities for cell in cells if cell.level and not cell.level.reliable}
    for target, people in few.items():
        found.append(
            f"intervals on {target} are unreliable: its queries show {people} people, and under {FEW} a few decide"
        )
    found += [f"on {target}: {ANY_CAMERA}" for target in summary.any_camera]
    if any(cell.level is None for cell in cells):
        found.append("some intervals are missing: seeds were not asked the same queries, or these have no AP or names")
    if len(summary.seeds) == 1:
        found.append("one seed: no interval knows how much another training would change the numbers")
    elif len(summary.seeds) < ENOUGH:
        found.append(
            f"{len(summary.seeds)} seeds: where trainings differ much, intervals are too narrow and ▼ comes too often"
        )
    for method in summary.methods:
        worse = [f"{named_pair(pair)}{mark(cell)}" for pair, cell in method.cells.items() if cell.negative]
        if method.adapts and worse:
            found.append(f"negative transfer, all of the interval is below zero: {method.name} on {', '.join(worse)}")
    return found


def sheets(summary: Summary) -> list[tuple[str, list[str], Rows]]:
    """Return the tables: title, columns, rows; those without any row are left out."""
    columns, pairs = head(summary), head(summary)[: len(summary.pairs) + 1]
    kept = "Kept on the source: change of mAP on its own test images, points"
    parts = [
        ("mAP on the target, percent", [*columns, "rank"], scores(summary)),
        ("Rank-1 on the target, percent", columns, levels(summary, "rank-1")),
        ("Gain over source-only, points of mAP; ▼: all of the interval is below zero", columns, gains(summary)),
        ("Share of the gap to the supervised bound closed, percent", pairs, shares(summary)),
        (kept, pairs, forgetting(summary)),
        ("Selection: mean mAP of the chosen checkpoint (regret against the oracle)", ["", *RULES], selection(summary)),
        (
            "Rank correlation of a proxy with mAP on the target, over a run's snapshots",
            ["", *PROXIES],
            correlations(summary),
        ),
    ]
    parts.append(
        ("How far apart the pairs are before any adaptation", ["pair", *MEASURES, "source-only mAP"], gap(summary))
    )
    columns = ["", "pair", "mAP", "rank-1", "AP", "backbone", "remark", "where"]
    parts.append(("Published by others, in no average with ours", columns, literature(summary)))
    return [part for part in parts if part[2]]
