"""k-reciprocal sets, their averages, and what encodings share."""

from __future__ import annotations

import numpy as np

from uda_reid.ops.kernels.loops import Array, compiled
from uda_reid.ops.kernels.neighbours import exact_cosine


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
