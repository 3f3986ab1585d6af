"""The tables of benchmarks/results.py: what finished runs say about pairs, recipes and seeds, as Markdown."""

from __future__ import annotations

import datetime
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uda_reid.matrix.plan import Place
from uda_reid.matrix.summary import Runs, groups
from uda_reid.report import BOUND, SOURCE_ONLY, Record, gap_closed
from uda_reid.report.records import Row
from uda_reid.report.tables import fact

CONTROL = "adabn"
"""The recipe that learns nothing and gives batch norm the target's statistics: the others are compared with it too."""


Values = Mapping[Place, float | None]
"""One number for every run; None where a rule says that there is none."""


@dataclass(frozen=True)
class Made:
    """How the runs were made.

    Args:
        pairs: (source, target), the columns.
        seeds: the seeds of every column.
        command: the command line that makes the runs and this page.
        took: how many runs were made at a time, and how long all of it took, in words; empty where nobody knows.
        failed: what failed, one line each.
    """

    pairs: Sequence[tuple[str, str]]
    seeds: Sequence[int]
    command: str
    took: str = ""
    failed: Sequence[str] = ()


def spread(values: Sequence[float | None], *, expected: int, form: str = ".1f") -> str:
    """Return mean ± sample standard deviation.

    Args:
        values: one for every seed.
        expected: how many seeds there should be; fewer are told.
        form: how the mean is written; the deviation has as many digits and no sign.

    >>> spread([19.0, 20.0, 21.0], expected=3), spread([20.0], expected=1), spread([19.0, 21.0], expected=3)
    ('20.0 ± 1.0', '20.0', '20.0 ± 1.4 (2 of 3 seeds)')
    >>> spread([0.5, None], expected=2), spread([], expected=2), spread([1.0, 3.0], expected=2, form="+.0f")
    ('n/a', '–', '+2 ± 1')
    """
    numbers = [value for value in values if value is not None]
    if not values or len(numbers) < len(values):
        return "n/a" if values else "–"
    deviation = f" ± {statistics.stdev(numbers):{form.lstrip('+')}}" if len(numbers) > 1 else ""
    few = f" ({len(numbers)} of {expected} seeds)" if len(numbers) < expected else ""
    return f"{statistics.mean(numbers):{form}}{deviation}{few}"


def cells(values: Values, made: Made, form: str = ".1f") -> list[str]:
    """Return a row's cells: every pair, and where there are several, the average of the pairs.

    The average is taken over the pairs of one seed first, so that its spread is that of seeds and not of pairs; a seed
    without all pairs is left out.

    >>> made = Made([("a", "b"), ("b", "a")], [0, 1], "")
    >>> values = {Place("a", "b", 0): 1.0, Place("b", "a", 0): 3.0, Place("a", "b", 1): 3.0, Place("b", "a", 1): 5.0}
    >>> cells(values, made)
    ['2.0 ± 1.4', '4.0 ± 1.4', '3.0 ± 1.4']
    """
    expected = len(made.seeds)
    rows = [[values[place] for place in values if place.pair == pair] for pair in made.pairs]
    if len(made.pairs) > 1:
        rows.append([])
        for seed in made.seeds:
            own = [values[place] for pair in made.pairs if (place := Place(*pair, seed)) in values]
            numbers = [value for value in own if value is not None]
            if len(own) == len(made.pairs):
                rows[-1].append(statistics.mean(numbers) if len(numbers) == len(own) else None)
    return [spread(row, expected=expected, form=form) for row in rows]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a Markdown table.

    >>> print(table(["", "mAP"], [["pul", "30.8"]]))
    | | mAP |
    |---|---:|
    | pul | 30.8 |
    """
    marks = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(head).lstrip() + " |", "|" + "|".join(marks) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in escaped)])


def of_row(records: Mapping[Place, Record], name: str, read: Callable[[Row], float]) -> Values:
    """Return what is read from the row called `name` of every run; a recipe's row is the adapted one."""
    return {place: read(record.row(name) or record.adapted) for place, record in records.items()}


def minus(values: Values, others: Values) -> Values:
    """Return the differences at the places that both have: paired by pair and seed.

    >>> minus({Place("a", "b", 0): 3.0, Place("a", "b", 1): 5.0}, {Place("a", "b", 1): 1.0})
    {Place(source='a', target='b', seed=1): 4.0}
    """
    pairs = {place: (value, others[place]) for place, value in values.items() if place in others}
    return {place: None if a is None or b is None else a - b for place, (a, b) in pairs.items()}


def mean_ap(row: Row) -> float:
    """Return trapezoid mAP in percent."""
    return 100 * row.scored.mean_ap


def rank1(row: Row) -> float:
    """Return rank-1 in percent."""
    return 100 * row.scored.cmc[1]


def told(values: Sequence[str]) -> str:
    """Return what entries of a ledger say, and how often where they differ.

    >>> told(["no", "no"]), told(["none", "5 rounds", "none"]), told(["1", "2", "3"])
    ('no', 'none (2 of 3), 5 rounds (1 of 3)', '3 different, such as: 1')
    """
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    if len(counts) > 2:
        return f"{len(counts)} different, such as: {counts[0][0]}"
    return ", ".join(f"{value} ({number} of {len(values)})" for value, number in counts)


def page(runs: Runs, made: Made) -> str:
    """Return everything that the runs say: tables, costs, ledger, notes and how they were made."""
    starts = groups(runs)
    records = [record for places in runs.values() for record in places.values()]
    adapting = {name: places for name, places in runs.items() if not _direct(places)}
    parts = [f"### {made.pairs[0][0]} → {made.pairs[0][1]}" if len(made.pairs) == 1 else f"### {len(made.pairs)} pairs"]
    parts += [_origin(records, made)]
    parts += [f"Failed and missing below: {line}" for line in made.failed]
    if not records:
        return "\n\n".join([*parts, "Nothing has finished."])
    head = ["", *(f"{source} → {target}" for source, target in made.pairs), *["average"][: len(made.pairs) - 1]]
    parts += ["**mAP**, in percent", table(head, _scores(runs, starts, made, mean_ap))]
    parts += ["**Rank-1**, in percent", table(head, _scores(runs, starts, made, rank1))]
    parts += [
        "**mAP beyond source-only**, in points, paired by seed",
        table(head, _beyond(adapting, SOURCE_ONLY, made)),
    ]
    if runs.get(CONTROL):
        (alike,) = (recipes for recipes in starts if CONTROL in recipes)  # another source model starts elsewhere
        rows = _beyond({recipe: adapting[recipe] for recipe in alike if recipe in adapting}, CONTROL, made)
        title = f"**mAP beyond `{CONTROL}`**, which learns nothing, in points, paired by seed"
        parts += [title, table(head, rows)] if rows else []
    shares = [[name, *cells(_shares(places), made, ".0f")] for name, places in adapting.items()]
    rule = "(adapted − source-only) / (bound − source-only) in mAP; n/a where that is under 2 points in one of the runs"
    parts += [f"**Share of the gap closed**, in percent: {rule}", table(head, shares)]
    if len(starts) > 1:
        parts += ["Source models:\n\n" + "\n".join(_models(runs, starts))]
    parts += ["**Seconds to adapt** (wall time of `adapt` alone)", _costs(adapting), _queries(records)]
    parts += ["**Supervision ledger**, where the models differ", *_ledger(runs, starts)]
    parts += ["**What the recipes say of themselves**", "\n".join(_notes(runs))]
    return "\n\n".join(parts)


def _direct(records: Mapping[Place, Record]) -> bool:
    """Return whether a recipe adapts nothing: its row would repeat the source-only one."""
    return bool(records) and all(record.direct for record in records.values())


def _letter(starts: Sequence[Sequence[str]], number: int) -> str:
    return f" ({chr(ord('a') + number)})" if len(starts) > 1 else ""


def _scores(runs: Runs, starts: Sequence[Sequence[str]], made: Made, read: Callable[[Row], float]) -> list[list[str]]:
    rows = []
    for number, recipes in enumerate(starts):
        # Any recipe's runs will do: the source model and the bound are the same ones. All, where one has failed.
        shared = {place: record for recipe in recipes for place, record in runs[recipe].items()}
        shared = {place: shared[place] for place in sorted(shared)}
        letter = _letter(starts, number)
        rows.append([f"{SOURCE_ONLY}{letter}", *cells(of_row(shared, SOURCE_ONLY, read), made)])
        rows += [[name, *cells(of_row(runs[name], name, read), made)] for name in recipes if not _direct(runs[name])]
        rows.append([f"{BOUND} bound{letter}", *cells(of_row(shared, BOUND, read), made)])
    return rows


def _beyond(runs: Runs, name: str, made: Made) -> list[list[str]]:
    rows = []
    for recipe, records in runs.items():
        others = of_row(records if name == SOURCE_ONLY else runs[name], name, mean_ap)
        if recipe != name:
            rows.append([recipe, *cells(minus(of_row(records, recipe, mean_ap), others), made, "+.1f")])
    return rows


def _shares(records: Mapping[Place, Record]) -> Values:
    shares = {place: gap_closed(record) for place, record in records.items()}
    return {place: None if share is None else 100 * share for place, share in shares.items()}


def _models(runs: Runs, starts: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for every source model with the options in which they differ."""
    firsts = [next(iter(runs[recipes[0]].values())).recipe for recipes in starts]
    names = [(section, option) for section in ("encoder", "pretrain") for option in firsts[0][section]]
    differing = [name for name in names if len({str(first[name[0]].get(name[1])) for first in firsts}) > 1]
    return [
        f"-{_letter(starts, number)} {', '.join(recipes)}: "
        + ", ".join(f"{section}.{option} {first[section].get(option)}" for section, option in differing)
        for number, (recipes, first) in enumerate(zip(starts, firsts, strict=True))
    ]


def _costs(runs: Runs) -> str:
    rows = []
    for recipe, records in runs.items():
        seconds = [record.seconds.get("adapt", math.nan) for record in records.values()]
        if seconds:
            most = [f"{value:.0f}" for value in (statistics.median(seconds), min(seconds), max(seconds))]
            rows.append([recipe, *most, str(len(seconds))])
    return table(["", "median", "least", "most", "runs"], rows)


def _queries(records: Sequence[Record]) -> str:
    counts = {record.target: record.adapted.scored for record in records}
    told_counts = (f"{target} {scores.counted}, {scores.skipped} skipped" for target, scores in counts.items())
    return f"Queries: {'; '.join(told_counts)}."


def _ledger(runs: Runs, starts: Sequence[Sequence[str]]) -> list[str]:
    """Return the table of what differs, and a line on what does not."""
    columns: dict[str, list[tuple[Record, Mapping[str, Any]]]] = {}
    for number, recipes in enumerate(starts):
        first, letter = list(runs[recipes[0]].values()), _letter(starts, number)
        columns[f"{SOURCE_ONLY}{letter}"] = [(record, record.start.facts) for record in first]
        names = [name for name in recipes if not _direct(runs[name])]
        columns |= {name: [(record, record.adapted.facts) for record in runs[name].values()] for name in names}
        bounds = [(record, row.facts) for record in first if (row := record.row(BOUND))]
        columns |= {f"{BOUND}{letter}": bounds} if bounds else {}
    keys = dict.fromkeys(key for column in columns.values() for _, facts in column for key in facts)
    entries = {
        key: [told([_general(record, facts.get(key)) for record, facts in column]) for column in columns.values()]
        for key in keys
    }
    same = [f"{key}: {found[0]}" for key, found in entries.items() if len(set(found)) == 1]
    differing = [[key, *found] for key, found in entries.items() if len(set(found)) > 1]
    return [table(["", *columns], differing, numbers=False), f"The same for all: {'; '.join(same)}."]


def _general(record: Record, value: Any) -> str:
    """Return an entry of a ledger; names of domains become what they are in that run."""
    return {record.source: "the source", record.target: "the target"}.get(value, fact(value))


def _notes(runs: Runs) -> list[str]:
    """Return a line on every recipe, with the notes that are its own, and those that all have."""
    recipes = {name: next(iter(records.values())).recipe for name, records in runs.items() if records}
    every = [
        note
        for note in next(iter(recipes.values()))["notes"]
        if all(note in each["notes"] for each in recipes.values())
    ]
    every = every if len(recipes) > 1 else []
    lines = []
    for name, recipe in recipes.items():
        lines.append(f"- `{name}`: {recipe['paper']}; fidelity in profile paper: {recipe['fidelity']}")
        lines += [f"  - {note}" for note in recipe["notes"] if note not in every]
    return [*lines, *(["- all of them", *(f"  - {note}" for note in every)] if every else [])]


def _origin(records: Sequence[Record], made: Made) -> str:
    """Return the command and everything that the numbers depend on."""
    today = datetime.date.today().isoformat()
    if not records:
        return f"`{made.command}` ({today})"
    surroundings = sorted(
        {
            f"torch {each.environment['torch']}, {each.environment['device']}, {each.environment['processor']}, "
            f"threads per run: {each.environment['threads']}"
            for each in records
        }
    )
    protocols = ", ".join(sorted({record.adapted.scored.protocol for record in records}))
    profiles = ", ".join(sorted({record.profile for record in records}))
    versions = ", ".join(sorted({record.version for record in records}))
    seeds = "one seed" if len(made.seeds) == 1 else f"mean ± sample standard deviation over {len(made.seeds)} seeds"
    return (
        f"```sh\n{made.command}\n```\n\n"
        f"{today}, uda_reid {versions}, profile {profiles}, {seeds}, trapezoid AP, protocol {protocols}, checkpoint "
        f"`last`; {'; '.join(surroundings)}{f', {made.took}' if made.took else ''}."
    )


def put(document: str, section: str, name: str) -> str:
    """Return the document with a section between its two marks: in the place of an older one, or at the end.

    >>> first = put("Results", "one", "scenes")
    >>> put(first, "two", "scenes") == put("Results", "two", "scenes")
    True
    """
    begin, end = f"<!-- {name}: made by benchmarks/results.py -->", f"<!-- end of {name} -->"
    new = f"{begin}\n\n{section.strip()}\n\n{end}"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{new}\n".lstrip()
    _, closed, after = rest.partition(end)
    return before + new + (after if closed else f"\n{rest}")
