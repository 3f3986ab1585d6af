"""Scores of somebody's features: every definition in one pass, as they are and re-ranked."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from uda_reid.cells import Table
from uda_reid.errors import DataError, RecipeError
from uda_reid.evaluation import SHOT, check_protocol
from uda_reid.foreign.files import zero_rows
from uda_reid.foreign.search import Search, copied
from uda_reid.ops.distance import MEMORY, squared_distances, strip_rows
from uda_reid.ops.jaccard import Reading, rerank
from uda_reid.ops.neighbours import Progress, quiet
from uda_reid.ops.protocols import check_labels, no_match
from uda_reid.ops.ranking import Ranking, rank, rank_distances
from uda_reid.types import JUNK
from uda_reid.writing import replacing

Metric = Literal["cosine", "euclidean"]
PLAIN, RERANKED = "plain", "re-ranked"
PER_QUERY = (
    "ranking", "query", "row", "identity", "camera", "valid", "ap_trapezoid", "ap_step", "ap_merged", "inp",
    "first_match_rank", "tied", "near_pairs",
)  # fmt: skip
EVEN = 1e-3
"""Lengths of features that differ by no more than this share are equal: then Euclidean distances rank as cosine's."""


@dataclass(frozen=True)
class Reranking:
    """How to re-rank by k-reciprocal neighbours; the defaults are those of Zhong et al., CVPR 2017.

    Args:
        k1: size of the neighbour sets.
        k2: neighbours that an encoding is averaged over.
        share: of the original distance (lambda).
        reading: of the publication, by `ops.jaccard`.
        junk: whether junk (identity -1), which no ranking shows, may be a neighbour. torchreid, fast-reid and
            OpenUnReID leave junk out when they read a data set; Person_reID_baseline_pytorch keeps it.
    """

    k1: int = 20
    k2: int = 6
    share: float = 0.3
    reading: Reading = "zhong"
    junk: bool = False


@dataclass(frozen=True)
class Scored:
    """How well queries were answered.

    Args:
        rankings: `PLAIN`, and `RERANKED` where that was asked for.
        seconds: how long each took.
        reranking: how it was re-ranked, or None.
        gallery: the number of gallery images.
        dim: the features' dimensions.
        metric: what they were compared by.
        notes: what was unusual, one line each.
        junk: how many of the gallery images are junk.
    """

    rankings: Mapping[str, Ranking]
    seconds: Mapping[str, float]
    reranking: Reranking | None
    gallery: int
    dim: int
    metric: Metric = "cosine"
    notes: tuple[str, ...] = ()
    junk: int = 0

    @property
    def plain(self) -> Ranking:
        """The ranking by the features as they are."""
        return self.rankings[PLAIN]


def score_features(
    search: Search,
    *,
    protocol: str = "auto",
    metric: Metric = "cosine",
    reranking: Reranking | None = None,
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Scored:
    """Score features, on their own device.

    Args:
        search: queries and gallery with their labels.
        protocol: a name in `ops.protocols.PROTOCOLS`; "auto" is `market` where cameras are known, else `any-camera`.
        metric: `cosine`, or `euclidean`: of features as they are, whose lengths count.
        reranking: rank a second time, by distances re-ranked like this; they are those of cosines.
        memory: bytes of distances computed at once.
        progress: shows the search for neighbours and the re-ranking.

    Returns:
        One ranking, or two.

    Raises:
        DataError: features or labels do not fit each other or the protocol, or no query has a match.
        RecipeError: the protocol is unknown, or an option is out of range.

    >>> search = Search(torch.eye(2), torch.eye(2), np.array([1, 2]), np.array([1, 2]))
    >>> score_features(search).plain.cmc((1,))
    {1: 1.0}
    """
    labels: dict[str, Any] = {
        "query_pids": search.query_pids,
        "gallery_pids": search.gallery_pids,
        "query_cams": search.query_cams,
        "gallery_cams": search.gallery_cams,
        "protocol": _protocol(search, protocol),
    }
    if metric not in get_args(Metric):
        raise RecipeError(f"metric {metric!r} is unknown; use cosine or euclidean")
    if metric == "euclidean" and reranking is not None:
        raise RecipeError("re-ranking compares by cosine; use one or the other, or features of length one")
    if not check_labels(**labels).answerable().any():  # said before the work, and not after it
        raise DataError(no_match(len(search.query), labels["protocol"]))
    rankings, seconds, start = {}, {}, time.perf_counter()
    if metric == "cosine":
        rankings[PLAIN] = rank(search.query, search.gallery, **labels, memory=memory)
    else:
        rankings[PLAIN] = rank_distances(_euclidean(search.query, search.gallery, memory), **labels)
    seconds[PLAIN] = time.perf_counter() - start
    if reranking is not None:
        start = time.perf_counter()
        near = search if reranking.junk else _without_junk(search)
        shown = {**labels, "gallery_pids": near.gallery_pids, "gallery_cams": near.gallery_cams}
        rankings[RERANKED] = rank_distances(_reranked(near, reranking, memory, progress), **shown)
        seconds[RERANKED] = time.perf_counter() - start
    copies = copied(search) if labels["protocol"] == "any-camera" else []
    notes = (*search.notes, *copies, *_uneven(search.query, search.gallery, metric))
    junk = int((search.gallery_pids == JUNK).sum())
    return Scored(rankings, seconds, reranking, len(search.gallery), search.gallery.shape[1], metric, notes, junk)


def write_per_query(path: Path, scored: Scored, search: Search, *, fresh: bool = False) -> None:
    """Write what became of every query, one line per query and ranking, whole or not at all.

    The columns are `PER_QUERY`; measures are blank where a query has no match.

    Raises:
        CheckpointError: the file cannot be written.
        Occupied: `fresh`, and there is a file.
    """
    with replacing(path, fresh=fresh) as file:
        table = Table(file)
        table.write(*PER_QUERY)
        for name, ranking in scored.rankings.items():
            for line in _per_query(name, ranking, search):
                table.write(*line)


def _per_query(name: str, ranking: Ranking, search: Search) -> Iterator[tuple[object, ...]]:
    rows = range(len(search.query)) if search.query_rows is None else search.query_rows.tolist()
    identities = search.query_names or search.query_pids.tolist()
    unknown = [""] * len(search.query)
    cams = search.query_cameras or (unknown if search.query_cams is None else search.query_cams.tolist())
    values = np.stack(
        [
            ranking.average_precision,
            ranking.average_precision_step,
            ranking.average_precision_merged,
            ranking.inverse_penalty,
        ],
        axis=1,
    )
    for query, (row, identity, cam) in enumerate(zip(rows, identities, cams, strict=True)):
        valid = bool(ranking.valid[query])
        measures = [repr(value) for value in values[query].tolist()] if valid else [""] * 4
        first = int(ranking.first[query]) + 1 if valid else ""
        told = (first, int(ranking.tied[query]), int(ranking.near[query]))
        yield name, query, row, identity, cam, int(valid), *measures, *told


def _protocol(search: Search, protocol: str) -> str:
    """Return the protocol that is meant."""
    check_protocol(protocol)
    if protocol == SHOT:
        raise RecipeError(
            f"protocol {SHOT!r} draws galleries at random and knows no average precision; features are scored by "
            "market, cross-camera or any-camera, a model by this one too (--checkpoint)"
        )
    known = search.query_cams is not None and search.gallery_cams is not None
    if protocol == "auto":
        return "market" if known else "any-camera"
    if protocol != "any-camera" and not known:
        raise DataError(f"protocol {protocol!r} needs the camera of every row, and two cameras or more; use any-camera")
    return protocol


def _without_junk(search: Search) -> Search:
    """Return a search whose gallery has no junk."""
    kept = search.gallery_pids != JUNK
    if kept.all():
        return search
    return replace(
        search,
        gallery=search.gallery[torch.from_numpy(kept).to(search.gallery.device)],
        gallery_pids=search.gallery_pids[kept],
        gallery_cams=None if search.gallery_cams is None else search.gallery_cams[kept],
    )


def _reranked(search: Search, reranking: Reranking, memory: int, progress: Progress) -> Iterable[Tensor]:
    """Return re-ranked distances in blocks, which show how far they are."""
    blocks = rerank(
        search.query, search.gallery, k1=reranking.k1, k2=reranking.k2, share=reranking.share,
        reading=reranking.reading, memory=memory, progress=progress,
    )  # fmt: skip
    return progress(blocks, "re-ranking", -(-len(search.query) // strip_rows(len(search.gallery), memory)))


def _euclidean(query: Tensor, gallery: Tensor, memory: int) -> Iterator[Tensor]:
    """Yield squared Euclidean distances, over a power of two near the median of squared lengths, in blocks.

    In float64: of long features with small differences float32 would leave no digit, and one long row needs no more.
    """
    wide = gallery.double()
    size = float(wide.square().sum(1).median())
    scale = 2.0 ** -math.frexp(size)[1]
    for part in torch.split(query, strip_rows(len(gallery), memory, itemsize=16)):
        yield squared_distances(part.double(), wide) * scale


def _lengths(features: Tensor) -> Tensor:
    """Return the lengths of rows, (N,) float64: in float32 the squares of very small entries are 0."""
    parts = [torch.linalg.vector_norm(part.double(), dim=1) for part in torch.split(features, 4096)]
    return torch.cat(parts)


def _uneven(query: Tensor, gallery: Tensor, metric: Metric) -> list[str]:
    """Return a note where the features' lengths would change a ranking by Euclidean distances, or are 0."""
    lengths = torch.cat([_lengths(part).to(query.device) for part in (query, gallery)])
    notes = zero_rows(lengths)
    lengths = lengths[lengths > 0]
    if len(lengths) == 0 or metric == "euclidean" or lengths.max() - lengths.min() <= EVEN * lengths.max():
        return notes
    return [
        *notes,
        f"features of lengths from {float(lengths.min()):.4g} to {float(lengths.max()):.4g} are compared by cosine; a "
        "toolkit that takes Euclidean distances of them (torchreid by default) ranks otherwise, as --metric euclidean "
        "does here",
    ]
