"""Jaccard distances from what encodings share, as sparse graphs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array

import uda_reid.ops.kernels as kernels
from uda_reid.errors import RecipeError
from uda_reid.ops.distance import NEAR
from uda_reid.ops.jaccard.encoding import Encoding, sparse

Array = npt.NDArray[Any]

BUFFER = 1 << 20
"""Entries that a thread writes before they are put aside."""
BLOCK = 1 << 14
"""Rows whose entries are summed at once."""


def jaccard(encoding: Encoding, *, most: float = 1.0, rows: int | None = None) -> csr_array:
    """Return the Jaccard distances of encoded images.

    Args:
        encoding: of N images.
        most: distances above this may be left out, which saves memory where a radius is known.
        rows: only those of the first so many images (default: all).

    Returns:
        (N, N), or (`rows`, N), sparse float32, indices ascending. What is not stored is at distance 1 (or more than
        `most`). Of 1e-6 or less is 0, as that of an image to itself, unless its encoding is empty. Symmetric to the
        bit.

    Raises:
        RecipeError: `most` or `rows` is out of range.

    >>> import torch
    >>> from uda_reid.ops.jaccard import encode_features
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-0.5, 1.0]])
    >>> near = jaccard(encode_features(features, k1=2, k2=1))  # the first two, and the last two
    >>> near.indices.tolist(), [f"{distance:.2f}" for distance in near.data[:2]]
    ([0, 1, 0, 1, 2, 3, 2, 3], ['0.00', '0.19'])
    """
    wanted = encoding.weights.shape[0] if rows is None else rows
    check_most(most)
    if not 0 <= wanted <= encoding.weights.shape[0]:
        raise RecipeError(f"distances of {wanted} rows; use 0 to {encoding.weights.shape[0]:,}")
    return _strip(Sides.of(encoding), most, 0, wanted)


def jaccard_strips(encoding: Encoding, *, most: float = 1.0, height: int = 4096) -> Iterator[csr_array]:
    """Yield the Jaccard distances of `jaccard` in strips of rows: at a large radius they may not fit into memory.

    Args:
        encoding: of N images.
        most: as for `jaccard`.
        height: rows of a strip.

    Yields:
        (B, N) sparse float32 for the rows in order.

    Raises:
        RecipeError: `most` is out of range.
    """
    check_most(most)
    sides, number = Sides.of(encoding), encoding.weights.shape[0]
    for first in range(0, number, height):
        yield _strip(sides, most, first, min(first + height, number))


def check_most(most: float) -> None:
    """Refuse what is no Jaccard distance.

    Raises:
        RecipeError: it is not in [0, 1].
    """
    if not 0 <= most <= 1:
        raise RecipeError(f"distances of at most {most} cannot be; use 0 to 1")


class Sides(NamedTuple):
    """Encodings by row and those they are compared with by column, as the compiled loops take them, and their sums."""

    mine: tuple[Array, Array, Array]
    theirs: tuple[Array, Array, Array]
    totals: tuple[Array, Array]

    @classmethod
    def of(cls, encoding: Encoding, queries: int = 0) -> Sides:
        """Return the first so many images against the others, or all against all."""
        weights, totals = encoding.weights, _totals(encoding.weights)
        if not queries:
            return cls(_arrays(weights), _arrays(weights.tocsc()), (totals, totals))
        mine, theirs = weights[:queries], weights[queries:].tocsc()
        return cls(_arrays(mine), _arrays(theirs), (totals[:queries], totals[queries:]))

    def rows(self, first: int, stop: int) -> Sides:
        """Return only some rows."""
        starts, images, weights = self.mine
        entries = slice(starts[first], starts[stop])
        mine = starts[first : stop + 1] - starts[first], images[entries], weights[entries]
        return Sides(mine, self.theirs, (self.totals[0][first:stop], self.totals[1]))


def distances_between(sides: Sides, least: float) -> tuple[Array, Array, Array]:
    """Return how many other rows each row overlaps with, with which, and the Jaccard distances: (R,), (M,), (M,)."""
    mine, theirs, totals = sides
    others, counts = len(totals[1]), np.zeros(len(totals[0]), np.int64)

    def work(start: int, stop: int) -> list[tuple[Array, Array]]:
        found = []
        size = max(BUFFER, others)
        while start < stop:
            images, shares = np.empty(size, np.int32), np.empty(size, np.float32)
            start, filled = kernels.overlaps(mine, theirs, totals, least, start, stop, counts, images, shares)
            found.append((images[:filled].copy(), shares[:filled].copy()))
        return found

    parts = deque(part for parts in kernels.share(work, len(counts)) for part in parts)
    images, shares = (np.empty(counts.sum(), kind) for kind in (np.int32, np.float32))
    at = 0
    while parts:  # each makes room for what follows
        some, share = parts.popleft()
        images[at : at + len(some)], shares[at : at + len(some)] = some, share
        at += len(some)
    return counts, images, shares


def _strip(sides: Sides, most: float, first: int, stop: int) -> csr_array:
    """Return the Jaccard distances of some rows."""
    # A distance of 1 - t / (s - t), s being the sum of both totals, is at most `most` where t / s is at least this; a
    # hair less, since both are rounded.
    least = (1 - most) / (2 - most) - 1e-6
    counts, images, distances = distances_between(sides.rows(first, stop), least)
    distances[distances < NEAR] = 0  # equal encodings, up to rounding
    return sparse(distances, images, np.concatenate([[0], counts.cumsum()]), (stop - first, len(sides.totals[1])))


def _totals(weights: csr_array) -> Array:
    """Return the sum of each row, (N,) float64, its entries in the order of columns."""
    totals, starts = np.empty(weights.shape[0]), weights.indptr
    for first in range(0, len(totals), BLOCK):
        stop = min(first + BLOCK, len(totals))
        owner = np.repeat(np.arange(stop - first), np.diff(starts[first : stop + 1]))
        totals[first:stop] = np.bincount(owner, weights.data[starts[first] : starts[stop]], stop - first)
    return totals


def _arrays(matrix: csr_array | csc_array) -> tuple[Array, Array, Array]:
    """Return where rows or columns start, indices and values, as the compiled loops take them."""
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False), matrix.data
