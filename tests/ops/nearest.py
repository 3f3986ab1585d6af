"""Features, and what a right list of neighbours is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.ops import neighbours as module
from uda_reid.ops.distance import MEMORY
from uda_reid.ops.neighbours import Metric, Neighbours, quiet

T = TypeVar("T")
Matrix = npt.NDArray[np.float64]
METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def lattice(metric: Metric, rows: int, seed: int = 0) -> Tensor:
    """Features with many duplicates and ties whose distances, cosine ones too, are exact in float32."""
    numbers = np.random.default_rng(seed)
    if metric == "euclidean":
        return torch.from_numpy(numbers.integers(-2, 3, (rows, 3)).astype(np.float32))
    signs = numbers.choice([-1.0, 1.0], (rows, 16), p=[0.2, 0.8])  # of length 4: cosines are eighths
    signs *= numbers.choice([0.25, 1.0, 64.0], (rows, 1))
    signs[numbers.random(rows) < 0.05] = 0
    return torch.from_numpy(signs.astype(np.float32))


def distances_of(features: Tensor, metric: Metric) -> Matrix:
    """All distances in double precision."""
    points = features.double().numpy()
    if metric == "euclidean":
        squared: Matrix = np.square(points[:, None] - points[None]).sum(axis=2)
        return squared
    lengths = np.sqrt(np.square(points).sum(axis=1))
    unit = points / np.where(lengths > 0, lengths, 1)[:, None]
    distances: Matrix = 1 - unit @ unit.T
    np.fill_diagonal(distances, 0)
    return distances


def assert_exact(found: Neighbours, distances: Matrix) -> None:
    """The lists are those of a sort by (distance, row), to the bit."""
    k = found.rows.shape[1]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, order, axis=1))


def assert_near(found: Neighbours, distances: Matrix, tolerance: float = 1e-6) -> None:
    """The lists are right but for the order of distances that rounding cannot tell apart."""
    k = found.rows.shape[1]
    rows = found.rows.numpy()
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all()
    assert (np.diff(found.distances.numpy(), axis=1) >= 0).all()
    np.testing.assert_allclose(found.distances, np.take_along_axis(distances, rows, axis=1), atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :k], atol=tolerance, rtol=0)


def assert_same_bits(one: Neighbours, other: Neighbours) -> None:
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.distances, other.distances)
    assert torch.equal(one.farthest, other.farthest)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def strips(features: Tensor, metric: Metric, k: int, memory: int = MEMORY) -> Neighbours:
    """The search as a GPU does it."""
    with torch.inference_mode():
        points = module._Points.of(features, metric)
        every = torch.arange(len(features), device=features.device)
        return module._strips(points, every, k, True, memory, quiet)
