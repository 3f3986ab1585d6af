"""The counts behind a ranking, by torch: for distances that live on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


class _Matches(NamedTuple):
    """All matches of some queries: by query, then by rank."""

    query: Tensor
    """The row of the query."""
    hits: Tensor
    """Matches of this query up to and with this one: 1, 2, 3, ..."""
    hits_at_most: Tensor
    """Matches of this query that are no farther than this one."""
    before: Tensor
    """Allowed wrong images before this match, ties broken by the gallery's order."""
    nearer: Tensor
    """Allowed wrong images strictly nearer."""
    at_most: Tensor
    """Allowed wrong images no farther."""
    close: Tensor
    """Allowed wrong images that rounding may have put on the other side."""


def rank_block(
    distances: Tensor, good: Tensor, removed: Tensor, *, near: float, values: Array, counts: Array
) -> tuple[Tensor, Tensor]:
    """Rank the gallery for a block of queries; the same measures as `ops.kernels.rank_rows`.

    Args:
        distances: (B, G) float32 or float64, finite.
        good: (B, G) bool, matches.
        removed: (B, G) bool, what takes no part.
        near: distances no farther apart than this may change places by rounding.
        values: (B, 4) float64 on the CPU, written.
        counts: (B, 5) int64 on the CPU, written.

    Returns:
        The distances of all wrong pairs, and of all matches.
    """
    found = _count(distances, good, removed, near)
    query, hits, hits_at_most, before, nearer, at_most, close = (column.cpu().numpy() for column in found)
    queries = len(distances)
    number = np.bincount(query, minlength=queries)

    def mean(terms: Array) -> Array:
        sums = np.bincount(query, weights=terms, minlength=queries)
        return np.where(number > 0, sums / np.maximum(number, 1), np.nan)

    places = before + hits
    precision = hits / places
    previous = np.where(places > 1, (hits - 1) / np.maximum(places - 1, 1), 1.0)
    values[:, 0] = mean((previous + precision) / 2)
    values[:, 1] = mean(precision)
    values[:, 2] = mean(hits_at_most / (hits_at_most + at_most))
    values[:, 3] = np.nan
    last = hits == number[query]
    values[query[last], 3] = precision[last]
    counts[:, 0], counts[:, 1] = number, -1
    counts[query[hits == 1], 1] = before[hits == 1]
    counts[:, 2] = np.bincount(query, weights=nearer != at_most, minlength=queries) > 0
    counts[:, 3] = np.bincount(query, weights=close, minlength=queries)
    wrong = ~(good | removed)
    counts[:, 4] = wrong.sum(dim=1).cpu().numpy()
    return distances[wrong], distances[good]


def _count(distances: Tensor, good: Tensor, removed: Tensor, near: float) -> _Matches:
    """Count the wrong images before every match of a block of queries; all arguments are (B, G)."""
    number = good.sum(dim=1)
    width = max(int(number.max()), 1)
    matches, wrong = _part(distances, good, removed, width)
    nearer = _wrong_below(matches, wrong, inclusive=False)
    at_most = _wrong_below(matches, wrong, inclusive=True)
    close = _wrong_below(matches + near, wrong, inclusive=True) - _wrong_below(matches - near, wrong, inclusive=False)
    filled = torch.arange(width, device=good.device)[None, :] < number[:, None]
    before, tied = nearer.clone(), ((nearer != at_most) & filled).any(dim=1).nonzero().flatten()
    if len(tied):
        # Places in a stable sort are distances without ties in which the gallery's order has decided.
        places = distances[tied].argsort(dim=1, stable=True).argsort(dim=1).double()
        before[tied] = _wrong_below(*_part(places, good[tied], removed[tied], width), inclusive=False)
    query, slot = filled.nonzero(as_tuple=True)
    hits_at_most = torch.searchsorted(matches, matches, right=True)
    columns = (hits_at_most, before, nearer, at_most, close)
    return _Matches(query, slot + 1, *(column[filled] for column in columns))


def _part(distances: Tensor, good: Tensor, removed: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the matches' distances in order (B, width) and the wrong images' (B, G); infinity elsewhere."""
    matches = distances.masked_fill(~good, torch.inf).topk(width, dim=1, largest=False).values
    return matches, distances.masked_fill(good | removed, torch.inf)


def _wrong_below(matches: Tensor, wrong: Tensor, *, inclusive: bool) -> Tensor:
    """Return how many of `wrong` lie below (or at) each of `matches`, row by row: (B, width) int64."""
    rows, width = matches.shape
    # A wrong image counts for every match from its slot on; one beyond them all falls into the last bin.
    slot = torch.searchsorted(matches, wrong, right=not inclusive)
    slot += torch.arange(rows, device=slot.device)[:, None] * (width + 1)
    return slot.flatten().bincount(minlength=rows * (width + 1)).view(rows, width + 1).cumsum(dim=1)[:, :width]
