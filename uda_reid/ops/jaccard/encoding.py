"""k-reciprocal encoding: every image as the weights of its expanded set, averaged over its nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

import uda_reid.ops.kernels as kernels
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import MEMORY, blur, check_features, directions, exact_cosines
from uda_reid.ops.neighbours import Backend, Neighbours, Progress, neighbours, pair_products, quiet

Reading = Literal["zhong", "zhong-squared", "spcl"]
READINGS = ("zhong", "zhong-squared", "spcl")
Array = npt.NDArray[Any]
PairDistances = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.float32]]

PAIRS = 1 << 16
"""Pairs whose products a GPU takes at once."""


@dataclass(frozen=True)
class Encoding:
    """The k-reciprocal encoding of N images.

    Args:
        weights: (N, N) sparse float32; rows sum to 1, or less where an image is no neighbour of its neighbours.
        found: the neighbours that it was made from.
        reading: how it was made.
    """

    weights: csr_array
    found: Neighbours
    reading: Reading


def encode(
    found: Neighbours, distances: PairDistances, *, k1: int = 30, k2: int = 6, reading: Reading = "spcl"
) -> Encoding:
    """Encode every image by its k-reciprocal neighbours, by distances of whatever kind.

    Args:
        found: the neighbours of N images, `needed(k1, k2, reading, N)` or more; with `farthest` unless the reading is
            `spcl`.
        distances: called with a sparse pattern, (N + 1,) int64 starts of rows and (M,) int32 columns, it returns the
            (M,) float32 distances of these pairs, as `found` has them, on the CPU: 1 - cosine, or half the squared
            Euclidean distance.
        k1: size of the sets, at least 1; more than there are images is all of them.
        k2: rows averaged over, at least 1 (1: none but the own).
        reading: one of `READINGS`; see `ops.jaccard`.

    Returns:
        The encoding.

    Raises:
        DataError: `found` does not hold what is needed.
        RecipeError: an option is out of range.
    """
    check_options(k1, k2, reading)
    number = len(found.rows)
    width = min(k1 if reading == "spcl" else k1 + 1, number)
    _check_found(found, needed(k1, k2, reading, number), reading)
    rows = np.ascontiguousarray(found.rows.cpu().numpy())
    indptr, indices = _sets(rows, width, min(int(np.around(k1 / 2)) + 1, width))
    farthest = None if reading == "spcl" else 2 * found.farthest.cpu().numpy()
    data = _weights(2 * distances(indptr, indices), indptr, farthest, reading)
    if k2 > 1:
        indptr, indices, data = _average(rows[:, :k2].copy(), indptr, indices, data)
    return Encoding(sparse(data, indices, indptr, (number, number)), found, reading)


def encode_features(
    features: Tensor,
    *,
    k1: int = 30,
    k2: int = 6,
    reading: Reading = "spcl",
    found: Neighbours | None = None,
    backend: Backend = "auto",
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Encoding:
    """Encode every image by its k-reciprocal neighbours, by the cosine of features.

    Neighbours are searched for on the features' device; their lists, N * k1 numbers, are worked on by the CPU.

    Args:
        features: (N, D) float32, finite, of any length.
        k1: as for `encode`.
        k2: as for `encode`.
        reading: as for `encode`.
        found: the neighbours by cosine; searched for if there are none.
        backend: of that search (`ops.neighbours`).
        memory: bytes of products computed at once.
        progress: shows the search.

    Returns:
        The encoding.

    Raises:
        DataError: the features are no finite float32 matrix, or `found` does not fit.
        RecipeError: an option is out of range.
    """
    check_features(features, "features")
    check_options(k1, k2, reading)
    if found is None:
        found = neighbours(
            features, needed(k1, k2, reading, len(features)), farthest=reading != "spcl", backend=backend,
            memory=memory, progress=progress,
        )  # fmt: skip
    if len(found.rows) != len(features):
        raise DataError(f"neighbours of {len(found.rows):,} images given for {len(features):,} features")
    with torch.no_grad():
        return encode(found, partial(_pair_distances, features), k1=k1, k2=k2, reading=reading)


def needed(k1: int, k2: int, reading: Reading, number: int) -> int:
    """Return how many neighbours of each of `number` images an encoding is made from."""
    return min(max(k1 if reading == "spcl" else k1 + 1, k2), number)


def check_options(k1: int, k2: int, reading: str) -> None:
    """Refuse options that no encoding can have.

    Raises:
        RecipeError: one is out of range or unknown.
    """
    if reading not in READINGS:
        raise RecipeError(f"reading {reading!r} is unknown; use one of {', '.join(READINGS)}")
    if k1 < 1 or k2 < 1:
        raise RecipeError(f"k1 {k1} and k2 {k2} must be at least 1")


def power(distances: Tensor, reading: Reading) -> Tensor:
    """Return squared Euclidean distances as the reading has them."""
    return distances.square() if reading == "zhong-squared" else distances


def sparse(data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> csr_array:
    """Return a sparse matrix with indices of 4 bytes while they suffice: scipy makes them as wide as indptr."""
    narrow = indptr.astype(np.int32) if indptr[-1] < 1 << 31 else indptr
    return csr_array((data, indices, narrow), shape=shape)


def _check_found(found: Neighbours, least: int, reading: Reading) -> None:
    if found.rows.ndim != 2 or found.rows.shape[1] < least:
        raise DataError(f"neighbours of shape {tuple(found.rows.shape)} given, {least} or more of every image needed")
    if len(found.rows) and not 0 <= int(found.rows.min()) <= int(found.rows.max()) < len(found.rows):
        raise DataError(f"neighbours hold rows that are not from 0 to {len(found.rows) - 1:,}")
    if reading != "spcl" and len(found.farthest) != len(found.rows):
        raise DataError(f"reading {reading!r} needs neighbours with the farthest distances; search with farthest=True")


def _sets(rows: Array, width: int, half: int) -> tuple[Array, Array]:
    """Return the expanded k-reciprocal sets: (N + 1,) int64 where each starts, (M,) int32 images, ascending."""
    number = len(rows)
    full_marks, half_marks = np.empty((number, width), np.bool_), np.empty((number, half), np.bool_)
    kernels.share(lambda a, b: kernels.reciprocal(rows, width, a, b, full_marks), number)
    kernels.share(lambda a, b: kernels.reciprocal(rows, half, a, b, half_marks), number)
    counts, none = np.zeros(number, np.int64), np.empty(0, np.int64)
    indices = np.empty(0, np.int32)

    def work(start: int, stop: int, counts: Array, indptr: Array, indices: Array) -> None:
        kernels.expanded(rows, full_marks, half_marks, start, stop, counts, indptr, indices)

    kernels.share(lambda a, b: work(a, b, counts, none, indices), number)
    indptr = np.concatenate([[0], counts.cumsum()])
    indices = np.empty(indptr[-1], np.int32)
    kernels.share(lambda a, b: work(a, b, none, indptr, indices), number)
    return indptr, indices


def _pair_distances(features: Tensor, indptr: Array, indices: Array) -> Array:
    """Return 1 - cosine for the pairs of a sparse pattern, 0 for an image and itself: (M,) float32."""
    towards = directions(features)
    owner = np.repeat(np.arange(len(features), dtype=np.int32), np.diff(indptr))
    if features.device.type == "cpu":
        scale = towards.scale.numpy()
        products = pair_products(towards.rows, indptr, indices)
        products *= scale[owner]
        products *= scale[indices]
    else:
        pairs = (torch.split(torch.from_numpy(side).to(features.device), PAIRS) for side in (owner, indices))
        parts = [
            (towards.rows[a] * towards.rows[b]).sum(1) * towards.scale[a] * towards.scale[b]
            for a, b in zip(*pairs, strict=True)
        ]
        products = torch.cat(parts).cpu().numpy()
    distances: Array = np.maximum(1 - products, 0)
    distances[owner == indices] = 0
    low = np.flatnonzero((distances < blur(features.shape[1])) & (owner != indices))
    for some in np.array_split(low, len(low) // 1024 + 1):
        one, other = (torch.from_numpy(side[some]).to(features.device).long() for side in (owner, indices))
        distances[some] = exact_cosines(features[one], features[other]).cpu().numpy()
    return distances


def _weights(distances: Array, indptr: Array, farthest: Array | None, reading: Reading) -> Array:
    """Return exp(-distance) over its sum within each row; distances are squared Euclidean ones: (M,) float32."""
    sizes = np.diff(indptr)
    if farthest is not None:
        distances = power(torch.from_numpy(distances), reading).numpy()
        top = power(torch.from_numpy(farthest), reading).numpy()
        distances = distances / np.repeat(np.where(top > 0, top, 1), sizes)
    weights = np.maximum(np.exp(-distances), np.float32(1e-30))  # none is 0: entries stay entries
    # A sum of float32 numbers in float64 is the same in whatever order they come.
    totals = np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=weights, minlength=len(sizes))
    weights /= np.repeat(totals, sizes).astype(np.float32)
    return weights


def _average(rows: Array, indptr: Array, indices: Array, data: Array) -> tuple[Array, Array, Array]:
    """Return the sparse rows averaged over each image's neighbours."""
    number = len(rows)
    counts, none = np.zeros(number, np.int64), np.empty(0, np.int64)
    no_images, no_data = np.empty(0, np.int32), np.empty(0, np.float32)
    kernels.share(
        lambda a, b: kernels.averaged(rows, indptr, indices, data, a, b, counts, none, no_images, no_data), number
    )
    starts = np.concatenate([[0], counts.cumsum()])
    images, means = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    kernels.share(lambda a, b: kernels.averaged(rows, indptr, indices, data, a, b, none, starts, images, means), number)
    return starts, images, means
