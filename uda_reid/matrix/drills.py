"""Everything behind one cell of a matrix: its numbers, curves, runs, and what the run of its first seed shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from uda_reid.matrix import sheets
from uda_reid.matrix.plan import Pair, Place
from uda_reid.matrix.results import Method, Result, Summary
from uda_reid.matrix.summary import Runs, scores_of
from uda_reid.ops.quality import alarms
from uda_reid.report import SOURCE_ONLY, Record, Shown
from uda_reid.report.attention import Parts, evenness
from uda_reid.report.embedding_map import clouds, told
from uda_reid.report.figures import Chart, Cloud, line_chart
from uda_reid.report.lists import IMPROVED, LOWEST, WORSENED, Query
from uda_reid.report.pictures import Album, Picture, album
from uda_reid.report.sections import title_of

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
SHOWN = {IMPROVED: 2, WORSENED: 2, LOWEST: 3}
"""How many queries are shown of those that a run keeps, by the reason it kept them for; its own page has all."""
HITS, ATTENDED = 5, 5
"""How many places of a ranked list, and how many attention maps (every second one), are shown."""


class Made(NamedTuple):
    """One run of a cell, for its line in the drill-down."""

    seed: int
    before: str
    after: str
    rank1: str
    adapt: str
    folder: str
    command: str


class Pictured(NamedTuple):
    """What the run of one seed shows: its ranked lists, attention and embeddings, or a part of them.

    Args:
        seed: of the run.
        root: the folder that paths of pictures start from.
        groups: ranked lists by the reason for which they are shown.
        attention: the attention maps of some images, and in a sentence how even they are.
        clouds: maps of the embeddings, and in a sentence how mixed the domains are.
    """

    seed: int
    root: str
    groups: tuple[tuple[str, tuple[Query, ...]], ...]
    attention: tuple[tuple[Parts, ...], str]
    clouds: tuple[tuple[Cloud, ...], str]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images that are shown."""
        found = [picture for _, queries in self.groups for query in queries for picture in query.pictures]
        return (*found, *(part.picture for part in self.attention[0]))


class Drill(NamedTuple):
    """Everything behind one cell."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    runs: tuple[Made, ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]
    pictured: Pictured | None


def drills(
    summary: Summary,
    runs: Runs,
    folders: Mapping[tuple[str, Place], str],
    shown: Mapping[tuple[str, Place], Shown],
) -> list[Drill]:
    """Return what is behind every cell, in the order of pairs; arguments as of `matrix.page.render`."""
    return [
        _drill(summary, method, method.cells[pair], runs, folders, shown)
        for pair in summary.pairs
        for method in summary.methods
        if pair in method.cells
    ]


def _drill(
    summary: Summary,
    method: Method,
    cell: Result,
    runs: Runs,
    folders: Mapping[tuple[str, Place], str],
    shown: Mapping[tuple[str, Place], Shown],
) -> Drill:
    found = [(seed, *record_of(method, Place(*cell.pair, seed), runs)) for seed in cell.seeds]
    records = {seed: record for seed, _, record in found}
    expected = len(summary.seeds)
    facts = [(name, sheets.spread(values, expected=expected)) for name, values in cell.values.items()]
    if method.adapts:
        facts.append(("gain over source-only, points", sheets.spread(cell.gains, expected=expected, form="+.1f")))
    if method.adapts and cell.gain is not None:
        facts += [
            ("gain, interval drawn by person", sheets.between(cell.gain.by_identity)),
            ("gain, interval drawn by query", sheets.between(cell.gain.by_query)),
        ]
    shares = [100 * share for share in cell.shares if share is not None]
    if shares and len(shares) == len(cell.shares):
        closed = sheets.spread(shares, expected=expected, form=".0f")
        facts.append(("share of the gap closed, percent", f"{closed} {sheets.between(cell.share, '.0f')}".strip()))
    if method.adapts and cell.forgotten:
        facts.append(("kept on the source, points", sheets.spread(cell.forgotten, expected=expected, form="+.1f")))
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
    charts = tuple(_charts(records)) if method.adapts else ()
    pictured = [
        _pictured(seed, shown[recipe, Place(*cell.pair, seed)])
        for seed, recipe, record in found
        if (method.adapts or (method.name == SOURCE_ONLY and record.direct))
        and (recipe, Place(*cell.pair, seed)) in shown
    ]
    return Drill(
        anchor=anchor(summary, method, cell.pair),
        title=f"{sheets.named_pair(cell.pair)}, {sheets.named(summary, method)}",
        facts=tuple(facts),
        runs=tuple(lines),
        charts=charts,
        notes=notes,
        pictured=pictured[0] if pictured else None,
    )


def _pictured(seed: int, shown: Shown) -> Pictured:
    lists, attention, embeddings = shown.lists, shown.attention, shown.embeddings
    groups = []
    for why, number in SHOWN.items():
        chosen = [query for query in lists.queries if query.why == why][:number] if lists else []
        short = tuple(replace(query, before=query.before[:HITS], after=query.after[:HITS]) for query in chosen)
        groups += [(title_of(why, lists), short)] if lists and short else []
    seen = [each for each in (lists, attention) if each is not None]
    return Pictured(
        seed=seed,
        root=seen[0].root if seen else "",
        groups=tuple(groups),
        attention=(attention.images[::2][:ATTENDED], evenness(attention)) if attention else ((), ""),
        clouds=(clouds(embeddings), told(embeddings)) if embeddings else ((), ""),
    )


def albums(drilled: Iterable[Drill]) -> dict[str, Album]:
    """Return thumbnails of all images that are shown, by the folder that their paths start from."""
    found: dict[str, list[Picture]] = {}
    for each in drilled:
        if each.pictured is not None:
            found.setdefault(each.pictured.root, []).extend(each.pictured.pictures)
    return {
        root: album(Path(root), pictures, name=f"picture-{number}")
        for number, (root, pictures) in enumerate(found.items(), 1)
    }


def record_of(method: Method, place: Place, runs: Runs) -> tuple[str, Record]:
    """Return a run that holds the method's row, of those with its source model, and its recipe."""
    recipes = [method.name] if method.adapts else method.recipes
    found = [(recipe, runs[recipe][place]) for recipe in recipes if place in runs.get(recipe, {})]
    found = [(recipe, record) for recipe, record in found if record.row(method.name)]
    # What a run that adapts nothing shows is what the source model does.
    return next((each for each in found if each[1].direct), found[0])


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


def anchor(summary: Summary, method: Method, pair: Pair) -> str:
    """Return the id of a cell: by numbers, since names may be alike once they are put together."""
    return f"cell-{summary.methods.index(method) + 1}-{summary.pairs.index(pair) + 1}"
