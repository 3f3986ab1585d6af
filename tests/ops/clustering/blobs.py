"""Points to cluster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def blobs(clusters: int, each: int, dim: int = 8, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    truth = torch.arange(clusters).repeat(each)
    return random(clusters, dim, seed=7)[truth] * 5 + spread * random(len(truth), dim, seed=8), truth
