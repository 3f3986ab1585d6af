"""Ranking a gallery for every query: CMC, average precision by three definitions, inverse negative penalty.

Nothing is sorted but the matches. The rank of a match is the number of allowed wrong images before it plus the
number of matches up to it, so it is enough to count the wrong images nearer than each match, one strip of queries at a
time: the whole matrix of distances never exists.

Ties: among equal distances the gallery's order decides (the image in the earlier row comes first), whatever
its identity. A query whose average precision depends on that rule is flagged in `Ranking.tied`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import uda_reid.ops.kernels as kernels
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import MEMORY, NEAR, Directions, directions, product_strips
from uda_reid.ops.protocols import IdsLike, Labels, check_labels, check_search, no_match
from uda_reid.ops.ranking.device import rank_block
from uda_reid.ops.ranking.rates import Nearest, check_rates
from uda_reid.types import JUNK, Ids

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Over = Literal["valid", "all"]

RATES = (1e-4, 1e-3)
"""False-positive rates at which the true-positive rate is told, unless others are asked for."""
POOL = 1 << 18
"""Distances that a thread collects before it hands them over."""


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
        near: (Q,) int64, pairs of a match and an allowed wrong image whose distances differ by 1e-6 or less: another
            order of summation may flip them.
        accepted: false-positive rate -> true-positive rate (TPR@FPR): of all pairs of a query and a match, the share
            that is nearer than the threshold at which that share of the wrong pairs is let through. NaN where no query
            is valid. Pairs of all queries count, the removals of the protocol apply.
    """

    protocol: str
    valid: Bools
    average_precision: Floats
    average_precision_step: Floats
    average_precision_merged: Floats
    inverse_penalty: Floats
    first: Ids
    tied: Bools
    near: Ids
    accepted: Mapping[float, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def counted(self) -> int:
        """The number of valid queries."""
        return int(self.valid.sum())

    @property
    def skipped(self) -> int:
        """The number of queries without a match in the gallery."""
        return len(self.valid) - self.counted

    @property
    def ties(self) -> int:
        """The number of valid queries whose average precision depends on the order among equal distances."""
        return int(self.tied.sum())

    def cmc(self, ranks: Sequence[int] = (1, 5, 10, 20), *, over: Over = "valid") -> dict[int, float]:
        """Return, for each rank, the share of queries with a match at that rank or before.

        A query with fewer allowed images than a rank counts by its match, wherever that is.

        Args:
            ranks: positive ranks.
            over: `valid` queries, or `all`, those without any match counted as wrong (Person_reID_baseline).

        Raises:
            DataError: no query is valid.
            RecipeError: a rank is not positive, or `over` is unknown.
        """
        share = self._share(over)
        if min(ranks, default=1) < 1:
            raise RecipeError(f"rank {min(ranks)} is not positive; the first place is rank 1")
        return {rank: share * float((self.first[self.valid] < rank).mean()) for rank in ranks}

    def mean(self, values: Floats, *, over: Over = "valid") -> float:
        """Return the mean over queries of one of this ranking's arrays.

        Args:
            values: (Q,) float64, such as `average_precision`.
            over: `valid` queries, or `all`, those without any match counted as 0 (Person_reID_baseline).

        Raises:
            DataError: no query is valid.
            RecipeError: `over` is unknown.
        """
        return self._share(over) * float(values[self.valid].mean())

    def _share(self, over: Over) -> float:
        if not self.valid.any():
            raise DataError(no_match(len(self.valid), self.protocol))
        if over not in ("valid", "all"):
            raise RecipeError(f"means over {over!r} are unknown; use valid or all")
        return 1.0 if over == "valid" else self.counted / len(self.valid)


def rank(
    query: Tensor,
    gallery: Tensor,
    *,
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None = None,
    gallery_cams: IdsLike | None = None,
    protocol: str = "market",
    rates: Sequence[float] = RATES,
    memory: int = MEMORY,
) -> Ranking:
    """Rank the gallery for every query by cosine distance, on the gallery's device.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers; needed unless the protocol is `any-camera`.
        gallery_cams: (G,) integers; needed unless the protocol is `any-camera`.
        protocol: a name in `PROTOCOLS`.
        rates: false-positive rates for `Ranking.accepted`; it takes 8 * Q * G * the highest bytes, and 4 for every
            match that is nearer than the wrong pairs which that lets through.
        memory: bytes of distances computed at once, at least 4 * G; it changes the results at most by the rounding of
            the distances (`Ranking.near`).

    Returns:
        The ranking of each query.

    Raises:
        DataError: features or labels are empty, not finite, out of range or of sizes that do not fit.
        RecipeError: the protocol is unknown, a rate is out of range, or the memory does not hold one query's distances.

    >>> query, gallery = torch.eye(2)[:1], torch.tensor([[0.9, 0.1], [1.0, 0.1], [0.1, 1.0]])
    >>> cams = {"query_cams": [1], "gallery_cams": [2, 2, 3]}
    >>> found = rank(query, gallery, query_pids=[7], gallery_pids=[7, 0, 7], **cams)
    >>> found.first.tolist(), found.average_precision.round(4).tolist()
    ([1], [0.4167])
    """
    labels = check_labels(query_pids, gallery_pids, query_cams, gallery_cams, protocol=protocol, device=gallery.device)
    check_search(query, gallery, labels)
    with torch.no_grad():
        towards = directions(gallery)
        memory = memory if gallery.device.type == "cpu" else memory // 8  # torch holds masks and keys beside them
        return _rank(product_strips(query, towards, memory=memory), labels, rates, towards)


def rank_distances(
    distance_blocks: Iterable[Tensor],
    *,
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None = None,
    gallery_cams: IdsLike | None = None,
    protocol: str = "market",
    rates: Sequence[float] = RATES,
) -> Ranking:
    """Rank the gallery for every query by distances that are already there, on the first block's device.

    Args:
        distance_blocks: (B, G) float32 or float64 tensors of one dtype, finite, that hold the queries in order; B may
            vary and does not change a bit of the result.
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers; needed unless the protocol is `any-camera`.
        gallery_cams: (G,) integers; needed unless the protocol is `any-camera`.
        protocol: a name in `PROTOCOLS`.
        rates: false-positive rates for `Ranking.accepted`.

    Returns:
        The ranking of each query.

    Raises:
        DataError: a block has another shape or dtype or a NaN, the blocks do not hold Q rows, or bad labels.
        RecipeError: the protocol is unknown, or a rate is out of range.

    >>> blocks = [torch.tensor([[0.3, 0.1, 0.2]])]
    >>> rank_distances(blocks, query_pids=[1], gallery_pids=[1, 1, 2], protocol="any-camera").cmc((1, 2))
    {1: 1.0, 2: 1.0}
    """
    labels = check_labels(query_pids, gallery_pids, query_cams, gallery_cams, protocol=protocol)
    with torch.no_grad():
        return _rank(distance_blocks, labels, rates, None)


def _rank(strips: Iterable[Tensor], labels: Labels, rates: Sequence[float], towards: Directions | None) -> Ranking:
    """Rank by strips of distances, or of products with directions."""
    check_rates(rates)
    queries, start = len(labels.query_pids), 0
    values, counts = np.empty((queries, 4)), np.empty((queries, 5), dtype=np.int64)
    nearest = Nearest(rates, queries * len(labels.gallery_pids))
    work: Callable[[Tensor, int], None] | None = None
    dtype: torch.dtype | None = None
    for strip in strips:
        _check_strip(strip, start, labels)
        dtype = dtype or strip.dtype
        if strip.dtype != dtype:
            raise DataError(f"distance block of {strip.dtype} at query {start}: {dtype} as before is expected")
        if work is None:  # the first strip decides where and how
            ranker = _on_cpu if strip.device.type == "cpu" else _on_device
            work = ranker(labels.to(strip.device), nearest, values, counts, towards)
        work(strip, start)
        start += len(strip)
    if start != queries:
        raise DataError(f"the distance blocks hold {start} rows for {queries} queries; one row per query is needed")
    number, wrong = int(counts[:, 0].sum()), int(counts[:, 4].sum())
    return Ranking(
        protocol=labels.protocol,
        valid=counts[:, 0] > 0,
        average_precision=values[:, 0].copy(),
        average_precision_step=values[:, 1].copy(),
        average_precision_merged=values[:, 2].copy(),
        inverse_penalty=values[:, 3].copy(),
        first=counts[:, 1].copy(),
        tied=counts[:, 2] > 0,
        near=counts[:, 3].copy(),
        accepted=MappingProxyType(dict(nearest.accepted(number, wrong))),
    )


def _check_strip(strip: Tensor, start: int, labels: Labels) -> None:
    queries, gallery = len(labels.query_pids), len(labels.gallery_pids)
    if strip.ndim != 2 or strip.shape[1] != gallery or start + len(strip) > queries:
        raise DataError(
            f"distance block of shape {tuple(strip.shape)} at query {start}: "
            f"at most {queries - start} rows and exactly {gallery} columns are expected"
        )
    if strip.dtype not in (torch.float32, torch.float64):
        raise DataError(f"distance block of {strip.dtype} at query {start}: float32 or float64 is expected")


def _check_finite(bad: int) -> None:
    if bad >= 0:
        raise DataError(f"the distances of query {bad} hold NaN or infinity; check the features")


def _on_cpu(
    labels: Labels, nearest: Nearest, values: Array, counts: Array, towards: Directions | None
) -> Callable[[Tensor, int], None]:
    """Return what ranks a strip by compiled loops, its rows shared among threads."""
    groups = _Groups.of(labels)
    scale = np.empty(0, dtype=np.float32) if towards is None else towards.scale.numpy()

    def work(strip: Tensor, first: int) -> None:
        lines = strip.contiguous().numpy()
        sizes = (max(POOL, lines.shape[1]), max(POOL, groups.most)) if nearest.rates else (0, 0)

        def rows(start: int, stop: int) -> None:
            pools = np.empty(sizes[0], lines.dtype), np.empty(sizes[1], lines.dtype)
            while start < stop:
                cutoff = lines.dtype.type(nearest.cutoff)
                start, wrongs, hits, bad = kernels.rank_rows(
                    lines, scale, first, start, stop, groups.protocol, groups.people, groups.places, groups.junk,
                    NEAR, values, counts, cutoff, pools,
                )  # fmt: skip
                _check_finite(bad + first if bad >= 0 else -1)
                nearest.add(pools[0][:wrongs], pools[1][:hits])

        kernels.share(rows, len(lines))

    return work


def _on_device(
    labels: Labels, nearest: Nearest, values: Array, counts: Array, towards: Directions | None
) -> Callable[[Tensor, int], None]:
    """Return what ranks a strip by torch, on the strip's device."""

    def work(strip: Tensor, first: int) -> None:
        distances = strip if towards is None else (1 - strip * towards.scale).clamp_min(0)
        bad = ~torch.isfinite(distances).all(dim=1)
        _check_finite(first + int(bad.nonzero()[0]) if bool(bad.any()) else -1)
        rows = slice(first, first + len(strip))
        found = rank_block(distances, *labels.masks(rows), near=NEAR, values=values[rows], counts=counts[rows])
        if nearest.rates:
            nearest.add(*(part[part < nearest.cutoff].cpu().numpy() for part in found))

    return work


@dataclass(frozen=True)
class _Groups:
    """The gallery by identity and by camera, as `kernels.rank_rows` takes it."""

    protocol: int
    people: tuple[Array, Array]
    places: tuple[Array, Array, Array]
    junk: Array
    most: int
    """Gallery rows of the commonest identity among the queries'."""

    @staticmethod
    def of(labels: Labels) -> _Groups:
        by_pid, people = _sorted(labels.gallery_pids, labels.query_pids)
        by_cam, cameras = _sorted(labels.gallery_cams, labels.query_cams)
        places = np.column_stack([labels.query_cams.numpy(), cameras])
        return _Groups(
            ("market", "cross-camera", "any-camera").index(labels.protocol),
            (by_pid, people),
            (labels.gallery_cams.numpy(), by_cam, places),
            np.flatnonzero(labels.gallery_pids.numpy() == JUNK),
            int((people[:, 1] - people[:, 0]).max()),
        )


def _sorted(gallery: Tensor, query: Tensor) -> tuple[Ids, Ids]:
    """Return gallery rows by value, and where the rows of each query's value start and end: (G,), (Q, 2)."""
    order = np.argsort(gallery.numpy(), kind="stable")
    values = gallery.numpy()[order]
    return order, np.column_stack([np.searchsorted(values, query.numpy(), side=side) for side in ("left", "right")])
