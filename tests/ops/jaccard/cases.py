from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from tests import oracles
from uda_reid.ops.jaccard import Encoding, Reading, encode, jaccard, needed
from uda_reid.ops.neighbours import Neighbours

Matrix = npt.NDArray[np.float64]
READINGS: tuple[Reading, ...] = ("zhong", "zhong-squared", "spcl")
each_reading = pytest.mark.parametrize("reading", READINGS)


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def clusters(rows: int, columns: int, number: int, seed: int = 0, *, spread: float = 0.5) -> Tensor:
    """Rows about `number` centres, in no order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(number, columns, generator=generator)
    members = torch.randint(number, (rows,), generator=generator)
    return centres[members] + spread * torch.randn(rows, columns, generator=generator)


def signs(rows: int, seed: int = 0) -> Tensor:
    """Features of which many are equal, and many equally far: their cosines are eighths, to the bit."""
    numbers = np.random.default_rng(seed)
    return torch.from_numpy(numbers.choice([-1.0, 1.0], (rows, 16), p=[0.15, 0.85]).astype(np.float32))


def between(points: npt.ArrayLike) -> Tensor:
    """Half the squared distances between points, (N, N) float32."""
    places = np.asarray(points, dtype=np.float64).reshape(len(np.asarray(points)), -1)
    return torch.from_numpy((np.square(places[:, None] - places[None]).sum(axis=2) / 2).astype(np.float32))


def of_features(features: Tensor) -> Matrix:
    """Squared distances between features of unit length, in double precision."""
    points = features.double().numpy()
    unit = points / np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    distances: Matrix = np.square(unit[:, None] - unit[None]).sum(axis=2)
    return distances


def found_in(distances: Tensor, k: int) -> Neighbours:
    """The k nearest rows by a full matrix of distances, ties by row."""
    rows = distances.argsort(dim=1, stable=True)[:, :k]
    return Neighbours(rows.int(), distances.gather(1, rows), distances.amax(dim=1), "sort")


def encoded(distances: Tensor, k1: int, k2: int, reading: Reading) -> Encoding:
    """The encoding by a full matrix of distances, from just the neighbours that are needed."""

    def look_up(starts: npt.NDArray[np.int64], others: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        owners = np.repeat(np.arange(len(distances)), np.diff(starts))
        looked_up: npt.NDArray[np.float32] = distances.numpy()[owners, others]
        return looked_up

    found = found_in(distances, needed(k1, k2, reading, len(distances)))
    return encode(found, look_up, k1=k1, k2=k2, reading=reading)


def full(distances: csr_array) -> Matrix:
    """All distances that a sparse matrix of them stands for; none may be stored twice."""
    assert distances.has_canonical_format
    matrix = np.ones(distances.shape)
    owners = np.repeat(np.arange(len(matrix)), np.diff(distances.indptr))
    matrix[owners, distances.indices] = distances.data
    return matrix


def assert_is_the_oracles(distances: Tensor, k1: int, k2: int, reading: Reading) -> Matrix:
    """Weights and Jaccard distances are those of the loops; returns the latter."""
    encoding = encoded(distances, k1, k2, reading)
    weights = oracles.reciprocal_weights((2 * distances.double()).tolist(), k1, k2, reading)
    assert (encoding.weights.data > 0).all()
    np.testing.assert_array_equal(encoding.weights.toarray() > 0, np.array(weights) > 0)
    np.testing.assert_allclose(encoding.weights.toarray(), weights, atol=1e-6, rtol=0)
    matrix = full(jaccard(encoding))
    expected = oracles.jaccard_distances(weights)
    np.testing.assert_allclose(matrix, expected, atol=1e-6, rtol=0)
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()
    np.testing.assert_array_equal(matrix, matrix.T)
    return matrix


def whole(blocks: Iterator[Tensor]) -> Matrix:
    """All blocks, which are overwritten one by the next, as one matrix."""
    return torch.cat([block.clone() for block in blocks]).double().cpu().numpy()


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# cases worked out on paper

# Points 0, 1, 3 and 7 on a line; squared distances 0-1: 1, 0-2: 9, 0-3: 49, 1-2: 4, 1-3: 36, 2-3: 16. The sets of two
# are {0, 1} for both 0 and 1; 2 has 1 as its neighbour but not the other way round, and is alone, as 3 is.
LINE = [0, 1, 3, 7]


# zhong: 0 weighs itself 1 and 1 by exp(-1/49) = 0.979799, in all 1.979799: 0.505102, 0.494898;
#        1 weighs itself 1 and 0 by exp(-1/36) = 0.972604, in all 1.972604: 0.506944, 0.493056.
#        The smaller ones: 0.493056 + 0.494898 = 0.987954; the larger: 0.505102 + 0.506944 = 1.012046; 1 - 0.976195.
# zhong-squared: exp(-1/49^2) = 0.999584 gives 0.500104, 0.499896; exp(-1/36^2) = 0.999229 gives 0.500193, 0.499807.
#        0.499807 + 0.499896 = 0.999703; 0.500104 + 0.500193 = 1.000297; 1 - 0.999406.
# spcl: exp(-1) for both: 0.731059, 0.268941, so that the quotient is 0.268941 / 0.731059 = exp(-1) again.
OF_0_AND_1 = {"zhong": 0.023805, "zhong-squared": 0.000594, "spcl": 1 - math.exp(-1)}


def sets(encoding: Encoding) -> list[list[int]]:
    return [row.nonzero()[0].tolist() for row in encoding.weights.toarray()]


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"k1": 0}, "^k1 0 and k2 6 must be at least 1$"),
    ({"k1": 20, "k2": 0}, "^k1 20 and k2 0 must be at least 1$"),
    ({"reading": "zheng"}, "^reading 'zheng' is unknown; use one of zhong, zhong-squared, spcl$"),
]
