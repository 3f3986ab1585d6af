from __future__ import annotations

import math

import pytest

from uda_reid.ops.quality import alarms


def curve(*rounds: tuple[float, float]) -> list[dict[str, float]]:
    return [{"step": number, "clusters": clusters, "used": used} for number, (clusters, used) in enumerate(rounds, 1)]


MANY = "500 clusters of 800 images"


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([(90, 1.0), (60, 0.9), (40, 0.8)], ()),
        ([(90, 1.0), (23, 1.0)], ()),
        ([(90, 1.0), (22, 1.0), (5, 1.0)], ("collapse at step 2: 22 clusters, 90 before",)),
        ([(2, 1.0)], ("collapse at step 1: 2 clusters",)),
        ([(3, 1.0)], ()),
        ([(401, 1.0)], ("explosion at step 1: 401 clusters of 800 images",)),
        ([(400, 1.0)], ()),
        ([(201, 0.5)], ("explosion at step 1: 201 clusters of 400 images",)),
        ([(10, 0.05), (10, 0.04)], ("outliers at step 2: 4% of the images are in clusters",)),
        ([(0, 0.0)], ("outliers at step 1: none of the images are in clusters",)),
        ([(500, 1.0), (90, 1.0)], (f"explosion at step 1: {MANY}",)),
        ([(40, 1.0), (90, 1.0), (20, 1.0)], ("collapse at step 3: 20 clusters, 90 before",)),
        ([(40, 1.0), (90, 1.0), (20, 1.0)], ("collapse at step 3: 20 clusters, 90 before",)),
    ],
)
def test_alarms_are_raised_at_their_limits_and_once(rounds: list[tuple[float, float]], told: tuple[str, ...]) -> None:
    assert alarms(curve(*rounds), 800) == told


def test_rounds_without_pseudo_labels_are_passed_over() -> None:
    assert alarms([{"step": 1.0, "mean_ap": 0.3}, {"step": 2.0, "clusters": math.nan, "used": 1.0}], 800) == ()
