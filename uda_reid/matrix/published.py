"""What others have published for pairs of data sets: shown beside our numbers, marked, and in no average with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from uda_reid.shipped import shipped

DEFINITIONS = ("trapezoid", "step", "merged", "unknown")
"""Of average precision; `merged` is scikit-learn's, in which equal scores are one step."""


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        method: as its authors call it; ours by the name of our recipe.
        source: the labelled data set, by our name.
        target: the other one.
        mean_ap: in percent.
        rank1: in percent; NaN where it was not given.
        average_precision: its definition, one of `DEFINITIONS`.
        backbone: the encoder.
        remark: what else a reader must know.
        cite: where it stands.
    """

    method: str
    source: str
    target: str
    mean_ap: float
    rank1: float
    average_precision: str
    backbone: str
    remark: str
    cite: str


@cache
def published() -> tuple[Published, ...]:
    """Return everything that `assets/published.yaml` has, in its order.

    >>> published()[0].method, published()[0].mean_ap
    ('source-only', 14.2)
    """
    data = yaml.safe_load((shipped("assets") / "published.yaml").read_text(encoding="utf-8"))
    found = []
    for row in data["rows"]:
        origin = data["sources"][row["from"]]
        for pair, (mean_ap, rank1) in row["pairs"].items():
            source, target = pair.split("-")
            found.append(
                Published(
                    row["method"],
                    source,
                    target,
                    float(mean_ap),
                    math.nan if rank1 is None else float(rank1),
                    origin["ap"],
                    row["backbone"],
                    row.get("remark", ""),
                    origin["cite"],
                )
            )
    return tuple(found)


def for_pairs(pairs: Sequence[tuple[str, str]]) -> tuple[Published, ...]:
    """Return what was published for some pairs, pair by pair in their order."""
    return tuple(row for pair in pairs for row in published() if (row.source, row.target) == pair)
