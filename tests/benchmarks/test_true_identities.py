from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.true_identities import with_true_identities
from uda_reid.run import Run
from uda_reid.strategies import cluster
from uda_reid.testing import fingerprint, tiny_domain, tiny_source


def test_strategy_trains_on_identities_and_clusters_again_afterwards(tmp_path: Path) -> None:
    source, domain = tiny_source(tiny_domain(tmp_path / "source")), tiny_domain(tmp_path / "target", seed=1)
    seen: list[Tensor] = []

    def probe(_: nn.Module, __: int, labels: Tensor | None) -> None:
        assert labels is not None
        seen.append(labels)

    strategy, own = (
        cluster.Cluster(epochs=1, iterations=2, batch=8, clusters=5, augmentation="none"),
        vars(cluster)["assign"],
    )
    found = with_true_identities(strategy, source, domain, Run(prober=probe))
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.from_numpy(np.unique(domain.train.pids, return_inverse=True)[1]))
    assert fingerprint(found) != fingerprint(source.encoder)
    assert vars(cluster)["assign"] is own
