"""Lists of nearest images from tiles of products, and the products of pairs."""

from __future__ import annotations

from functools import partial

import numpy as np

from uda_reid.ops.kernels.loops import Array, compiled

CHUNK = 256
"""Distances that are looked at together."""


@compiled
def nearest_in_rows(
    tile: Array,
    offset: Array,
    other_offset: Array,
    scale: Array,
    features: tuple[Array, Array],
    doubt: float,
    diagonal: int,
    first: int,
    start: int,
    stop: int,
    best: tuple[Array, Array],
    farthest: Array,
) -> None:
    """Bring the columns of a tile into the neighbour lists of its rows `start` to `stop`.

    The distance of row r and column c is offset[r] + other_offset[c] - tile[r, c] * scale[c], or 0 if that is negative;
    where it is less than `doubt`, it is measured again in float64.

    Args:
        tile: (R, C) float32 products.
        offset: (R,) float32.
        other_offset: (C,) float32.
        scale: (C,) float32.
        features: (R, D) and (C, D) float32, to measure again by cosine.
        doubt: cosine distances below this are more rounding than distance; 0 to believe them all.
        diagonal: the column of row 0's own image, which is at distance 0; -1 where a row meets itself nowhere.
        first: number of the first column's image; columns come in ascending order, call after call.
        start: first row to work on.
        stop: row after the last one.
        best: (R, k) float32 distances, ascending, infinite while there are none; (R, k) int32 images; both updated.
        farthest: (R,) float32, raised to the farthest distance seen; (0,) where nobody asks.
    """
    row, least = np.empty(CHUNK, np.float32), np.float32(doubt)
    for r in range(start, stop):
        distances, images = best[0][r], best[1][r]
        for begin in range(0, tile.shape[1], CHUNK):
            part = tile[r, begin : begin + CHUNK]
            others, scales = other_offset[begin : begin + CHUNK], scale[begin : begin + CHUNK]
            low = np.int32(0)
            for c in range(len(part)):
                row[c] = max((offset[r] + others[c]) - part[c] * scales[c], np.float32(0))
                low = np.int32(low + (row[c] < least))
            if 0 <= diagonal + r - begin < len(part) and diagonal >= 0:
                row[diagonal + r - begin] = 0
            if low and distances[-1] > 0:  # a list that is full of copies takes no more
                for c in range(len(part)):
                    if row[c] < least and not (diagonal >= 0 and begin + c == diagonal + r):
                        row[c] = exact_cosine(features[0][r], features[1][begin + c])
            if len(farthest):
                farthest[r] = max(farthest[r], _top(row[: len(part)]))
            limit, near = distances[-1], np.int32(0)
            for c in range(len(part)):
                near = np.int32(near + (row[c] < limit))
            if near:
                for c in range(len(part)):
                    if row[c] < distances[-1]:
                        _insert(distances, images, row[c], first + begin + c)


@compiled
def _top(row: Array) -> float:
    """Return the largest of numbers that are not negative: as their bits, which one instruction compares."""
    bits = row.view(np.int32)
    top = bits[:1].copy()
    for c in range(1, len(bits)):
        top[0] = max(top[0], bits[c])
    return float(top.view(np.float32)[0])


@compiled
def nearest_in_columns(
    tile: Array,
    offset: Array,
    other_offset: Array,
    scale: Array,
    features: tuple[Array, Array],
    doubt: float,
    first: int,
    start: int,
    stop: int,
    best: tuple[Array, Array],
    farthest: Array,
) -> None:
    """Bring the rows of a tile into the neighbour lists of its columns `start` to `stop`, as `nearest_in_rows` does.

    Args:
        tile: (R, C) float32 products.
        offset: (R,) float32.
        other_offset: (C,) float32.
        scale: (C,) float32.
        features: (R, D) and (C, D) float32, to measure again by cosine.
        doubt: cosine distances below this are measured again in float64.
        first: number of the first row's image.
        start: first column to work on.
        stop: column after the last one.
        best: (C, k) float32 and (C, k) int32, updated.
        farthest: (C,) float32, updated; (0,) where nobody asks.
    """
    row, least = np.empty(CHUNK, np.float32), np.float32(doubt)
    limit = best[0][start:stop, -1].copy()
    for begin in range(start, stop, CHUNK):  # some columns at a time: what is needed of them stays in cache
        end = min(begin + CHUNK, stop)
        others, scales, limits = other_offset[begin:end], scale[begin:end], limit[begin - start : end - start]
        tops = farthest[begin:end]
        for r in range(tile.shape[0]):
            part = tile[r, begin:end]
            near = low = np.int32(0)
            for c in range(len(part)):
                row[c] = max((offset[r] + others[c]) - part[c] * scales[c], np.float32(0))
                low = np.int32(low + (row[c] < least))
                near = np.int32(near + (row[c] < limits[c]))
            if low:
                for c in range(len(part)):
                    if row[c] < least and limits[c] > 0:
                        row[c] = exact_cosine(features[0][r], features[1][begin + c])
                near = np.int32(1)  # counted before
            for c in range(len(tops)):
                tops[c] = max(tops[c], row[c])
            if near:
                for c in range(len(part)):
                    if row[c] < limits[c]:
                        distances = best[0][begin + c]
                        _insert(distances, best[1][begin + c], row[c], first + r)
                        limits[c] = distances[-1]


@partial(compiled, fastmath={"reassoc", "contract"})
def exact_cosine(a: Array, b: Array) -> np.float32:
    """Return 1 - cosine of two float32 rows, measured in float64; 0 if they are equal up to their own rounding."""
    ab = aa = bb = 0.0
    for d in range(len(a)):
        x, y = np.float64(a[d]), np.float64(b[d])
        ab += x * y
        aa += x * x
        bb += y * y
    if aa == 0 or bb == 0:
        return np.float32(1)
    distance = 1 - ab / np.sqrt(aa * bb)
    return np.float32(distance) if distance > 1e-13 else np.float32(0)


@compiled
def _insert(distances: Array, images: Array, distance: float, image: int) -> None:
    """Insert into ascending distances, behind equal ones, and drop the last."""
    place = len(distances) - 1
    while place > 0 and distances[place - 1] > distance:
        distances[place] = distances[place - 1]
        images[place] = images[place - 1]
        place -= 1
    distances[place] = distance
    images[place] = image


@compiled
def pair_products(features: Array, indptr: Array, indices: Array, start: int, stop: int, out: Array) -> None:
    """Write <features[i], features[j]> for the pairs (i, j) of a sparse pattern.

    Args:
        features: (N, D) float32.
        indptr: (N + 1,) int64, where each row's entries start.
        indices: (M,) int32, the other image of each pair.
        start: first row to work on.
        stop: row after the last one.
        out: (M,) float32, written.
    """
    for i in range(start, stop):
        for place in range(indptr[i], indptr[i + 1]):
            out[place] = _dot(features[i], features[indices[place]])


@partial(compiled, fastmath={"reassoc", "contract"})  # sums side by side: the same for every number of threads
def _dot(a: Array, b: Array) -> np.float32:
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total
