"""What the page says, section by section: plain values out of a record, or the sentence why there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uda_reid.report.figures import Chart, Scatter, Unit, line_chart, scatter, shown
from uda_reid.report.lists import EXTREME, IMPROVED, LOWEST, SPREAD, WORSENED, Lists, Query
from uda_reid.report.records import BOUND, Numbers, Record, gap_closed
from uda_reid.report.tables import cost, percent, points
from uda_reid.types import Scores

METRICS = {
    "mAP": "mean, over the counted queries, of the average precision by the trapezoid rule (Market-1501 code)",
    "rank-1": "share of the counted queries whose nearest image is right (CMC)",
    "rank-5": "the same among the 5 nearest",
    "rank-10": "the same among the 10 nearest",
    "mINP": "mean inverse negative penalty: matches / rank of the last match; how far one must look to find all",
    "mAP step": "mAP by the step rule (torchreid, fast-reid, OpenUnReID); never lower than the trapezoid",
    "mAP, all queries": "mAP with skipped queries counted as 0",
    "queries": "counted: with at least one valid match in the gallery",
    "skipped": "queries without a valid match; they are in no mean",
    "ties": "counted queries in which a right and a wrong image are equally far; the gallery's order decides",
}
MEANINGS = {
    "mean_ap": "mAP",
    "rank1": "rank-1",
    "pair_precision": "pair precision",
    "pair_recall": "pair recall",
    "pair_f1": "pair F1",
    "nmi": "NMI",
    "ari": "ARI",
    "purity": "purity",
    "camera_purity": "camera purity",
    "churn": "churn",
    "used": "images used",
    "clusters": "clusters",
}
"""How keys of a curve are written; others are written as they are."""
AUDITS: Mapping[str, Mapping[str, str]] = {
    "Pairs put together": {
        "pair_precision": "of the pairs of images put into one cluster, the share that shows one person",
        "pair_recall": "of the pairs of used images that show one person, the share put into one cluster",
        "pair_f1": "the harmonic mean of the two",
    },
    "Agreement with identities": {
        "nmi": "normalised mutual information; high for many small clusters even when they are random",
        "ari": "adjusted Rand index: agreement over pairs, corrected for chance (0 is chance, 100 is perfect)",
        "purity": "the share of the used images whose identity is the commonest one of their cluster",
    },
    "Cameras within clusters": {
        "camera_purity": "over images in clusters of two or more, the share of the commonest camera of their cluster; "
        "high where clusters are cameras instead of persons",
    },
    "Change between rounds": {
        "churn": "how much of the company of an image in its cluster is another one than a round before, on average"
    },
    "Images used": {"used": "the share of the target's training images that got a pseudo-label"},
    "Clusters": {"clusters": "how many different pseudo-labels were used"},
}
PERCENT = {
    "mean_ap",
    "rank1",
    "pair_precision",
    "pair_recall",
    "pair_f1",
    "nmi",
    "ari",
    "purity",
    "camera_purity",
    "churn",
    "used",
    "accuracy",
}
STEPS = "finished rounds or epochs"
GROUPS = {
    IMPROVED: "Most improved: average precision rose most",
    WORSENED: "Most worsened: average precision fell most",
    LOWEST: "Failures: of the others, lowest average precision",
    SPREAD: "Evenly spread over the others, from the highest to the lowest average precision",
}


@dataclass(frozen=True)
class Tile:
    """One headline number: before, after and the change in points."""

    name: str
    before: str
    after: str
    change: str
    better: bool
    worse: bool


@dataclass(frozen=True)
class ScoreLine:
    """One line of the table of scores: a metric, its meaning, a value per model, and the change where there is one."""

    name: str
    meaning: str
    values: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Curves:
    """Charts with the meanings of what they show and their numbers as a table; or why there are none."""

    charts: tuple[Chart, ...]
    meanings: Mapping[str, str]
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    missing: str


def tiles(record: Record) -> tuple[Tile, ...]:
    """Return the headline numbers of a scored run."""
    if record.start.scores is None:
        return ()
    before, after = record.compared or (record.start.scores, record.start.scores)
    values = {"mAP": (before.mean_ap, after.mean_ap), "rank-1": (before.cmc[1], after.cmc[1])}
    return tuple(
        Tile(name, percent(start), percent(end), _change(start, end, record), end - start >= 5e-4, end - start <= -5e-4)
        for name, (start, end) in values.items()
        if math.isfinite(start)
    )


def _change(start: float, end: float, record: Record) -> str:
    return "" if record.compared is None else points(end - start)


def headline(record: Record) -> str:
    """Return in a sentence or two what came out."""
    if record.start.scores is None:
        return f"{record.unscored or 'nothing was scored'}."
    found = tiles(record)
    if record.direct:
        numbers = " and ".join(f"{tile.before} {tile.name}" for tile in found)
        return f"The source model as it is, without adaptation, reaches {numbers} on {record.target}. One seed."
    went = " and ".join(f"{tile.name} went from {tile.before} to {tile.after} ({tile.change} points)" for tile in found)
    text = f"From {record.source} to {record.target}, {went}. One seed: another may give another gain."
    text += f" And {cost(record)}." if cost(record) else ""
    share = gap_closed(record)
    if share is not None:
        text += f" {share:.0%} of the gap in mAP to the supervised bound is closed."
    elif record.row(BOUND) is not None and math.isnan(record.start.scores.mean_ap):
        text += (
            " The share of the gap to the supervised bound is not given: it is one of mAP, which this protocol lacks."
        )
    elif record.row(BOUND) is not None:
        text += " The share of the gap to the supervised bound is not given: the gap is under 2 points of mAP."
    return text


def score_table(record: Record) -> tuple[tuple[str, ...], tuple[ScoreLine, ...]]:
    """Return the models' names and the lines of the table of scores; nothing where nothing was scored."""
    scored = [(row.name, row.scores) for row in record.shown if row.scores is not None]
    lines = []
    for name, values in _metrics([scores for _, scores in scored]).items():
        if all(map(math.isnan, values)):  # the protocol has no such number
            continue
        change = "" if record.compared is None else points(values[1] - values[0])
        lines.append(ScoreLine(name, METRICS[name], tuple(map(percent, values)), change))
    for name in ("queries", "skipped", "ties"):
        counts = [getattr(scores, "counted" if name == "queries" else name) for _, scores in scored]
        if any(counts) or name != "ties":
            lines.append(ScoreLine(name, METRICS[name], tuple(map(str, counts)), ""))
    return tuple(name for name, _ in scored), tuple(lines) if scored else ()


def _metrics(scored: Sequence[Scores]) -> dict[str, list[float]]:
    values = {
        "mAP": [scores.mean_ap for scores in scored],
        **{f"rank-{rank}": [scores.cmc[rank] for scores in scored] for rank in (1, 5, 10)},
        "mINP": [scores.mean_inp for scores in scored],
        "mAP step": [scores.mean_ap_step for scores in scored],
    }
    if any(scores.skipped for scores in scored):
        values["mAP, all queries"] = [scores.mean_ap_all for scores in scored]
    return values


def learning(record: Record) -> Curves:
    """Return mAP and rank-1 of the snapshots on the target, from the source model on, with the bound as a line."""
    start = record.start.scores
    if start is None:
        return _none("Without labelled queries and gallery there is no learning curve on the target.")
    if not any("mean_ap" in entry for entry in record.curve):
        why = "the recipe adapts nothing" if record.direct else "the strategy handed out no snapshots"
        return _none(f"There is no learning curve: {why}.")
    first: Numbers = {"step": 0.0, "mean_ap": start.mean_ap, "rank1": start.cmc[1]}
    entries = [first, *(entry for entry in record.curve if entry["step"] > 0)]
    bound = record.row(BOUND)
    levels = {}
    if bound is not None and bound.scores is not None:
        levels = {"mAP of the bound": (bound.scores.mean_ap, 0), "rank-1 of the bound": (bound.scores.cmc[1], 1)}
    chart = _chart("mAP and rank-1 on the target", ("mean_ap", "rank1"), entries, levels)
    return _curves([chart], {}, ("mean_ap", "rank1"), entries)


def pseudo_labels(record: Record) -> Curves:
    """Return how well the pseudo-labels of each step agree with the identities that the strategy never saw."""
    known = {key for entry in record.curve for key in entry} - {"step", "mean_ap", "rank1"}
    if not known:
        why = "the strategy handed out none"
        if record.start.scores is None:
            why = "nothing was scored, and so they were not compared with identities either"
        return _none(f"There are no audited pseudo-labels: {'the recipe adapts nothing' if record.direct else why}.")
    groups = {title: [key for key in keys if key in known] for title, keys in AUDITS.items()}
    explained = {key: meaning for keys in AUDITS.values() for key, meaning in keys.items() if key in known}
    groups |= {_written(key): [key] for key in sorted(known - explained.keys())}
    charts = [_chart(title, keys, record.curve, {}) for title, keys in groups.items() if keys]
    meanings = {MEANINGS[key]: meaning for key, meaning in explained.items()}
    return _curves(charts, meanings, [key for keys in groups.values() for key in keys], record.curve)


def history(record: Record) -> Curves:
    """Return one small chart for each number that the strategy reported per round or epoch."""
    missing = "Nothing was adapted." if record.direct else "The strategy reported nothing per round or epoch."
    return _reported(record.history, STEPS, missing)


def pretraining(record: Record) -> Curves:
    """Return one small chart for each number of the source training."""
    return _reported(record.pretraining, "epochs", "The record keeps no losses of the source training.")


def _reported(entries: Sequence[Numbers], x_label: str, missing: str) -> Curves:
    if not entries:
        return _none(missing)
    steps = [{"step": float(number), **entry} for number, entry in enumerate(entries, start=1)]
    keys = [key for key in dict.fromkeys(key for entry in entries for key in entry) if key != "step"]
    return _curves([_chart(_written(key), [key], steps, {}, x_label) for key in keys], {}, keys, steps)


def _chart(
    name: str,
    keys: Sequence[str],
    entries: Sequence[Numbers],
    levels: Mapping[str, tuple[float, int]],
    x_label: str = STEPS,
) -> Chart | None:
    curves = {_written(key): [(entry["step"], entry[key]) for entry in entries if key in entry] for key in keys}
    unit: Unit = "percent" if PERCENT.issuperset(keys) else "number"
    return line_chart(name, curves, x_label=x_label, unit=unit, levels=levels)


def _curves(
    charts: Sequence[Chart | None], meanings: Mapping[str, str], keys: Sequence[str], entries: Sequence[Numbers]
) -> Curves:
    lines = tuple(
        (
            shown(entry["step"]),
            *(shown(entry.get(key, math.nan), "percent" if key in PERCENT else "number") for key in keys),
        )
        for entry in entries
    )
    columns = ("step", *(f"{_written(key)}{' (%)' if key in PERCENT else ''}" for key in keys))
    return Curves(tuple(chart for chart in charts if chart is not None), meanings, columns, lines, "")


def _written(key: str) -> str:
    return MEANINGS.get(key, key.replace("_", " "))


def _none(why: str) -> Curves:
    return Curves((), {}, (), (), why)


def queries(record: Record) -> tuple[Scatter | None, str]:
    """Return the figure of every query before and after, or why there is none."""
    if record.direct:
        return None, "Nothing was adapted, so there is no before and after."
    if record.compared is None:
        return None, "Nothing was scored, so there are no queries to compare."
    before, after = record.compared
    found = scatter(before.average_precision, after.average_precision)
    return found, "" if found else f"The protocol ({before.protocol}) gives no average precision per query."


def groups(lists: Lists | None, record: Record) -> tuple[tuple[tuple[str, tuple[Query, ...]], ...], str]:
    """Return the ranked lists by the reason for which they are shown, or why there are none."""
    if record.start.scores is None:
        return (), "Nothing was scored, so there are no ranked lists."
    if lists is None:
        return (), "This run kept no ranked lists (there is no ranked.json beside its record)."
    if not lists.queries:
        return (), "The protocol gives no average precision per query, so none could be chosen by it."
    found = {why: tuple(query for query in lists.queries if query.why == why) for why in GROUPS}
    return tuple((title_of(why, lists), chosen) for why, chosen in found.items() if chosen), ""


def title_of(why: str, lists: Lists) -> str:
    """Return the title of the queries that were chosen for a reason."""
    others = any(query.why in (IMPROVED, WORSENED) for query in lists.queries)
    return GROUPS[why] if others else GROUPS[why].replace("of the others, ", "")


def rule(lists: Lists, record: Record) -> str:
    """Return how the shown queries were chosen."""
    changed = f"whose average precision rose most, {EXTREME} whose fell most, {EXTREME} of the others "
    chosen = f"at most {EXTREME} {'' if record.direct else changed}whose average precision is lowest"
    extremes = "The first group is" if record.direct else "All groups but the last are"
    return (
        f"{len(lists.queries)} of the {lists.counted} counted queries: {chosen}, and of the rest as many as were "
        "missing, at even steps from the highest to the lowest. The rule is fixed; neither chance nor taste chose "
        f"them. {extremes} extreme, not what is usual: see all queries above."
    )


def options(recipe: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Return the sections of a resolved recipe with their options, the plain entries first."""
    plain = {key: value for key, value in recipe.items() if not isinstance(value, Mapping | list | tuple)}
    sections = {"recipe": plain, **{key: value for key, value in recipe.items() if isinstance(value, Mapping)}}
    return tuple(
        (title, tuple((key, _option(value)) for key, value in section.items())) for title, section in sections.items()
    )


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_option, value))
    return "none" if value is None else str(value)
