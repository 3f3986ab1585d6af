"""A target that is a copy of the source: there is nothing to adapt to, and a strategy should not do harm."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import replace

import pytest
from scipy.stats import t

from uda_reid.data.scenes import Drawing, draw
from uda_reid.job import Job
from uda_reid.pipeline import one
from uda_reid.strategies import BUILT_IN

SEEDS = (0, 1, 2)
WORLD = Drawing(train_identities=24, test_identities=40, distractors=40, junk=10, height=64, width=32)
HARMFUL: Mapping[str, str] = {
    "adda": "adabn, which it contains, loses most of that too, and stays within the rule (docs/strategies/adda.md)"
}
"""Strategy -> why it may lose more than the rule allows, as it has with other random numbers; its page explains it."""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What to carry: a small drawn world to its copy. Source models are trained once for all strategies."""
    data = tmp_path_factory.mktemp("copied")
    draw("plaza", data / "world", WORLD)
    shutil.copytree(data / "world", data / "copy")
    out = data / "runs"
    return Job(recipe="", source="world", target="copy", data=data, out=out, profile="scenes", threads=1)


def allowed(losses: list[float]) -> float:
    """Return the mean loss that a strategy may have: a point, and what three seeds cannot tell from it.

    That is Student's quantile of 97.5 % in standard errors, 4.3 for three seeds. Two, which are that of a deviation
    that is known, fail a strategy that truly loses a point once in eleven times: the processor's rounding decides when.
    """
    return 1 + float(t.ppf(0.975, len(losses) - 1)) * statistics.stdev(losses) / math.sqrt(len(losses))


@pytest.mark.slow  # minutes: about one on a core for each strategy
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_copy_of_the_source_as_target_costs_no_more_than_a_point(name: str, copied: Job) -> None:
    losses = []
    for seed in SEEDS:
        record, _, _ = one(replace(copied, recipe=name, seed=seed))
        losses.append(100 * (record.start.scored.mean_ap - record.adapted.scored.mean_ap))
    told = f"{name} loses {statistics.mean(losses):.1f} points of mAP: {', '.join(f'{loss:.1f}' for loss in losses)}"
    print(told)  # pytest -m slow -s tests/strategies/test_copies.py
    if statistics.mean(losses) > allowed(losses) and name in HARMFUL:
        pytest.xfail(f"{told}; {HARMFUL[name]}")
    assert statistics.mean(losses) <= allowed(losses), told


def test_rule_allows_a_point_and_what_the_seeds_cannot_tell() -> None:
    assert allowed([2.0, 2.0, 2.0]) == 1.0
    assert allowed([1.0, 2.0, 3.0]) == pytest.approx(1 + 4.302653 / math.sqrt(3))
    assert allowed([1.0, 2.0] * 50) == pytest.approx(1 + 1.984217 * statistics.stdev([1.0, 2.0] * 50) / 10)
