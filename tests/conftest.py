from __future__ import annotations

import csv
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from uda_reid.testing import tiny_domain

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # several threads make tiny tensors slower, and a busy machine much slower

RECIPE = """\
strategy: pul
paper: a test
fidelity: reconstruction
encoder: {backbone: resnet_tiny, height: 32, width: 16, weights: none, neck: none}
pretrain: {epochs: 2, batch: 8, instances: 2, warmup: 0, augmentation: none, validation: 0.34}
adapt: {clusters: 5, rounds: 2, epochs: 1, batch: 8, lr: 0.05, tolerance: 0}
"""


def write_manifest(folder: Path, *, seed: int) -> None:
    domain = tiny_domain(folder, name=folder.name, seed=seed)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "identity", "camera", "split"])
        for name in ("train", "query", "gallery"):
            rows.writerows((sample.path.name, sample.pid, sample.cam, name) for sample in getattr(domain, name))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with two tiny domains, `alpha` and `beta`, and a recipe that trains on them for a moment."""
    root = tmp_path / "data"
    write_manifest(root / "alpha", seed=0)
    write_manifest(root / "beta", seed=1)
    (root / "tiny.yaml").write_text(RECIPE)
    return root


@pytest.fixture
def three(data: Path) -> Path:
    """The data folder with a third tiny domain, `gamma`."""
    write_manifest(data / "gamma", seed=2)
    return data


@pytest.fixture
def base(data: Path, tmp_path: Path) -> list[str]:
    """Options with which a command works on the tiny domains."""
    return [
        "--recipe", str(data / "tiny.yaml"), "--data", str(data), "--out", str(tmp_path / "runs"), "--profile", "paper"
    ]  # fmt: skip


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches the program, as in a terminal; a shell starts work in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
