"""What is wrong with pseudo-labels at a glance: numbers per round in, warnings in words out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

COLLAPSE = 0.25
"""Fewer than this share of the most clusters there have been: they have run together."""
SMALLEST = 3
"""Fewer clusters than this tell nobody apart."""
EXPLOSION = 0.5
"""More clusters than this share of the images in them: most stand alone."""
UNUSED = 0.05
"""Below this share of the images in clusters, nearly all are outliers."""


def alarms(curve: Sequence[Mapping[str, float]], images: int) -> tuple[str, ...]:
    """Return a warning for every kind of trouble, with the first step where it is seen.

    Args:
        curve: per round `step`, `clusters` and `used` (as of `audit`); rounds without them are passed over.
        images: training images of the target.

    Returns:
        At most one line each of: nearly all images are outliers, few clusters are left, most images stand alone.

    >>> alarms([{"step": 1, "clusters": 90, "used": 1.0}, {"step": 2, "clusters": 9, "used": 1.0}], 800)
    ('collapse at step 2: 9 clusters, 90 before',)
    """
    found: dict[str, str] = {}
    most = 0.0
    for entry in curve:
        clusters, used = entry.get("clusters", math.nan), entry.get("used", math.nan)
        if not (math.isfinite(clusters) and math.isfinite(used)):
            continue
        step, share = f"{entry['step']:g}", f"{used:.0%}" if used else "none"
        if used < UNUSED:
            found.setdefault("outliers", f"outliers at step {step}: {share} of the images are in clusters")
        elif clusters < max(SMALLEST, COLLAPSE * most):
            before = f", {most:.0f} before" if most else ""
            found.setdefault("collapse", f"collapse at step {step}: {clusters:.0f} clusters{before}")
        elif clusters > EXPLOSION * used * images:
            told = f"{clusters:.0f} clusters of {used * images:.0f} images"
            found.setdefault("explosion", f"explosion at step {step}: {told}")
            continue  # many that stand alone are no number to fall from
        most = max(most, clusters)
    return tuple(found.values())
