"""Which checkpoint each rule would have chosen, beside the last one, which all tables use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uda_reid.report import Record
from uda_reid.selection import LABEL_FREE, SOURCE, choices, rank_correlation

PROXIES = (*LABEL_FREE, SOURCE)
RULES = ("last", *PROXIES, "oracle")


@dataclass(frozen=True)
class Selected:
    """One recipe's choices over all of its runs.

    Args:
        recipe: its name.
        runs: how many runs have at least two snapshots that were scored.
        mean_ap: rule -> mean mAP in percent of what it chooses, over the runs where it is known.
        regret: rule -> mean of what the best snapshot of the same runs has beyond that, in points.
        known: rule -> in how many runs it is known: a proxy has to be measured of every snapshot.
        correlation: proxy -> mean over runs of its rank correlation with mAP on the target; NaN where no run has any.
    """

    recipe: str
    runs: int
    mean_ap: Mapping[str, float]
    regret: Mapping[str, float]
    known: Mapping[str, int]
    correlation: Mapping[str, float]


def selected(runs: Mapping[str, Mapping[Any, Record]]) -> tuple[Selected, ...]:
    """Return what the rules would have chosen, for every recipe of which the snapshots of a run were measured."""
    found = []
    for recipe, records in runs.items():
        curves = [record.curve for record in records.values()]
        chosen = [(curve, choices(curve)) for curve in curves if len(curve) > 1]
        chosen = [(curve, rules) for curve, rules in chosen if rules]
        if not any(proxy in rules for _, rules in chosen for proxy in LABEL_FREE):
            continue
        by_rule = {rule: [rules[rule] for _, rules in chosen if rule in rules] for rule in RULES}
        found.append(
            Selected(
                recipe,
                len(chosen),
                {rule: 100 * _mean([each.mean_ap for each in made]) for rule, made in by_rule.items()},
                {rule: 100 * _mean([each.regret for each in made]) for rule, made in by_rule.items()},
                {rule: len(made) for rule, made in by_rule.items()},
                {proxy: _mean([rank_correlation(curve, proxy) for curve, _ in chosen]) for proxy in PROXIES},
            )
        )
    return tuple(found)


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
