"""Every strategy for a few steps, on one process or on several: what `training/test_processes.py` compares.

As a program: `python -m tests.together WORDS FOLDER`, in every process, with the environment of a launcher.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.float64 import ADAPTING, use_float64
from uda_reid.data.images import unlabelled
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.run import Run
from uda_reid.strategies import find
from uda_reid.testing import tiny_domain
from uda_reid.training.checkpoint import save
from uda_reid.training.meeting import join
from uda_reid.types import Source

ROOT = Path(__file__).parents[1]
BATCH = 32

STRATEGIES: dict[str, dict[str, Any]] = {
    "adabn": {"passes": 2, "batch": 16},
    "pul": {"clusters": 6, "rounds": 1, "epochs": 10, "batch": BATCH, "threshold": -1.0, "lr": 0.01, "dropout": 0.5},
    "cluster": {"clusters": 8, "epochs": 2, "iterations": 10, "batch": BATCH, "dropout": 0.5},
    "adda": {"epochs": 2, "iterations": 10, "batch": BATCH, "hidden": (16,), "lr": 1e-3},
    "daam": {"method": "kmeans", "clusters": 8, "epochs": 2, "iterations": 10, "batch": BATCH},
    "guided_dropout": {"deterministic": 1, "stochastic": 1, "clusters": 8, "iterations": 10, "batch": BATCH},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in STRATEGIES},
    "daam-mixed": ("daam", {"batch_norm": "mixed", "one_class": "svdd", "variant": "v2"}),
    "guided_dropout-mixed": ("guided_dropout", {"batch_norm": "mixed"}),
    "adda-alternating": ("adda", {"step": "alternating", "batch_norm": "source"}),
    "cluster-dbscan": ("cluster", {"method": "dbscan", "min_samples": 2, "k1": 6, "k2": 2}),
}


def source_of(folder: Path, *, group: int, run: Run) -> Source:
    domain = tiny_domain(folder / "source", name="source", identities=8, images=8)
    spec = EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none", bn_group=group)
    options = Pretrain(epochs=10, batch=BATCH, instances=4, warmup=0, validation=0.25, dropout=0.5)
    return pretrain(domain, options, encoder=spec, run=run)


def nudge(module: nn.Module) -> None:
    """Change every weight by about its last bit: what training makes of that, it makes of any other rounding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1 + 1e-7 * (2 * torch.rand(weight.shape, generator=generator) - 1))


def work(folder: Path, *, double: bool, group: int, names: list[str], nudged: bool = False) -> None:
    torch.set_num_threads(1)
    processes, device = join("cpu")
    run = Run(device=device, processes=processes)
    # Also for float32: the strategies then start from equal bits, and what differs in the end is theirs.
    use_float64(["pretraining", *(ADAPTING if double else ())])
    domain = tiny_domain(folder / f"images-{processes.rank}" / "target", name="target", identities=8, images=8, seed=1)
    source = source_of(folder / f"images-{processes.rank}", group=group, run=run)
    kept: dict[str, Any] = {"pretrain": source.encoder.state_dict()}
    for module in (source.encoder, source.classifier):
        module.to(torch.float64 if double else torch.float32)
    if nudged:
        nudge(source.encoder)
    for variant in names:
        name, options = VARIANTS[variant]
        strategy = find(name)(**{**STRATEGIES[name], **options})
        result = strategy.adapt(replace(source), unlabelled(domain), run=run)
        kept[variant] = result.encoder.state_dict()
        kept[f"{variant} history"] = json.dumps([dict(entry) for entry in result.history])
    save(folder / f"{processes.rank}.safetensors", kept, kind="weights")


def free_port() -> int:
    """Return a port that nobody has, and that no system hands out meanwhile: those are from 32768 on."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def launch(words: list[str], count: int, **variables: str) -> list[subprocess.Popen[str]]:
    """Start `python WORDS` on several processes, as a launcher does."""
    port = str(free_port())
    started = []
    for rank in range(count):
        several = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **(several if count > 1 else {}), **where, **variables}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
        )
    return started


if __name__ == "__main__":
    work(Path(sys.argv[2]), **json.loads(sys.argv[1]))
