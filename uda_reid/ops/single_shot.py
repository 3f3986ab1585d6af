"""The single-gallery-shot CMC of CUHK03, VIPeR and PRID: one random gallery image per identity, repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import normalise, unit_distances
from uda_reid.ops.protocols import IdsLike, Labels, check_labels, check_search, no_match
from uda_reid.types import JUNK, Ids


@dataclass(frozen=True)
class SingleGalleryShot:
    """A single-gallery-shot CMC.

    Args:
        protocol: the name in `PROTOCOLS` that says which images may be drawn for a query.
        ranks: R ranks.
        by_repeat: (repeats, R) float64, share of the counted queries with the match at or before a rank.
        counted: queries with a match in the gallery.
        skipped: queries without one; they are in no mean.
    """

    protocol: str
    ranks: tuple[int, ...]
    by_repeat: npt.NDArray[np.float64]
    counted: int
    skipped: int

    @property
    def cmc(self) -> dict[int, float]:
        """The CMC, averaged over the repeats."""
        return {rank: float(share) for rank, share in zip(self.ranks, self.by_repeat.mean(axis=0), strict=True)}


def single_gallery_shot(
    query: Tensor,
    gallery: Tensor,
    *,
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None = None,
    gallery_cams: IdsLike | None = None,
    protocol: str = "market",
    ranks: Sequence[int] = (1, 5, 10, 20),
    repeats: int = 100,
    seed: int = 0,
    block: int = 256,
) -> SingleGalleryShot:
    """Search among one random gallery image per identity, and average the CMC over repeats.

    In repeat r the gallery is shuffled by the r-th permutation of `np.random.default_rng(seed)`, and a query
    sees, of every identity, the first image that the protocol allows it. A query that has a match thus has
    one in every repeat, and where queries and gallery share no camera a repeat is one draw for all queries.
    Distractors (0) count as one identity. Among equal distances the gallery's order decides.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers; needed unless the protocol is `any-camera`.
        gallery_cams: (G,) integers; needed unless the protocol is `any-camera`.
        protocol: a name in `PROTOCOLS`.
        ranks: positive ranks.
        repeats: number of draws, > 0.
        seed: seed of the draws, >= 0; the global random state is neither read nor changed.
        block: queries searched with at once, > 0.

    Returns:
        The CMC of every repeat and its mean.

    Raises:
        DataError: features or labels are empty, not finite, out of range or of sizes that do not fit, or no
            query has a match.
        RecipeError: the protocol is unknown, or ranks, repeats or block are not positive.

    Source: Cysu/dgd_person_reid utils/cmc.py (100 repeats); Cysu/open-reid
        reid/evaluation_metrics/ranking.py, which also draws among each query's allowed images (10 repeats).

    >>> gallery = torch.eye(3)[[0, 1, 1, 2]]
    >>> pids = {"query_pids": [1, 3], "gallery_pids": [1, 2, 2, 3]}
    >>> single_gallery_shot(gallery[[0, 1]], gallery, protocol="any-camera", ranks=(1, 3), **pids).cmc
    {1: 0.5, 3: 1.0}
    """
    if min(repeats, block, *ranks) < 1:
        raise RecipeError(f"repeats {repeats}, block {block} and ranks {tuple(ranks)} must all be positive")
    labels = check_labels(query_pids, gallery_pids, query_cams, gallery_cams, protocol=protocol)
    check_search(query, gallery, labels)
    generator = np.random.default_rng(seed)
    orders = np.stack([generator.permutation(len(gallery)) for _ in range(repeats)])
    with torch.inference_mode():
        first = _first_matches(normalise(query).to(gallery.device), normalise(gallery), labels, orders, block)
    valid = first[0] >= 0
    if not valid.any():
        raise DataError(no_match(len(query), protocol))
    by_repeat = (first[:, valid, None] < np.asarray(ranks)).mean(axis=1)
    return SingleGalleryShot(protocol, tuple(ranks), by_repeat, int(valid.sum()), int((~valid).sum()))


def _first_matches(query: Tensor, gallery: Tensor, labels: Labels, orders: Ids, block: int) -> Ids:
    """Return the number of wrong images before the match, -1 where there is none: (repeats, Q)."""
    query_pids, query_cams = labels.query_pids.numpy(), labels.query_cams.numpy()
    pids, identities = np.unique(labels.gallery_pids.numpy(), return_inverse=True)
    own = np.where(np.isin(query_pids, pids), np.searchsorted(pids, query_pids), len(pids))
    first = np.full((len(orders), len(query)), -1, dtype=np.int64)
    for camera in np.unique(query_cams):
        answers, others = _shown(labels, int(camera), identities, len(pids), orders)
        rows = np.flatnonzero((query_cams == camera) & (answers[0][own] >= 0))
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            distances = unit_distances(query[torch.from_numpy(part)], gallery).cpu().numpy()
            for repeat in range(len(orders)):
                matches = answers[repeat][own[part]]
                first[repeat, part] = _before(distances, matches, others[repeat], own[part])
    return first


def _shown(labels: Labels, camera: int, identities: Ids, count: int, orders: Ids) -> tuple[Ids, Ids]:
    """Return which image of each identity is shown to queries of one camera: their own, and the others.

    Both are (repeats, count + 1) gallery rows, -1 where no image is allowed; the last column is for
    queries whose identity is not in the gallery.
    """
    real = labels.gallery_pids.numpy() != JUNK
    elsewhere = real & (labels.gallery_cams.numpy() != camera)
    allowed = {
        "market": (elsewhere, real),
        "cross-camera": (elsewhere, elsewhere),
        "any-camera": (real, real),
    }
    tables = []
    for usable in allowed[labels.protocol]:
        table = np.full((len(orders), count + 1), -1, dtype=np.int64)
        for row, order in zip(table, orders, strict=True):
            backwards = order[usable[order]][::-1]
            row[identities[backwards]] = backwards  # of several images the one written last stays: the first
        tables.append(table)
    return tables[0], tables[1]


def _before(distances: npt.NDArray[np.float32], matches: Ids, others: Ids, own: Ids) -> Ids:
    """Count the images of other identities before each query's match: (B,)."""
    identities = np.flatnonzero(others >= 0)
    columns = others[identities]
    found, match = distances[:, columns], distances[np.arange(len(matches)), matches][:, None]
    before = (found < match) | ((found == match) & (columns < matches[:, None]))
    counts: Ids = (before & (identities != own[:, None])).sum(axis=1)
    return counts
