from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from uda_reid.auditor import audit_snapshots, same_weights, snapshots
from uda_reid.data.images import target_order
from uda_reid.evaluation import Evaluator
from uda_reid.ops.quality import camera_purity, churn
from uda_reid.run import QUIET, Run
from uda_reid.testing import tiny_domain, tiny_source
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.types import UNKNOWN, Domain, Source


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("beta"), name="beta", seed=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tiny_domain(tmp_path_factory.mktemp("alpha"), name="alpha"))


def test_snapshots_are_scored_and_their_labels_compared_row_by_row(
    domain: Domain, source: Source, tmp_path: Path
) -> None:
    probe, evaluator, early = snapshots(tmp_path), Evaluator(domain), copy.deepcopy(source.encoder)
    with torch.no_grad():
        for weight in early.parameters():
            weight.mul_(0.5)
    order = target_order(len(domain.train))
    truth = torch.from_numpy(domain.train.pids)[order]
    probe(early, 1, None)
    probe(source.encoder, 2, truth)
    found = evaluator.score(source.encoder)
    first, last = audit_snapshots(tmp_path, source.encoder, found, domain, evaluator, run=QUIET)
    expected = evaluator.score(early)
    assert first == {"step": 1, "mean_ap": expected.mean_ap, "rank1": expected.cmc[1]}
    assert (last["step"], last["mean_ap"], last["rank1"]) == (2, found.mean_ap, found.cmc[1])
    assert (last["pair_f1"], last["nmi"], last["used"], last["clusters"]) == (1, 1, 1, 6)
    assert domain.train.cams is not None
    assert last["camera_purity"] == camera_purity(truth, domain.train.cams[order.numpy()])
    assert camera_purity(truth, domain.train.cams) != last["camera_purity"], "the order of rows is seen"


def test_diverged_snapshot_is_a_missing_point_that_survives_the_disk(
    domain: Domain, source: Source, tmp_path: Path
) -> None:
    broken = copy.deepcopy(source.encoder)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    snapshots(tmp_path / "probes")(broken, 1, None)
    snapshots(tmp_path / "probes")(source.encoder, 2, None)
    run = Run(store=CheckpointFolder(tmp_path / "state"))
    arguments = (tmp_path / "probes", source.encoder, None, domain, Evaluator(domain))
    curve = audit_snapshots(*arguments, run=run)
    assert math.isnan(curve[0]["mean_ap"]) and 0 < curve[1]["mean_ap"] <= 1
    np.testing.assert_equal(audit_snapshots(*arguments, run=run), curve)


def test_without_labels_and_queries_a_snapshot_is_a_step(domain: Domain, source: Source, tmp_path: Path) -> None:
    blind = replace(domain, train=replace(domain.train, pids=np.full(len(domain.train), UNKNOWN)))
    snapshots(tmp_path)(source.encoder, 1, torch.zeros(len(domain.train), dtype=torch.int64))
    (entry,) = audit_snapshots(tmp_path, source.encoder, None, blind, None, run=QUIET)
    assert entry == {"step": 1.0, "used": 1.0, "clusters": 1.0, "camera_purity": 0.5}
    snapshots(tmp_path)(source.encoder, 2, torch.where(torch.arange(24) < 6, -1, torch.arange(24) % 2))
    blind = replace(blind, train=replace(blind.train, cams=None))
    entry = audit_snapshots(tmp_path, source.encoder, None, blind, None, run=QUIET)[1]
    assert entry.keys() == {"step", "used", "clusters", "churn"} and (entry["used"], entry["clusters"]) == (0.75, 2)


def test_churn_is_since_the_snapshot_before_also_after_an_interruption(
    domain: Domain, source: Source, tmp_path: Path
) -> None:
    rounds = [torch.arange(24) % 4, torch.arange(24) % 6, None, torch.arange(24) % 3, torch.arange(24) % 2]
    probe = snapshots(tmp_path / "probes")
    for step, labels in enumerate(rounds[:4], 1):
        probe(source.encoder, step, labels)
    run = Run(store=CheckpointFolder(tmp_path / "state"))
    arguments = (tmp_path / "probes", source.encoder, None, domain, None)
    curve = audit_snapshots(*arguments, run=run)
    assert ["churn" in entry for entry in curve] == [False, True, False, False]
    first, second, _, fourth, fifth = rounds
    assert first is not None and second is not None and fourth is not None and fifth is not None
    assert curve[1]["churn"] == churn(first, second)
    probe(source.encoder, 5, fifth)
    assert audit_snapshots(*arguments, run=run)[4]["churn"] == churn(fourth, fifth)


def test_same_weights_compares_parameters_and_buffers(source: Source) -> None:
    other = copy.deepcopy(source.encoder)
    assert same_weights(source.encoder, other)
    buffer = next(value for name, value in other.named_buffers() if name.endswith("running_mean"))
    buffer[0] += 1e-3
    assert not same_weights(source.encoder, other)
