"""Finished runs of a small matrix, with numbers that are easy to follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from tests.report.examples import RECORD
from uda_reid.matrix.plan import Place
from uda_reid.report import BOUND, SOURCE_ONLY, Record, Row
from uda_reid.types import Scores

PAIRS = (("a", "b"), ("b", "a"))
IDENTITIES = (1, 1, 2, 3, 3, 4)


def scores(values: Sequence[float], domain: str = "b") -> Scores:
    mean = float(np.nanmean(values))
    return Scores(
        domain=domain, protocol="market", mean_ap=mean, mean_ap_step=mean + 0.01, mean_inp=mean / 2,
        cmc={1: mean + 0.1, 5: mean + 0.2, 10: mean + 0.3, 20: 1.0}, counted=len(values), skipped=0, ties=0,
        average_precision=np.array(values),
    )  # fmt: skip


def record(
    recipe: str, place: Place, before: Sequence[float], after: Sequence[float], bound: float | None = 0.9,
    *, cost: float | None = -0.1, options: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None,
) -> Record:  # fmt: skip
    rows = [
        Row(SOURCE_ONLY, scores(before, place.target), {"camera ids used": False}),
        Row(recipe, scores(after, place.target), {"camera ids used": False, "warnings": "none", **(facts or {})}),
    ]
    if bound is not None:
        rows.append(Row(BOUND, scores([bound] * len(before), place.target), {"camera ids used": False}))
    strategy = "source_only" if recipe == "source_only" else recipe
    return replace(
        RECORD, source=place.source, target=place.target, seed=place.seed, rows=tuple(rows),
        recipe={
            **RECORD.recipe, "name": recipe, "strategy": strategy, "notes": ["a note"], "pretrain": {"epochs": 1},
            **(options or {}),
        },
        identities=IDENTITIES, profile="scenes", seconds={"adapt": 12.0},
        environment={"threads": 1, "torch": "2", "device": "cpu", "processor": "one"},
        on_source=() if cost is None else (scores([0.5], place.source), scores([0.5 + cost], place.source)),
    )  # fmt: skip


def runs(seeds: Sequence[int] = (0, 1), **options: Any) -> dict[str, dict[Place, Record]]:
    """Return two recipes on two pairs: `up` gains 0.1 on every query, `down` loses 0.05 and 0.01 more with a seed."""
    found: dict[str, dict[Place, Record]] = {"source_only": {}, "up": {}, "down": {}}
    for pair in PAIRS:
        for seed in seeds:
            place = Place(*pair, seed)
            before = [0.1 + 0.05 * query + 0.01 * seed + (0.1 if pair[0] == "b" else 0.0) for query in range(6)]
            for recipe, gain in (("source_only", 0.0), ("up", 0.1), ("down", -0.05 - 0.01 * seed)):
                after = [value + gain for value in before]
                found[recipe][place] = record(recipe, place, before, after, **{"cost": gain, **options})
    return found


MANY = tuple(permutations("abc", 2))


def varied(seeds: Sequence[int] = (0, 1, 2)) -> dict[str, dict[Place, Record]]:
    """Return runs of three domains whose gains differ by query, person and seed; `wide` has a source model of its own.

    Every target is that of two pairs, with the same 35 people, of one to three queries each.
    """
    draws = np.random.default_rng(7)
    identities = tuple(np.repeat(np.arange(35), draws.integers(1, 4, 35)).tolist())
    count, people = len(identities), np.array(identities)
    found: dict[str, dict[Place, Record]] = {"pul": {}, "adda": {}, "wide": {}}
    for pair in MANY:
        for seed in seeds:
            place = Place(*pair, seed)
            before = draws.uniform(0.1, 0.5, count)
            for recipe, shift, options in (("pul", 0.05, {}), ("adda", -0.04, {}), ("wide", 0.0, WIDE)):
                start = before + (0.2 if recipe == "wide" else 0.0)
                of_person = draws.normal(0, 0.05, 35)[people]
                after = start + shift + of_person + draws.normal(0, 0.02, count) + draws.normal(0, 0.01)
                made = record(
                    recipe, place, start.tolist(), after.tolist(), 0.9 if recipe == "wide" else 0.8, options=options
                )
                gap = {"MMD": 1 - float(start.mean()), "proxy-A": float(draws.random()), "batch norm": 0.3}
                found[recipe][place] = replace(
                    made, identities=identities, command=f"{recipe} {place.source} {place.target} {seed}",
                    gap={**gap, "batch norm, layer 01": 0.1, "batch norm, layer 02": 0.5},
                )  # fmt: skip
    return found


WIDE = {"encoder": {"hidden": 256}}
