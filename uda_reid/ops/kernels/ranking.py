"""Counting the wrong images before every match of a query."""

from __future__ import annotations

import numpy as np

from uda_reid.ops.kernels.loops import Array, compiled

SORT_FROM = 1024
"""From this many matches of a query on, its wrong images are sorted: counting them match by match would take longer."""


CHUNK = 256
"""Distances that are looked at together."""


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
