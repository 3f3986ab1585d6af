"""The few compiled loops, and how threads share them: the only door to numba.

Every loop works on a range of rows and writes only what belongs to them, so threads need no locks and their number
changes no bit of a result. Floating-point arithmetic is done in the order written, but for one product of two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch

Function = TypeVar("Function", bound=Callable[..., Any])
Array = npt.NDArray[Any]

SORT_FROM = 1024
"""From this many matches of a query on, its wrong images are sorted: counting them match by match would take longer."""


CHUNK = 256
"""Distances that are looked at together."""


def compiled(function: Function, **options: Any) -> Function:
    """Compile a loop on first use, for other threads to run beside it, and keep it on disk where that is possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # nowhere to write: compiled anew in every process
        return cast(Function, numba.njit(**options)(function))


def share(work: Callable[[int, int], Any], rows: int, *, least: int = 1) -> list[Any]:
    """Call `work(start, stop)` on equal ranges of rows, one in each of torch's threads; results in the rows' order.

    Args:
        work: must not change what another range reads.
        rows: the number of rows.
        least: rows that are not worth another thread.
    """
    parts = max(1, min(torch.get_num_threads(), rows // max(least, 1)))
    if parts == 1:
        return [work(0, rows)]
    bounds = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as threads:
        return list(threads.map(work, bounds[:-1], bounds[1:]))


@compiled
def rank_rows(
    strip: Array,
    scale: Array,
    first: int,
    start: int,
    stop: int,
    protocol: int,
    people: tuple[Array, Array],
    places: tuple[Array, Array, Array],
    junk: Array,
    near: float,
    values: Array,
    counts: Array,
    cutoff: float,
    pools: tuple[Array, Array],
) -> tuple[int, int, int, int]:
    """Rank the gallery for the queries `start` to `stop` of a strip.

    Args:
        strip: (B, G) float32 or float64 distances; with a scale, products of unit queries with gallery rows.
        scale: (G,) what turns a product into a cosine similarity; (0,) where the strip holds distances.
        first: query of the strip's first row.
        start: first row to work on.
        stop: row after the last one.
        protocol: 0 `market`, 1 `cross-camera`, 2 `any-camera`.
        people: gallery rows by identity; (Q, 2) start and end of those of each query's identity.
        places: (G,) cameras; gallery rows by camera; (Q, 3) each query's camera, and start and end of its rows.
        junk: gallery rows that are removed for every query.
        near: distances no farther apart than this may change places by rounding.
        values: (Q, 4) float64, written: trapezoid, step and merged average precision, inverse penalty; NaN where
            there is no match.
        counts: (Q, 5) int64, written: matches; wrong images before the first (-1 without a match); whether a tie
            matters; pairs of a match and a wrong image that rounding may swap; wrong images in all.
        cutoff: wrong images and matches nearer than this go to the pools.
        pools: where the distances of wrong images, and of matches, are collected; (0,) for none. The work ends early
            when one may not hold the next row's.

    Returns:
        The row after the last one done; how many distances each pool got; the row with a NaN or infinity, or -1.
    """
    row = np.empty(strip.shape[1], strip.dtype)
    wrong = hits = 0
    for at in range(start, stop):
        query = first + at
        if not _distances(strip[at], scale, row):
            return at, wrong, hits, at
        candidates = people[0][people[1][query, 0] : people[1][query, 1]]
        camera = places[2][query, 0]
        matches = candidates if protocol == 2 else candidates[places[0][candidates] != camera]
        # Nearest first; among equal distances the lower row first.
        matches = matches[np.argsort(row[matches], kind="mergesort")]
        distances = row[matches]
        # From here on only wrong images are below infinity.
        row[junk] = np.inf
        row[candidates] = np.inf
        if protocol == 1:
            row[places[1][places[2][query, 1] : places[2][query, 2]]] = np.inf
        if len(pools[0]):
            below = _count(row, cutoff, cutoff)[0]
            if wrong + below > len(pools[0]) or hits + len(matches) > len(pools[1]):
                return at, wrong, hits, -1
            wrong += _collect(row, cutoff, below, pools[0][wrong:])
            hits += _collect(distances, cutoff, len(distances), pools[1][hits:])
        _measure(row, matches, distances, near, values[query], counts[query])
    return stop, wrong, hits, -1


@compiled
def _distances(line: Array, scale: Array, row: Array) -> bool:
    """Write the distances that a line of a strip stands for; return whether all are finite."""
    bad = 0
    if len(scale):
        for g in range(len(row)):
            x = np.float32(1) - line[g] * scale[g]
            row[g] = max(x, np.float32(0))
            bad += (x - x) != 0
    else:
        for g in range(len(row)):
            x = line[g]
            row[g] = x
            bad += (x - x) != 0
    return bad == 0


@compiled
def _measure(row: Array, matches: Array, distances: Array, near: float, values: Array, counts: Array) -> None:
    """Write the measures of one query: `row` holds the distances of wrong images, and infinity elsewhere."""
    number = len(matches)
    counts[0], counts[1], counts[2], counts[3] = number, -1, 0, 0
    counts[4] = _count(row, row.dtype.type(np.inf), row.dtype.type(0))[0]
    if number == 0:
        values[:] = np.nan
        return
    ordered = np.sort(row) if number >= SORT_FROM else row[:0]
    trapezoid = step = merged = 0.0
    upto = 0  # matches no farther than this one
    for m in range(number):
        t = distances[m]
        low, high = row.dtype.type(t - near), row.dtype.type(t + near)
        if len(ordered):
            nearer, at_most = np.searchsorted(ordered, t), np.searchsorted(ordered, t, side="right")
            close = np.searchsorted(ordered, high, side="right") - np.searchsorted(ordered, low)
        else:
            nearer, at_most = _count(row, low, high)
            close = at_most - nearer
            if close:
                nearer, at_most = _count(row, t, t)
        before = nearer
        if at_most != nearer:
            counts[2] = 1
            for g in range(matches[m]):
                before += row[g] == t
        counts[3] += close
        while upto < number and distances[upto] <= t:
            upto += 1
        hits, place = m + 1, before + m + 1
        precision = hits / place
        previous = (hits - 1) / (place - 1) if place > 1 else 1.0
        trapezoid += (previous + precision) / 2
        step += precision
        merged += upto / (upto + at_most)
        if m == 0:
            counts[1] = before
    values[0], values[1], values[2] = trapezoid / number, step / number, merged / number
    values[3] = precision


@compiled
def _count(row: Array, low: float, high: float) -> tuple[int, int]:
    """Count the entries below `low`, and those at most `high`."""
    below = at_most = 0
    for begin in range(0, len(row), 4096):
        part = row[begin : begin + 4096]
        a = b = np.int32(0)  # narrow counters: one instruction compares and counts many entries
        for g in range(len(part)):
            a = np.int32(a + (part[g] < low))
            b = np.int32(b + (part[g] <= high))
        below += int(a)
        at_most += int(b)
    return below, at_most


@compiled
def _collect(row: Array, cutoff: float, most: int, pool: Array) -> int:
    """Write the entries below `cutoff`, at most so many, into the pool; return how many there are."""
    found = 0
    if most:
        for x in row:
            if x < cutoff:
                pool[found] = x
                found += 1
    return found


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


@compiled
def reciprocal(rows: Array, width: int, start: int, stop: int, found: Array) -> None:
    """Mark which of the first `width` neighbours have the image among theirs.

    Args:
        rows: (N, K) int32 neighbour lists, K >= width.
        width: how many neighbours count.
        start: first image to work on.
        stop: image after the last one.
        found: (N, width) bool, written.
    """
    for i in range(start, stop):
        for a in range(width):
            other = rows[i, a]
            found[i, a] = False
            for b in range(width):
                if rows[other, b] == i:
                    found[i, a] = True
                    break


@compiled
def expanded(
    rows: Array, full: Array, half: Array, start: int, stop: int, counts: Array, indptr: Array, indices: Array
) -> None:
    """Count or write the expanded k-reciprocal set of every image.

    The half set of a candidate joins where more than two thirds of it are in the image's own set.

    Args:
        rows: (N, K) int32 neighbour lists.
        full: (N, k) bool, which of the first k neighbours are reciprocal.
        half: (N, h) bool, the same for about half of k.
        start: first image to work on.
        stop: image after the last one.
        counts: (N,) int64, written: size of the sets; (0,) when they are to be written.
        indptr: (N + 1,) int64, where the sets go.
        indices: (M,) int32, written: the sets, ascending.
    """
    own = np.full(len(rows), -1, np.int32)
    member = np.full(len(rows), -1, np.int32)
    members = np.empty(full.shape[1] * (1 + half.shape[1]), np.int32)
    for i in range(start, stop):
        size = 0
        for a in range(full.shape[1]):
            if full[i, a]:
                own[rows[i, a]] = member[rows[i, a]] = i
                members[size] = rows[i, a]
                size += 1
        for a in range(full.shape[1]):
            if not full[i, a]:
                continue
            candidate = rows[i, a]
            shared = number = 0
            for b in range(half.shape[1]):
                if half[candidate, b]:
                    number += 1
                    shared += own[rows[candidate, b]] == i
            if 3 * shared > 2 * number:
                for b in range(half.shape[1]):
                    image = rows[candidate, b]
                    if half[candidate, b] and member[image] != i:
                        member[image] = i
                        members[size] = image
                        size += 1
        if len(counts):
            counts[i] = size
        else:
            indices[indptr[i] : indptr[i + 1]] = np.sort(members[:size])


@compiled
def averaged(
    rows: Array,
    indptr: Array,
    indices: Array,
    data: Array,
    start: int,
    stop: int,
    counts: Array,
    new_indptr: Array,
    new_indices: Array,
    new_data: Array,
) -> None:
    """Count or write the entries of every image's sparse row, averaged over its nearest neighbours' rows.

    Args:
        rows: (N, k2) int32, the neighbours that are averaged over.
        indptr: (N + 1,) int64 of the sparse rows.
        indices: (M,) int32.
        data: (M,) float32.
        start: first image to work on.
        stop: image after the last one.
        counts: (N,) int64, written: entries of the averages; (0,) when they are to be written.
        new_indptr: (N + 1,) int64, where the averages go.
        new_indices: (L,) int32, written, ascending.
        new_data: (L,) float32, written.
    """
    seen = np.full(len(rows), -1, np.int32)
    sums = np.zeros(len(rows), np.float32)
    touched = np.empty(len(rows), np.int32)
    for i in range(start, stop):
        size = 0
        for other in rows[i]:
            for place in range(indptr[other], indptr[other + 1]):
                image = indices[place]
                if seen[image] != i:
                    seen[image] = i
                    sums[image] = 0
                    touched[size] = image
                    size += 1
                sums[image] += data[place]
        if len(counts):
            counts[i] = size
            continue
        ordered = np.sort(touched[:size])
        at = new_indptr[i]
        for place in range(size):
            new_indices[at + place] = ordered[place]
            new_data[at + place] = sums[ordered[place]] / np.float32(rows.shape[1])


@compiled
def overlaps(
    mine: tuple[Array, Array, Array],
    theirs: tuple[Array, Array, Array],
    totals: tuple[Array, Array],
    least: float,
    start: int,
    stop: int,
    counts: Array,
    images: Array,
    distances: Array,
) -> tuple[int, int]:
    """Write the Jaccard distances of images `start` to `stop` to those others that share any of their encoding.

    Args:
        mine: indptr (R + 1,), indices and data of the encodings by image.
        theirs: those of others by column: where each starts, the images that hold it, and what they hold.
        totals: (R,) and (N,) float64, the sum of each encoding, of one's own and of the others'.
        least: an overlap of less than this times the sum of both totals is left out.
        start: first image to work on.
        stop: image after the last one.
        counts: (R,) int64, written: how many others are written.
        images: (B,) int32, written: the others, ascending; the work ends early when they may not hold the next ones.
        distances: (B,) float32, written: 1 less the sum of the smaller of the two values over all entries by that of
            the larger.

    Returns:
        The image after the last one done, and how many entries were written.
    """
    starts, holders, held = theirs
    number = len(totals[1])
    sums = np.zeros(number)
    touched = np.empty(number + 1, np.int32)
    filled = 0
    for i in range(start, stop):
        size = 0
        for place in range(mine[0][i], mine[0][i + 1]):
            entry, value = mine[1][place], mine[2][place]
            for at in range(np.uint64(starts[entry]), np.uint64(starts[entry + 1])):
                image = np.uint32(holders[at])
                before = sums[image]
                touched[size] = image
                size += before == 0  # without a branch: half of them are new
                sums[image] = before + min(value, held[at])
        if filled + size > len(images):
            for image in touched[:size]:
                sums[image] = 0
            return i, filled
        kept = 0
        for image in touched[:size]:
            if sums[image] >= least * (totals[0][i] + totals[1][image]):
                touched[kept] = image
                kept += 1
            else:
                sums[image] = 0
        if 16 * kept > number:  # so many that looking at all is quicker than sorting
            kept = 0
            for other in range(number):
                touched[kept] = other
                kept += sums[other] != 0
        else:
            touched[:kept].sort()
        for place in range(kept):
            image = touched[place]
            larger = (totals[0][i] + totals[1][image]) - sums[image]
            images[filled + place] = image
            distances[filled + place] = 1 - sums[image] / larger
            sums[image] = 0
        counts[i] = kept
        filled += kept
    return stop, filled


@compiled
def mix_rows(
    strip: Array,
    scale: Array,
    factor: Array,
    squared: bool,
    share: float,
    features: tuple[Array, Array],
    doubt: float,
    totals: tuple[Array, Array],
    first: int,
    mine: tuple[Array, Array, Array],
    theirs: tuple[Array, Array, Array],
    start: int,
    stop: int,
) -> None:
    """Turn products into re-ranked distances, in place: share * distance + (1 - share) * Jaccard distance.

    Args:
        strip: (B, G) float32 products of unit queries with gallery rows.
        scale: (G,) float32, what turns a product into a cosine similarity.
        factor: (Q,) float32, what each query's squared Euclidean distances are multiplied by.
        squared: whether these are squared again, before.
        share: of the distance, in [0, 1].
        features: (Q, D) and (G, D) float32, to measure again by cosine.
        doubt: cosine distances below this are measured again in float64.
        totals: (Q,) and (G,) float64, the sum of each encoding.
        first: query of the strip's first row.
        mine: indptr (Q + 1,), indices and data of the queries' encodings.
        theirs: of the gallery's encodings by column: where each starts, the gallery rows that hold it, what they hold.
        start: first row to work on.
        stop: row after the last one.
    """
    direct, indirect, two, least = np.float32(share), np.float32(1 - share), np.float32(2), np.float32(2 * doubt)
    starts, holders, held = theirs
    sums = np.zeros(strip.shape[1])
    touched = np.empty(strip.shape[1] + 1, np.int32)
    for r in range(start, stop):
        line, times = strip[r], factor[first + r]
        low = np.int32(0)
        for g in range(len(line)):
            line[g] = max(two - two * (line[g] * scale[g]), np.float32(0))
            low = np.int32(low + (line[g] < least))
        if low:
            for g in range(len(line)):
                if line[g] < least:
                    line[g] = two * exact_cosine(features[0][first + r], features[1][g])
        for g in range(len(line)):
            x = line[g]
            line[g] = direct * ((x * x if squared else x) * times) + indirect
        size = 0
        for place in range(mine[0][first + r], mine[0][first + r + 1]):
            entry, value = mine[1][place], mine[2][place]
            for at in range(np.uint64(starts[entry]), np.uint64(starts[entry + 1])):
                image = np.uint32(holders[at])
                before = sums[image]
                touched[size] = image
                size += before == 0
                sums[image] = before + min(value, held[at])
        for other in touched[:size]:
            larger = (totals[0][first + r] + totals[1][other]) - sums[other]
            line[other] = max(line[other] - np.float32(indirect * (sums[other] / larger)), np.float32(0))
            sums[other] = 0
