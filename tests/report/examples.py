"""A record to show, and the same without scores."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from uda_reid.report import SOURCE_ONLY, Record, Row
from uda_reid.report.pictures import Picture
from uda_reid.types import Scores


def scores(mean_ap: float, *, counted: int = 2) -> Scores:
    return Scores(
        domain="beta", protocol="market", mean_ap=mean_ap, mean_ap_step=mean_ap + 0.01, mean_inp=0.1,
        cmc={1: 0.5, 5: 0.75, 10: 0.8, 20: 0.9}, counted=counted, skipped=1, ties=1,
        average_precision=np.array([mean_ap, math.nan, mean_ap]),
    )  # fmt: skip


RECORD = Record(
    command="uda-reid adapt", version="0", source="alpha", target="beta", seed=0, profile="paper",
    recipe={
        "name": "pul", "strategy": "pul", "fidelity": "official", "paper": "Fan", "encoder": {"backbone": "resnet50"},
        "adapt": {"clusters": 5, "lr": 1e-3},
    },
    rows=(
        Row(SOURCE_ONLY, scores(0.2), {"camera ids used": False}),
        Row("pul", scores(0.25), {"number of clusters given": 5}),
    ),
    validation={"mean_ap": 0.5, "rank1": 0.7},
    history=({"selected": 3.0, "loss": 2.0}, {"selected": 4.0, "loss": 1.5}),
    curve=(
        {"step": 1.0, "mean_ap": 0.21, "rank1": 0.5, "pair_precision": 0.6, "nmi": 0.9, "used": 0.5, "clusters": 5.0,
         "purity": 0.8, "camera_purity": 0.55},
        {"step": 2.0, "mean_ap": 0.25, "rank1": 0.5, "pair_precision": 0.7, "nmi": 0.8, "used": 0.4, "clusters": 4.0,
         "purity": 0.9, "camera_purity": float("nan")},
    ),
    seconds={"adapt": 1.5}, environment={"threads": 2}, notes=("something unusual",),
    pretraining=({"identification": 3.0, "accuracy": 0.1}, {"identification": 2.0, "accuracy": 0.4}),
)  # fmt: skip

WHY = "not scored: beta has no query and gallery images; give it labelled ones to score it"
UNSCORED = replace(RECORD, rows=tuple(replace(row, scores=None) for row in RECORD.rows), curve=(), unscored=WHY)
DIRECT = replace(RECORD, recipe={**RECORD.recipe, "name": "ide", "strategy": "source_only"}, curve=(), history=())


def picture(root: Path, name: str, cam: int | None = None) -> Picture:
    """Return a picture as it was ranked."""
    path = root / name
    return Picture(name, cam, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "00")


def call_drawn(root: Path, names: Iterable[str]) -> None:
    """Write what a drawing of these images writes beside them."""
    names = list(names)
    (root / "scene.json").write_text(json.dumps({"name": "plaza", "images": len(names)}))
    (root / "annotations.csv").write_text("\n".join(["split,file", *(f".,{name}" for name in names)]) + "\n")
