"""Which of a run's snapshots to keep when nobody labelled the target: proxies, and what choosing by them would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from uda_reid.ops.clustering import kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.quality import silhouette, soft_neighbourhood_density, stability
from uda_reid.pretraining import validate
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Source, Target

LABEL_FREE = ("silhouette", "density", "agreement")
"""Proxies that need neither label: higher is better, as a rule. None is proof."""
SOURCE = "source mAP"
"""The one that needs labels of the source's held-out people."""
IMAGES_PER_CLUSTER = 8


def proxies(encoder: Encoder, target: Target, source: Source, *, run: Run = QUIET) -> dict[str, float]:
    """Return what can be measured of an encoder without a label of the target.

    Args:
        encoder: the encoder.
        target: at least two images, as a strategy has them.
        source: the source, for its held-out people.
        run: the surroundings; the random numbers are the same for every encoder.

    Returns:
        `silhouette`: of the k-means clusters of the embeddings, in [-1, 1]; `density`: soft-neighbourhood density
        (Saito et al. 2021), in [0, ln N]; `agreement`: adjusted Rand index of the clusters of the images as they are
        and of augmented ones; `source mAP` on the held-out people, where there are any. NaN where there is no number.
    """
    features = normalise(extract(encoder, target.images, run=run, description="proxies"))
    if not torch.isfinite(features).all():  # it has diverged
        return dict.fromkeys((*LABEL_FREE, SOURCE), math.nan)
    changed = normalise(extract(encoder, target.images, augmentation="reid", run=run, description="proxies, augmented"))
    count = max(2, len(features) // IMAGES_PER_CLUSTER)
    one, other = (kmeans(each, count, generator=run.stream("proxies/kmeans")).labels for each in (features, changed))
    known = validate(replace(source, encoder=encoder), run=run)
    return {
        "silhouette": silhouette(features, one, generator=run.stream("proxies/silhouette")).value,
        "density": soft_neighbourhood_density(features),
        "agreement": stability(one, other),
        **({SOURCE: known["mean_ap"]} if known else {}),
    }


class Choice(NamedTuple):
    """What a rule would have chosen: which step, its mAP on the target, and what the best step has beyond that."""

    step: float
    mean_ap: float
    regret: float


def choices(curve: Sequence[Mapping[str, float]]) -> dict[str, Choice]:
    """Return what every rule would have chosen among the snapshots of a run, by name.

    `last` is the last one; a proxy's choice is the snapshot where it is highest, the later of equal ones; `oracle`
    looks at the target's test labels and is no way to choose, but the measure of the others.

    Args:
        curve: per snapshot `step`, `mean_ap` on the target, and proxies; snapshots without a finite `mean_ap` are left
            out.

    >>> curve = [{"step": 1, "mean_ap": 0.4, "density": 2.0}, {"step": 2, "mean_ap": 0.3, "density": 1.0}]
    >>> {rule: (choice.step, round(choice.regret, 2)) for rule, choice in choices(curve).items()}
    {'last': (2, 0.1), 'density': (1, 0.0), 'oracle': (1, 0.0)}
    """
    scored = [entry for entry in curve if math.isfinite(entry.get("mean_ap", math.nan))]
    if not scored:
        return {}
    best = max(scored, key=lambda entry: entry["mean_ap"])
    chosen = {"last": scored[-1]}
    for name in (*LABEL_FREE, SOURCE):
        measured = [entry for entry in reversed(scored) if math.isfinite(entry.get(name, math.nan))]
        if len(measured) == len(scored):
            chosen[name] = max(measured, key=lambda entry, name=name: entry[name])  # type: ignore[misc]
    chosen["oracle"] = best
    return {
        rule: Choice(entry["step"], entry["mean_ap"], best["mean_ap"] - entry["mean_ap"])
        for rule, entry in chosen.items()
    }


def rank_correlation(curve: Sequence[Mapping[str, float]], proxy: str) -> float:
    """Return Spearman's correlation of a proxy and mAP on the target over snapshots.

    NaN with fewer than three snapshots that have both, or where either is constant.

    >>> rank_correlation([{"mean_ap": ap, "density": ap**2} for ap in (0.1, 0.3, 0.2)], "density")
    1.0
    """
    pairs = [(entry.get(proxy, math.nan), entry.get("mean_ap", math.nan)) for entry in curve]
    known = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=np.float64).reshape(-1, 2)
    if len(known) < 3 or (known == known[0]).all(0).any():
        return math.nan
    return round(float(spearmanr(known[:, 0], known[:, 1]).statistic), 12)
