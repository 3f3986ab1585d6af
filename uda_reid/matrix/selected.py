"""Which checkpoint each rule would have chosen, beside the last one, which all tables use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uda_reid.report import Record
from uda_reid.selection import LABEL_FREE, SOURCE, choices, rank_correlation

RULES = ("last", *LABEL_FREE, SOURCE, "oracle")


@dataclass(frozen=True)
class Selected:
    """One recipe's choices over all of its runs.

    Args:
        recipe: its name.
        runs: how many runs have at least two snapshots with all that is measured.
        mean_ap: rule -> mean mAP in percent of what it chooses.
        regret: rule -> mean of what the best snapshot has beyond that, in points.
        correlation: proxy -> mean over runs of its rank correlation with mAP on the target; NaN where none has any.
    """

    recipe: str
    runs: int
    mean_ap: Mapping[str, float]
    regret: Mapping[str, float]
    correlation: Mapping[str, float]


def selected(runs: Mapping[str, Mapping[Any, Record]]) -> tuple[Selected, ...]:
    """Return what the rules would have chosen, for every recipe of which snapshots were measured."""
    found = []
    for recipe, records in runs.items():
        chosen = [(record.curve, choices(record.curve)) for record in records.values()]
        whole = [(curve, rules) for curve, rules in chosen if len(curve) > 1 and set(RULES) <= rules.keys()]
        if whole:
            found.append(
                Selected(
                    recipe,
                    len(whole),
                    {rule: 100 * _mean([rules[rule].mean_ap for _, rules in whole]) for rule in RULES},
                    {rule: 100 * _mean([rules[rule].regret for _, rules in whole]) for rule in RULES},
                    {
                        proxy: _mean([rank_correlation(curve, proxy) for curve, _ in whole])
                        for proxy in (*LABEL_FREE, SOURCE)
                    },
                )
            )
    return tuple(found)


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
