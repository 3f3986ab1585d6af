"""k-reciprocal encoding, the Jaccard distances it gives, and re-ranking by them: sparse throughout, never N x N.

Two images are near if they have the same neighbours. An image is encoded as the weights of its expanded k-reciprocal
set, averaged over its nearest neighbours; the Jaccard distance of two images is 1 less the quotient of two sums over
all entries: of the smaller of their two weights, and of the larger. Images without a common entry are at distance
1, which is not stored.

Two published readings, which give different distances and rankings:

`zhong`: Zhong, Zheng, Cao and Li, CVPR 2017, their code and MMT's. Sets are made of k1 + 1 neighbours, the image among
    them; weights are exp(-d), d being the squared Euclidean distance of unit features over that of the farthest image.
    `zhong-squared` squares that distance again: torchreid hands squared distances to code that squares.
    Where an encoding has no entry, ours keeps the publication's quotient of sums; the codes write 1 - t / (2 - t).
`spcl`: compute_jaccard_distance of SpCL and OpenUnReID. Sets are made of k1 neighbours, weights of the plain squared
    distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor

import uda_reid.ops.kernels as kernels
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import (
    MEMORY,
    NEAR,
    blur,
    check_features,
    directions,
    exact_cosines,
    product_strips,
)
from uda_reid.ops.neighbours import Backend, Neighbours, Progress, neighbours, pair_products, quiet

Reading = Literal["zhong", "zhong-squared", "spcl"]
READINGS = ("zhong", "zhong-squared", "spcl")
Array = npt.NDArray[Any]
PairDistances = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.float32]]

BUFFER = 1 << 20
"""Entries that a thread writes before they are put aside."""
BLOCK = 1 << 14
"""Rows whose entries are summed at once."""


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
        reading: see above.

    Returns:
        The encoding.

    Raises:
        DataError: `found` does not hold what is needed.
        RecipeError: an option is out of range.
    """
    _check(k1, k2, reading)
    number = len(found.rows)
    width = min(k1 if reading == "spcl" else k1 + 1, number)
    _check_found(found, needed(k1, k2, reading, number), reading)
    rows = np.ascontiguousarray(found.rows.cpu().numpy())
    indptr, indices = _sets(rows, width, min(int(np.around(k1 / 2)) + 1, width))
    farthest = None if reading == "spcl" else 2 * found.farthest.cpu().numpy()
    data = _weights(2 * distances(indptr, indices), indptr, farthest, reading)
    if k2 > 1:
        indptr, indices, data = _average(rows[:, :k2].copy(), indptr, indices, data)
    return Encoding(_sparse(data, indices, indptr, (number, number)), found, reading)


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
    _check(k1, k2, reading)
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

    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-0.5, 1.0]])
    >>> near = jaccard(encode_features(features, k1=2, k2=1))  # the first two, and the last two
    >>> near.indices.tolist(), [f"{distance:.2f}" for distance in near.data[:2]]
    ([0, 1, 0, 1, 2, 3, 2, 3], ['0.00', '0.19'])
    """
    wanted = encoding.weights.shape[0] if rows is None else rows
    check_most(most)
    if not 0 <= wanted <= encoding.weights.shape[0]:
        raise RecipeError(f"distances of {wanted} rows; use 0 to {encoding.weights.shape[0]:,}")
    return _strip(_Sides.of(encoding), most, 0, wanted)


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
    sides, number = _Sides.of(encoding), encoding.weights.shape[0]
    for first in range(0, number, height):
        yield _strip(sides, most, first, min(first + height, number))


def check_most(most: float) -> None:
    """Refuse what is no Jaccard distance.

    Raises:
        RecipeError: it is not in [0, 1].
    """
    if not 0 <= most <= 1:
        raise RecipeError(f"distances of at most {most} cannot be; use 0 to 1")


def rerank(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    share: float = 0.3,
    reading: Reading = "zhong",
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Iterator[Tensor]:
    """Yield re-ranked distances between queries and gallery, for `ops.ranking.rank_distances`.

    They are share * d + (1 - share) * Jaccard distance among all images of both, d being the distance of the reading:
    over that of the farthest image for `zhong` and `zhong-squared`, plain for `spcl`.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        k1: size of the k-reciprocal sets; Zhong et al.: 20.
        k2: rows averaged over; Zhong et al.: 6.
        share: of the original distance, in [0, 1]; lambda of Zhong et al.: 0.3.
        reading: see above.
        memory: bytes of distances computed at once.
        progress: shows the search for neighbours.

    Yields:
        (B, G) float32 for the queries in order.

    Raises:
        DataError: the features are not finite, not float32, empty, or do not fit each other.
        RecipeError: an option is out of range.

    Source:
        Zhong et al. 2017, equations 4 to 12.
    """
    check_features(query, "query features")
    check_features(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise DataError(f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}")
    if not 0 <= share <= 1:
        raise RecipeError(f"a share of {share} of the original distance is out of range; use 0 to 1")
    _check(k1, k2, reading)
    return _reranked(query, gallery, k1, k2, share, reading, memory, progress)


def _reranked(
    query: Tensor,
    gallery: Tensor,
    k1: int,
    k2: int,
    share: float,
    reading: Reading,
    memory: int,
    progress: Progress,
) -> Iterator[Tensor]:
    both = torch.cat([query.to(gallery.device), gallery])
    encoding = encode_features(both, k1=k1, k2=k2, reading=reading, memory=memory, progress=progress)
    sides = _Sides.of(encoding, len(query))
    factor = torch.ones(len(query))
    if reading != "spcl":
        factor = 1 / _power(2 * encoding.found.farthest[: len(query)], reading).cpu()
        factor[~torch.isfinite(factor)] = 0
    del both, encoding
    towards, first = directions(gallery.detach()), 0
    mix = _mix if gallery.device.type == "cpu" else _mix_on_device
    for strip in product_strips(query, towards, memory=memory):
        block = strip.clone()  # the caller may keep it
        mix(block, (query, towards.rows), towards.scale, factor, sides, first, share, reading)
        yield block
        first += len(block)


class _Sides(NamedTuple):
    """Encodings by row and those they are compared with by column, as the compiled loops take them, and their sums."""

    mine: tuple[Array, Array, Array]
    theirs: tuple[Array, Array, Array]
    totals: tuple[Array, Array]

    @classmethod
    def of(cls, encoding: Encoding, queries: int = 0) -> _Sides:
        """Return the first so many images against the others, or all against all."""
        weights, totals = encoding.weights, _totals(encoding.weights)
        if not queries:
            return cls(_arrays(weights), _arrays(weights.tocsc()), (totals, totals))
        mine, theirs = weights[:queries], weights[queries:].tocsc()
        return cls(_arrays(mine), _arrays(theirs), (totals[:queries], totals[queries:]))

    def rows(self, first: int, stop: int) -> _Sides:
        """Return only some rows."""
        starts, images, weights = self.mine
        entries = slice(starts[first], starts[stop])
        mine = starts[first : stop + 1] - starts[first], images[entries], weights[entries]
        return _Sides(mine, self.theirs, (self.totals[0][first:stop], self.totals[1]))


def _strip(sides: _Sides, most: float, first: int, stop: int) -> csr_array:
    """Return the Jaccard distances of some rows."""
    # A distance of 1 - t / (s - t), s being the sum of both totals, is at most `most` where t / s is at least this; a
    # hair less, since both are rounded.
    least = (1 - most) / (2 - most) - 1e-6
    counts, images, distances = _distances(sides.rows(first, stop), least)
    distances[distances < NEAR] = 0  # equal encodings, up to rounding
    return _sparse(distances, images, np.concatenate([[0], counts.cumsum()]), (stop - first, len(sides.totals[1])))


def _mix(
    strip: Tensor,
    features: tuple[Tensor, Tensor],
    scale: Tensor,
    factor: Tensor,
    sides: _Sides,
    first: int,
    share: float,
    reading: Reading,
) -> None:
    """Turn a strip of products into re-ranked distances, in place."""
    lines, scales, factors = strip.numpy(), scale.numpy(), factor.numpy()
    rows = features[0].detach().contiguous().numpy(), features[1].detach().contiguous().numpy()
    doubt, squared = blur(rows[0].shape[1]), reading == "zhong-squared"

    def work(start: int, stop: int) -> None:
        kernels.mix_rows(
            lines, scales, factors, squared, share, rows, doubt, sides.totals, first, sides.mine, sides.theirs,
            start, stop,
        )  # fmt: skip

    kernels.share(work, len(lines))


@torch.no_grad()
def _mix_on_device(
    strip: Tensor,
    features: tuple[Tensor, Tensor],
    scale: Tensor,
    factor: Tensor,
    sides: _Sides,
    first: int,
    share: float,
    reading: Reading,
) -> None:
    """Do the same by torch; the overlaps come from the CPU."""
    plain = (2 - 2 * (strip * scale)).clamp_min_(0)
    low = (plain < 2 * blur(features[0].shape[1])).nonzero()
    for some in torch.split(low, 1024):
        query, gallery = (
            features[0][(first + some[:, 0]).to(features[0].device)].to(strip.device),
            features[1][some[:, 1]],
        )
        plain[some[:, 0], some[:, 1]] = 2 * exact_cosines(query, gallery)
    rows = slice(first, first + len(strip))
    strip.copy_(share * _power(plain, reading) * factor[rows, None].to(strip.device) + (1 - share))
    counts, others, distances = _distances(sides.rows(rows.start, rows.stop), 0)
    row = torch.repeat_interleave(torch.from_numpy(counts)).to(strip.device)
    column, distance = (torch.from_numpy(part).to(strip.device) for part in (others.astype(np.int64), distances))
    strip[row, column] -= (1 - share) * (1 - distance)  # no pair occurs twice
    strip.clamp_min_(0)


def _sparse(data: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> csr_array:
    """Return a sparse matrix with indices of 4 bytes while they suffice: scipy makes them as wide as indptr."""
    narrow = indptr.astype(np.int32) if indptr[-1] < 1 << 31 else indptr
    return csr_array((data, indices, narrow), shape=shape)


def _check(k1: int, k2: int, reading: str) -> None:
    if reading not in READINGS:
        raise RecipeError(f"reading {reading!r} is unknown; use one of {', '.join(READINGS)}")
    if k1 < 1 or k2 < 1:
        raise RecipeError(f"k1 {k1} and k2 {k2} must be at least 1")


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
        pairs = (torch.split(torch.from_numpy(side).to(features.device), BUFFER // 16) for side in (owner, indices))
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


def _power(distances: Tensor, reading: Reading) -> Tensor:
    """Return squared Euclidean distances as the reading has them."""
    return distances.square() if reading == "zhong-squared" else distances


def _weights(distances: Array, indptr: Array, farthest: Array | None, reading: Reading) -> Array:
    """Return exp(-distance) over its sum within each row; distances are squared Euclidean ones: (M,) float32."""
    sizes = np.diff(indptr)
    if farthest is not None:
        distances = _power(torch.from_numpy(distances), reading).numpy()
        top = _power(torch.from_numpy(farthest), reading).numpy()
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


def _distances(sides: _Sides, least: float) -> tuple[Array, Array, Array]:
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

    parts = [part for parts in kernels.share(work, len(counts)) for part in parts]
    images, shares = (np.empty(counts.sum(), kind) for kind in (np.int32, np.float32))
    at = 0
    for number, (some, share) in enumerate(parts):
        images[at : at + len(some)], shares[at : at + len(some)] = some, share
        at += len(some)
        parts[number] = (some[:0], share[:0])  # room for what follows
    return counts, images, shares


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
