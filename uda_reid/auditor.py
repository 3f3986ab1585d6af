"""The auditor: keeps the snapshots that a strategy hands out, and scores them once adaptation is over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uda_reid.data.images import target_order
from uda_reid.evaluation import Evaluator
from uda_reid.ops.quality import audit
from uda_reid.run import Reporter
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.types import Encoder


def snapshots(folder: Path) -> Callable[[nn.Module, int, Tensor | None], None]:
    """Return a probe that keeps every snapshot in `folder`, for the auditor."""
    store = CheckpointFolder(folder)

    def keep(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
        state: dict[str, Any] = {"step": step, "encoder": encoder.state_dict()}
        if pseudo_labels is not None:
            state["pseudo_labels"] = pseudo_labels
        store.save(f"step-{step:05d}", state)

    return keep


def score_snapshots(
    folder: Path, adapted: Encoder, evaluator: Evaluator, reporter: Reporter
) -> tuple[Mapping[str, float], ...]:
    """Score the snapshots of the probe on the target's test labels, now that adaptation is over."""
    curve: list[Mapping[str, float]] = []
    encoder, store = copy.deepcopy(adapted), CheckpointFolder(folder)
    pids = evaluator.domain.train.pids
    pids = pids[target_order(len(pids)).numpy()]
    for file in sorted(folder.glob("step-*.safetensors")):
        state = store.restore(file.stem)
        if state is None:
            continue
        encoder.load_state_dict(state["encoder"])
        scores = evaluator.score(encoder)
        entry = {"step": float(state["step"]), "mean_ap": scores.mean_ap, "rank1": scores.cmc[1]}
        if "pseudo_labels" in state and evaluator.domain.labelled:
            entry |= audit(state["pseudo_labels"].numpy(), pids)
        reporter.log(f"{evaluator.domain.name} after step {state['step']} (scored afterwards): {_said(entry)}")
        curve.append(entry)
    return tuple(curve)


def _said(entry: Mapping[str, float]) -> str:
    """Return one point of the learning curve in words."""
    words = f"mAP {100 * entry['mean_ap']:.1f}, rank-1 {100 * entry['rank1']:.1f}"
    if "clusters" in entry:
        words += (
            f"; pseudo-labels: {entry['clusters']:.0f} clusters on {entry['used']:.0%} of the images, "
            f"{entry['pair_precision']:.0%} of the pairs they join are right, "
            f"{entry['pair_recall']:.0%} of the true pairs are joined"
        )
    return words
