"""Distances between rows of features, whole or one block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError

MEMORY = 64 << 20
"""Bytes of distances that are computed at once, unless told otherwise."""
NEAR = 1e-6
"""Cosine distances no farther apart than this may change places when products are summed in another order."""


def blur(dimensions: int) -> float:
    """Return the cosine distance below which float32 products tell more of rounding than of two rows' distance.

    Measured on identical rows, constant ones among them, whose products round in one direction: 5e-7 for 3 dimensions,
    7e-6 for 2,048, 1.4e-5 for 8,192.
    """
    return max(NEAR, 3e-7 * math.sqrt(dimensions))


def exact_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cosine of row after row of two matrices, measured in float64.

    Args:
        a: (P, D) float32, finite.
        b: (P, D) float32, finite.

    Returns:
        (P,) float32; 0 for rows that are equal up to their own rounding, 1 where one is zero.
    """
    found = torch.ones(len(a), device=a.device)
    size = max(1, (1 << 20) // a.shape[1])
    for start in range(0, len(a), size):
        one, other = (rows[start : start + size].double() for rows in (a, b))
        squares = one.square().sum(1) * other.square().sum(1)
        distances = 1 - (one * other).sum(1) / squares.sqrt()
        found[start : start + size] = torch.where(squares > 0, distances.masked_fill(distances < 1e-13, 0), 1)
    return found


def check_features(features: Tensor, name: str) -> None:
    """Refuse features that no distance can be trusted on.

    Args:
        features: what should be an (N, D) float32 tensor with N, D >= 1 and finite values.
        name: how the features are called in the message, such as `query features`.

    Raises:
        DataError: another shape or dtype, nothing in it, or a NaN or infinity (the first bad row is named).

    >>> check_features(torch.zeros(2, 0), "features")
    Traceback (most recent call last):
    ...
    uda_reid.errors.DataError: features: shape (2, 0) is empty; one row and one dimension at least are needed
    """
    if features.ndim != 2:
        raise DataError(f"{name}: shape {tuple(features.shape)} given, (rows, dimensions) expected")
    if features.dtype != torch.float32:
        raise DataError(f"{name}: {features.dtype} given, torch.float32 expected; convert with .float()")
    if features.numel() == 0:
        raise DataError(
            f"{name}: shape {tuple(features.shape)} is empty; one row and one dimension at least are needed"
        )
    # A sum is NaN or infinite if an entry is; one that has only overflowed is looked at again.
    bad = (~torch.isfinite(features.detach().sum(dim=1))).nonzero().flatten()
    bad = bad[~torch.isfinite(features[bad]).all(dim=1)]
    if len(bad):
        first, count = int(bad[0]), len(bad)
        raise DataError(
            f"{name}: row {first} holds NaN or infinity ({count} of {len(features)} rows do); "
            "check the encoder's weights and input"
        )


def normalise(features: Tensor) -> Tensor:
    """Scale every row to unit Euclidean length; a row of zeros stays zero.

    Args:
        features: (N, D) float32, finite.

    Returns:
        (N, D) float32.

    >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # Dividing by the largest entry first keeps the squares of very large and very small rows within float32.
    largest = torch.linalg.vector_norm(features.detach(), ord=torch.inf, dim=1, keepdim=True)
    scaled = features / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, torch.ones_like(length))


def cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cosine similarity between all rows of `a` and all rows of `b`.

    A row of zeros has distance 1 to everything. Rounding below zero is cut off.

    Args:
        a: (N, D) float32, finite, of any length.
        b: (M, D) float32, finite, of any length.

    Returns:
        (N, M) float32 in [0, 2], up to rounding at 2.

    Raises:
        DataError: `a` and `b` are not two matrices with equally many columns.

    >>> cosine_distances(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]))
    tensor([[0., 1., 2.]])
    """
    _check_pair(a, b)
    return unit_distances(normalise(a), normalise(b))


def unit_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return cosine distances between rows that `normalise` has already been through.

    Args:
        a: (N, D) float32, rows of length 1 or 0.
        b: (M, D) float32, rows of length 1 or 0.

    Returns:
        (N, M) float32 in [0, 2], up to rounding at 2.
    """
    return (1 - a @ b.T).clamp_min(0)


class Directions(NamedTuple):
    """Rows whose products with their scale have length 1, or 0."""

    rows: Tensor
    """(N, D) float32: the features themselves unless their lengths are extreme."""
    scale: Tensor
    """(N,) float32: one over the length of each row; of no matter for a row of zeros."""


def directions(features: Tensor) -> Directions:
    """Return features as directions, without a copy of them where their lengths allow it.

    Args:
        features: (N, D) float32, finite.

    Returns:
        Rows and what scales them to unit length.

    >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).scale
    tensor([0.2000, 0.0000])
    """
    lengths = torch.linalg.vector_norm(features, dim=1)
    unusual = ((lengths < 1e-12) | (lengths > 1e12)).nonzero().flatten()
    if bool((features[unusual] != 0).any()):  # squares of single numbers may have left the range of float32
        return Directions(normalise(features), torch.ones_like(lengths))
    return Directions(features, torch.where(lengths > 0, 1 / lengths, 0))


def strip_rows(columns: int, memory: int, *, itemsize: int = 4) -> int:
    """Return how many rows of a matrix with so many columns fit into `memory` bytes.

    Raises:
        RecipeError: not one row does.
    """
    if memory < columns * itemsize:
        raise RecipeError(f"memory of {memory:,} bytes is too small: one row takes {columns * itemsize:,}")
    return memory // (columns * itemsize)


def product_strips(a: Tensor, b: Directions, *, memory: int = MEMORY) -> Iterator[Tensor]:
    """Yield the products of the normalised rows of `a` with the rows of `b`, a strip of rows at a time.

    Args:
        a: (N, D) float32, finite.
        b: M directions.
        memory: bytes that a strip may take.

    Yields:
        (B, M) float32 for the rows of `a` in order; overwritten by the next strip.

    Raises:
        RecipeError: the memory does not hold one row.
    """
    rows = min(strip_rows(len(b.rows), memory), len(a))
    strip = torch.empty(rows, len(b.rows), device=b.rows.device)
    for start in range(0, len(a), rows):
        part = normalise(a[start : start + rows].detach().to(b.rows.device))
        yield torch.mm(part, b.rows.T, out=strip[: len(part)])


def cosine_blocks(a: Tensor, b: Tensor, *, memory: int = MEMORY) -> Iterator[Tensor]:
    """Yield cosine distances between all rows of `a` and all of `b` in blocks of rows; never the whole matrix.

    Args:
        a: (N, D) float32, finite.
        b: (M, D) float32, finite.
        memory: bytes that a block may take.

    Yields:
        (B, M) float32 for the rows of `a` in order.

    Raises:
        DataError: `a` and `b` are not two matrices with equally many columns.
        RecipeError: the memory does not hold one row.
    """
    _check_pair(a, b)
    towards = directions(b.detach())
    for strip in product_strips(a, towards, memory=memory):
        yield (1 - strip * towards.scale).clamp_min_(0)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared Euclidean distances between all rows of `a` and all rows of `b`.

    Computed as |a|^2 + |b|^2 - 2ab: fast, but a distance that is tiny beside |a|^2 keeps few correct digits
    (that of a row to itself may come out as 1e-6 |a|^2 instead of 0). Rounding below zero is cut off.

    Args:
        a: (N, D) float32, finite.
        b: (M, D) float32, finite.

    Returns:
        (N, M) float32, >= 0.

    Raises:
        DataError: `a` and `b` are not two matrices with equally many columns.

    >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([[25.,  1.]])
    """
    _check_pair(a, b)
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :]
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_min(0)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(
            f"distances between shapes {tuple(a.shape)} and {tuple(b.shape)}: "
            "two matrices with equally many columns are needed"
        )
