"""What the runs of a matrix say together: per pair and method a mean, its spread over seeds, and how sure it is."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from uda_reid.errors import DataError
from uda_reid.matrix.gaps import Gaps, gaps
from uda_reid.matrix.plan import Pair, Place
from uda_reid.matrix.results import Method, Result, Spread, Summary
from uda_reid.matrix.selected import selected
from uda_reid.ops.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Interval,
    estimate,
    interval,
    over_seeds,
    resampled,
    resampled_means,
)
from uda_reid.report import BOUND, SMALLEST_GAP, SOURCE_ONLY, Record, gap_closed
from uda_reid.types import Scores

Runs = Mapping[str, Mapping[Place, Record]]
"""Recipe -> place -> the finished run; a run that failed or has not been made is missing."""
METRICS = ("mAP", "mAP step", "rank-1", "rank-5", "rank-10", "mINP")


def metrics(scores: Scores) -> dict[str, float]:
    """Return the numbers of a table, in percent; NaN where the protocol has none."""
    ranks = {f"rank-{rank}": scores.cmc[rank] for rank in (1, 5, 10)}
    found = {"mAP": scores.mean_ap, "mAP step": scores.mean_ap_step, **ranks, "mINP": scores.mean_inp}
    return {name: 100 * value for name, value in found.items()}


def summarise(
    runs: Runs, pairs: Sequence[Pair], seeds: Sequence[int], *, missing: Sequence[str] = (), resamples: int = RESAMPLES
) -> Summary:
    """Return what the runs say together.

    Args:
        runs: the finished runs.
        pairs: the matrix's pairs.
        seeds: the matrix's seeds.
        missing: what is not there, in words.
        resamples: draws of every interval.
    """
    methods: list[Method] = []
    apart: list[Gaps] = []
    for start, recipes in enumerate(groups(runs)):
        every = [(place, record) for recipe in recipes for place, record in runs[recipe].items()]
        # Any recipe's runs will do for what they share, the models being the same ones; one may lack what another has.
        shared = dict(reversed(every))
        bounded = {place: record for place, record in reversed(every) if record.row(BOUND)}
        measured = gaps({place: record for place, record in reversed(every) if record.gap}, pairs, start)
        apart += [measured] if measured.measured else []
        own = {name: records for name in recipes if not _direct(records := runs[name])}
        rows = {SOURCE_ONLY: shared, **own, **({BOUND: bounded} if bounded else {})}
        lines = [_method(name, start, recipes, rows[name], pairs, seeds, resamples) for name in rows]
        methods += _ranked(lines)
    everything = [record for records in runs.values() for record in records.values()]
    blind = {record.target for record in everything if record.adapted.scored.protocol.startswith("any-camera")}
    any_camera = tuple(target for target in dict.fromkeys(target for _, target in pairs) if target in blind)
    return Summary(
        tuple(pairs),
        tuple(seeds),
        tuple(methods),
        tuple(missing),
        selected=selected(runs),
        gaps=tuple(apart),
        any_camera=any_camera,
    )


def groups(runs: Runs) -> list[list[str]]:
    """Return the recipes by source model: those whose encoder and pretraining are the same stand together."""
    found: dict[str, list[str]] = {}
    for recipe, records in runs.items():
        kinds = sorted({json.dumps([each.recipe["encoder"], each.recipe["pretrain"]]) for each in records.values()})
        if kinds:
            found.setdefault("; ".join(kinds), []).append(recipe)
    return list(found.values())


def _direct(records: Mapping[Place, Record]) -> bool:
    return all(record.direct for record in records.values())


def scores_of(record: Record, name: str) -> Scores:
    """Return the scores of the row called `name`.

    Raises:
        DataError: the run has no such row.
    """
    row = record.row(name)
    if row is None:
        raise DataError(f"the run of {record.recipe['name']} has no row {name}")
    return row.scored


def _method(
    name: str, start: int, recipes: Sequence[str], records: Mapping[Place, Record], pairs: Sequence[Pair],
    seeds: Sequence[int], resamples: int,
) -> Method:  # fmt: skip
    cells = {}
    for pair in pairs:
        found = [record for seed in seeds if (record := records.get(Place(*pair, seed)))]
        if found:
            cells[pair] = _cell(name, pair, found, resamples)
    whole = len(cells) == len(pairs)
    complete = [seed for seed in seeds if whole and all(seed in cell.seeds for cell in cells.values())]
    parts = [(cell, [cell.seeds.index(seed) for seed in complete]) for cell in cells.values()]
    return Method(
        name=name,
        start=start,
        recipes=tuple(recipes),
        cells=cells,
        averages={
            metric: _means([[cell.values[metric][place] for place in places] for cell, places in parts])
            for metric in METRICS
        },
        average_gain=_means([[cell.gains[place] for place in places] for cell, places in parts if cell.gains]),
        interval=_average_gain(name, records, list(cells.values()), pairs, resamples),
    )


def _means(columns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean over the pairs for every seed."""
    return tuple(map(statistics.fmean, zip(*columns, strict=True)))


def _cell(name: str, pair: Pair, records: Sequence[Record], resamples: int) -> Result:
    each = [metrics(scores_of(record, name)) for record in records]
    beyond = [] if name == SOURCE_ONLY else [100 * _beyond(record, name) for record in records]
    closed = name not in (SOURCE_ONLY, BOUND) and all(record.row(BOUND) for record in records)
    scored = [record.on_source for record in records if record.on_source]
    cost = name not in (SOURCE_ONLY, BOUND) and len(scored) == len(records)
    shares = tuple(map(gap_closed, records)) if closed else ()
    return Result(
        pair=pair,
        seeds=tuple(record.seed for record in records),
        values={metric: tuple(values[metric] for values in each) for metric in METRICS},
        level=_estimate(records, name, None, resamples),
        gain=_estimate(records, name, SOURCE_ONLY, resamples) if name != SOURCE_ONLY else None,
        gains=tuple(beyond),
        shares=shares,
        share=_share(records, name, resamples) if shares and None not in shares else None,
        forgotten=tuple(100 * (after.mean_ap - before.mean_ap) for before, after in scored) if cost else (),
    )


def _beyond(record: Record, name: str) -> float:
    return scores_of(record, name).mean_ap - record.start.scored.mean_ap


def per_query(
    records: Sequence[Record], name: str, other: str | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None:
    """Return AP (S, Q) of a row, or its difference to another row, and whom each query shows (Q,).

    None where the seeds were not asked the same queries, or these have no AP or no names.
    """
    identities = records[0].identities
    if not identities or any(record.identities != identities for record in records):
        return None
    values = np.stack([scores_of(record, name).average_precision for record in records])
    if other is not None:
        values = values - np.stack([scores_of(record, other).average_precision for record in records])
    if np.isnan(values).all(1).any():
        return None
    return values, np.array(identities)


def _estimate(records: Sequence[Record], name: str, other: str | None, resamples: int) -> Estimate | None:
    found = per_query(records, name, other)
    if found is None:
        return None
    return estimate(*found, resamples=resamples, name=_named(records[0]))


def _share(records: Sequence[Record], name: str, resamples: int) -> Interval | None:
    """Return the interval of the share of the gap closed: the same people and seeds are drawn above and below.

    Like the number itself it is a mean of the seeds' shares. A draw in which the gap of one of its seeds is too small
    to have a share has none; there is no interval where that is more than one draw of forty.
    """
    drawn = []
    for row in (name, BOUND):
        found = per_query(records, row, SOURCE_ONLY)
        if found is None:
            return None
        drawn.append(resampled(*found, resamples=resamples, name=_named(records[0])))
    (weights, gain), (_, gap) = drawn
    known = ((gap >= SMALLEST_GAP) | (weights == 0)).all(1)
    if known.mean() < LEVEL + (1 - LEVEL) / 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # of seeds that were not drawn
        return interval(over_seeds(weights, gain / gap)[known])


def _named(record: Record) -> str:
    """Name the random numbers by whose people are drawn: the same ones for every method and from every source."""
    return record.target


def _average_gain(
    name: str, records: Mapping[Place, Record], cells: Sequence[Result], pairs: Sequence[Pair], resamples: int
) -> Interval | None:
    if name == SOURCE_ONLY or len(cells) < len(pairs) or len(pairs) < 2:
        return None
    drawn = []
    for cell in cells:
        own = [records[Place(*cell.pair, seed)] for seed in cell.seeds]
        found = per_query(own, name, SOURCE_ONLY)
        if found is None or cell.seeds != cells[0].seeds:
            return None
        drawn.append(resampled_means(*found, resamples=resamples, name=_named(own[0])))
    return interval(np.mean(drawn, axis=0))


def _ranked(methods: Sequence[Method]) -> list[Method]:
    """Return the methods of one start with their mean places; the bound is out of competition."""
    places: dict[str, list[float]] = {}
    running = [method for method in methods if method.name != BOUND]
    for pair in dict.fromkeys(pair for method in running for pair in method.cells):
        here = {method.name: method.cells[pair] for method in running if pair in method.cells}
        for seed in {seed for cell in here.values() for seed in cell.seeds}:
            values = {
                name: cell.values["mAP"][cell.seeds.index(seed)] for name, cell in here.items() if seed in cell.seeds
            }
            if any(map(math.isnan, values.values())):  # the protocol has no mAP
                continue
            if len(values) == len(running):  # a method that has failed here would make the others look better
                for name, value in values.items():
                    better = sum(other > value for other in values.values())
                    equal = sum(other == value for other in values.values())
                    places.setdefault(name, []).append(better + (equal + 1) / 2)
    return [replace(method, rank=Spread.of(places.get(method.name, [])).mean) for method in methods]
