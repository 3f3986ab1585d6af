"""The auditor: keeps the snapshots that a strategy hands out, and scores them once adaptation is over."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uda_reid.data.images import target_order, unlabelled
from uda_reid.errors import DataError, UnreadableError
from uda_reid.evaluation import Evaluator
from uda_reid.ops.quality import audit, camera_purity, churn
from uda_reid.run import Run
from uda_reid.selection import proxies
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.types import Domain, Encoder, Scores, Source

Numbers = tuple[Mapping[str, float], ...]
"""What was measured, step by step."""


def snapshots(folder: Path) -> Callable[[nn.Module, int, Tensor | None], None]:
    """Return a probe that keeps every snapshot in `folder`, for the auditor."""
    store = CheckpointFolder(folder)

    def keep(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
        state: dict[str, Any] = {"step": step, "encoder": encoder.state_dict()}
        if pseudo_labels is not None:
            state["pseudo_labels"] = pseudo_labels
        store.save(f"step-{step:05d}", state)

    return keep


def audit_snapshots(
    folder: Path,
    adapted: Encoder,
    scores: Scores | None,
    target: Domain,
    evaluator: Evaluator | None,
    *,
    source: Source | None = None,
    run: Run,
) -> Numbers:
    """Compare the snapshots of the probe with the target's labels, now that adaptation is over.

    What has been scored is saved, so that an interrupted audit goes on.

    Args:
        folder: where `snapshots` kept them.
        adapted: the adapted encoder.
        scores: how it scored, for the snapshot that is equal to it.
        target: the target; its training identities are what pseudo-labels are compared with.
        evaluator: scores the others; None where the target has nothing to score on.
        source: also measure the proxies of `selection`, with this source; None leaves them out.
        run: the surroundings.

    Returns:
        Per snapshot its step, `mean_ap` and `rank1` (NaN where its embeddings are not finite), the proxies, and what
        `ops.quality.audit` says of its pseudo-labels (of a target without labels only their number, the share of
        images used and camera purity), with `churn` from the second one on.
    """
    encoder, store = copy.deepcopy(adapted), CheckpointFolder(folder)
    unlabelled_target = unlabelled(target)
    order = target_order(len(target.train)).numpy()
    pids, cams = target.train.pids[order], None if target.train.cams is None else target.train.cams[order]
    curve: list[Mapping[str, float]] = (run.restore("audit") or {"curve": []})["curve"]
    names = run.main_only(lambda: [file.stem for file in sorted(folder.glob("step-*.safetensors"))])
    done = len(curve)
    earlier = run.main_only(lambda: store.restore(names[done - 1])) if 0 < done <= len(names) else None
    before = None if earlier is None else earlier.get("pseudo_labels")
    for name in names[done:]:
        state = run.main_only(partial(store.restore, name))
        if state is None:
            continue
        entry = {"step": float(state["step"])}
        encoder.load_state_dict(state["encoder"])
        if evaluator:
            known = scores if same_weights(encoder, adapted) else None
            entry |= _scored(encoder, known, evaluator, run)
        if source is not None:
            entry |= proxies(encoder, unlabelled_target, source, run=run)
        labels = state.get("pseudo_labels")
        if labels is not None:
            entry |= audit(labels.numpy(), pids, cams=cams) if target.labelled else _unlabelled(labels, cams)
            entry |= {} if before is None else {"churn": churn(before, labels)}
        before = labels
        run.log(f"{target.name} after step {state['step']} (scored afterwards): {_said(entry)}")
        curve.append(entry)
        run.save("audit", {"curve": curve})
    return tuple(curve)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules of one kind hold equal parameters and buffers, bit by bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _scored(encoder: Encoder, known: Scores | None, evaluator: Evaluator, run: Run) -> dict[str, float]:
    try:
        scores = known or evaluator.score(encoder)
    except UnreadableError:  # an image has gone, and perhaps for one of several processes alone
        raise
    except DataError as error:  # a snapshot that has diverged is a point that is missing, not the end of the run
        run.log(f"a snapshot cannot be scored: {error}")
        return {"mean_ap": math.nan, "rank1": math.nan}
    return {"mean_ap": scores.mean_ap, "rank1": scores.cmc[1]}


def _unlabelled(labels: Tensor, cams: npt.NDArray[np.int64] | None) -> dict[str, float]:
    """Return what can be said of pseudo-labels without the identities."""
    used = labels >= 0
    found = {"used": float(used.float().mean()), "clusters": float(len(torch.unique(labels[used])))}
    return found if cams is None else found | {"camera_purity": camera_purity(labels, cams)}


def _said(entry: Mapping[str, float]) -> str:
    """Return one point of the learning curve in words."""
    words = [
        f"{name} {100 * entry[key]:.1f}"
        for key, name in (("mean_ap", "mAP"), ("rank1", "rank-1"))
        if math.isfinite(entry.get(key, math.nan))
    ]
    if "pair_precision" in entry:
        right = (
            f"{entry['pair_precision']:.0%} of the pairs they join are right, "
            f"{entry['pair_recall']:.0%} of the true pairs are joined"
            if entry["pair_precision"]
            else "no pair that they join is right"  # or they join none: one image each
        )
        words.append(f"pseudo-labels: {entry['clusters']:.0f} clusters on {entry['used']:.0%} of the images, {right}")
    return ", ".join(words)
