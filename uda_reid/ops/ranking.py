"""Ranking a gallery for every query: CMC, average precision by three definitions, inverse negative penalty.

Nothing is sorted but ties. The rank of a match is the number of allowed wrong images before it plus the
number of matches up to it, so it is enough to count the wrong images nearer than each match, one block of
queries at a time.

Ties: among equal distances the gallery's order decides (the image in the earlier row comes first), whatever
its identity. A query whose average precision depends on that rule is flagged in `Ranking.tied`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import cosine_blocks
from uda_reid.ops.protocols import IdsLike, Labels, check_labels, check_search, no_match
from uda_reid.types import Ids

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ranking:
    """How well each of Q queries was answered; values are NaN (or -1 in `first`) where a query is not valid.

    Args:
        protocol: a name in `PROTOCOLS`.
        valid: (Q,) bool, whether any match is left in the gallery.
        average_precision: (Q,) float64 in [0, 1], area under precision-recall by the trapezoid rule.
        average_precision_step: (Q,) float64 in [0, 1], the mean of the precision at every match.
        average_precision_merged: (Q,) float64 in [0, 1], by the step rule with equal distances merged into
            one step, as in scikit-learn.
        inverse_penalty: (Q,) float64 in (0, 1], number of matches over the rank of the last one (INP).
        first: (Q,) int64, allowed wrong images before the first match.
        tied: (Q,) bool, whether a match and an allowed wrong image are equally far, so that the order among
            equal distances changes the average precision.
    """

    protocol: str
    valid: Bools
    average_precision: Floats
    average_precision_step: Floats
    average_precision_merged: Floats
    inverse_penalty: Floats
    first: Ids
    tied: Bools

    @property
    def counted(self) -> int:
        """The number of valid queries."""
        return int(self.valid.sum())

    @property
    def skipped(self) -> int:
        """The number of queries without a match in the gallery; they are in no mean."""
        return len(self.valid) - self.counted

    @property
    def ties(self) -> int:
        """The number of valid queries whose average precision depends on the order among equal distances."""
        return int(self.tied.sum())

    def cmc(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> dict[int, float]:
        """Return, for each rank, the share of valid queries with a match at that rank or before.

        A query with fewer allowed images than a rank counts by its match, wherever that is.

        Raises:
            DataError: no query is valid.
        """
        return {rank: float((self._first() < rank).mean()) for rank in ranks}

    def mean(self, values: Floats) -> float:
        """Return the mean over the valid queries of one of this ranking's arrays.

        Args:
            values: (Q,) float64, such as `average_precision`.

        Raises:
            DataError: no query is valid.
        """
        self._first()
        return float(values[self.valid].mean())

    def _first(self) -> Ids:
        if not self.valid.any():
            raise DataError(no_match(len(self.valid), self.protocol))
        return self.first[self.valid]


def rank(
    query: Tensor,
    gallery: Tensor,
    *,
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None = None,
    gallery_cams: IdsLike | None = None,
    protocol: str = "market",
    block: int = 256,
) -> Ranking:
    """Rank the gallery for every query by cosine distance.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers; needed unless the protocol is `any-camera`.
        gallery_cams: (G,) integers; needed unless the protocol is `any-camera`.
        protocol: a name in `PROTOCOLS`.
        block: queries ranked at once, > 0; memory grows with block * G, and the results change at most by the
            rounding of the distances.

    Returns:
        The ranking of each query.

    Raises:
        DataError: features or labels are empty, not finite, out of range or of sizes that do not fit.
        RecipeError: the protocol is unknown or the block is not positive.

    >>> query, gallery = torch.eye(2)[:1], torch.tensor([[0.9, 0.1], [1.0, 0.1], [0.1, 1.0]])
    >>> cams = {"query_cams": [1], "gallery_cams": [2, 2, 3]}
    >>> found = rank(query, gallery, query_pids=[7], gallery_pids=[7, 0, 7], **cams)
    >>> found.first.tolist(), found.average_precision.round(4).tolist()
    ([1], [0.4167])
    """
    if block < 1:
        raise RecipeError(f"block {block} is not a positive number of queries")
    device = gallery.device
    labels = check_labels(query_pids, gallery_pids, query_cams, gallery_cams, protocol=protocol, device=device)
    check_search(query, gallery, labels)
    with torch.inference_mode():
        return _rank(cosine_blocks(query.to(device), gallery, block=block), labels)


def rank_distances(
    distance_blocks: Iterable[Tensor],
    *,
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None = None,
    gallery_cams: IdsLike | None = None,
    protocol: str = "market",
) -> Ranking:
    """Rank the gallery for every query by distances that are already there.

    Args:
        distance_blocks: (B, G) float32 or float64 tensors, finite, that hold the queries in order; B may vary
            and does not change a bit of the result.
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers; needed unless the protocol is `any-camera`.
        gallery_cams: (G,) integers; needed unless the protocol is `any-camera`.
        protocol: a name in `PROTOCOLS`.

    Returns:
        The ranking of each query.

    Raises:
        DataError: a block has another shape or dtype or a NaN, the blocks do not hold Q rows, or bad labels.
        RecipeError: the protocol is unknown.

    >>> blocks = [torch.tensor([[0.3, 0.1, 0.2]])]
    >>> rank_distances(blocks, query_pids=[1], gallery_pids=[1, 1, 2], protocol="any-camera").cmc((1, 2))
    {1: 1.0, 2: 1.0}
    """
    labels = check_labels(query_pids, gallery_pids, query_cams, gallery_cams, protocol=protocol)
    with torch.inference_mode():
        return _rank(distance_blocks, labels)


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


def _rank(distance_blocks: Iterable[Tensor], labels: Labels) -> Ranking:
    queries, start, found = len(labels.query_pids), 0, []
    for distances in distance_blocks:
        _check_block(distances, start, labels)
        if len(distances) == 0:
            continue
        stop = start + len(distances)
        good, removed = labels.masks(slice(start, stop))
        matches = _count(distances.to(good.device).contiguous(), good, removed)
        found.append(matches._replace(query=matches.query + start))
        start = stop
    if start != queries:
        raise DataError(f"the distance blocks hold {start} rows for {queries} queries; one row per query is needed")
    return _summarise(_Matches(*map(torch.cat, zip(*found, strict=True))), queries, labels.protocol)


def _check_block(distances: Tensor, start: int, labels: Labels) -> None:
    queries, gallery = len(labels.query_pids), len(labels.gallery_pids)
    if distances.ndim != 2 or distances.shape[1] != gallery or start + len(distances) > queries:
        raise DataError(
            f"distance block of shape {tuple(distances.shape)} at query {start}: "
            f"at most {queries - start} rows and exactly {gallery} columns are expected"
        )
    if distances.dtype not in (torch.float32, torch.float64):
        raise DataError(f"distance block of {distances.dtype} at query {start}: float32 or float64 is expected")
    bad = ~torch.isfinite(distances).all(dim=1)
    if bool(bad.any()):
        raise DataError(
            f"the distances of query {start + int(bad.nonzero()[0])} hold NaN or infinity; check the features"
        )


def _count(distances: Tensor, good: Tensor, removed: Tensor) -> _Matches:
    """Count the wrong images before every match of a block of queries; all arguments are (B, G)."""
    number = good.sum(dim=1)
    width = max(int(number.max()), 1)
    matches, wrong = _part(distances, good, removed, width)
    nearer = _wrong_below(matches, wrong, inclusive=False)
    at_most = _wrong_below(matches, wrong, inclusive=True)
    filled = torch.arange(width, device=good.device)[None, :] < number[:, None]
    before, tied = nearer.clone(), ((nearer != at_most) & filled).any(dim=1).nonzero().flatten()
    if len(tied):
        # Places in a stable sort are distances without ties in which the gallery's order has decided.
        places = distances[tied].argsort(dim=1, stable=True).argsort(dim=1).double()
        before[tied] = _wrong_below(*_part(places, good[tied], removed[tied], width), inclusive=False)
    query, slot = filled.nonzero(as_tuple=True)
    hits_at_most = torch.searchsorted(matches, matches, right=True)
    return _Matches(query, slot + 1, *(counts[filled] for counts in (hits_at_most, before, nearer, at_most)))


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


def _summarise(matches: _Matches, queries: int, protocol: str) -> Ranking:
    query, hits, hits_at_most, before, nearer, at_most = (column.cpu().numpy() for column in matches)
    number = np.bincount(query, minlength=queries)
    valid = number > 0

    def mean(terms: Floats) -> Floats:  # bincount adds in order, so that no block size changes a bit
        return np.where(valid, np.bincount(query, weights=terms, minlength=queries) / np.maximum(number, 1), np.nan)

    places = before + hits
    precision = hits / places
    previous = np.where(places > 1, (hits - 1) / np.maximum(places - 1, 1), 1.0)
    first, inverse_penalty = np.full(queries, -1, dtype=np.int64), np.full(queries, np.nan)
    first[query[hits == 1]] = before[hits == 1]
    last = hits == number[query]
    inverse_penalty[query[last]] = precision[last]
    return Ranking(
        protocol=protocol,
        valid=valid,
        average_precision=mean((previous + precision) / 2),
        average_precision_step=mean(precision),
        average_precision_merged=mean(hits_at_most / (hits_at_most + at_most)),
        inverse_penalty=inverse_penalty,
        first=first,
        tied=np.bincount(query, weights=nearer != at_most, minlength=queries) > 0,
    )
