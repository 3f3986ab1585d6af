"""The one source-to-target evaluator: an encoder and a labelled domain in, `Scores` out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from uda_reid.data.images import Photographs
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import cosine_blocks
from uda_reid.ops.protocols import PROTOCOLS, Labels, check_labels, check_search, no_match
from uda_reid.ops.ranking import rank
from uda_reid.ops.single_shot import single_gallery_shot
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.types import Domain, Encoder, Scores, Split

RANKS = (1, 5, 10, 20)
SHOT = "single-gallery-shot"
"""CUHK03 and VIPeR's protocol: CMC with one random gallery image per identity, averaged over seeded repeats; no mAP."""
REPEATS = 100


def check_protocol(name: str) -> None:
    """Refuse a protocol that nobody knows.

    Raises:
        RecipeError: the name is unknown.
    """
    known = (*PROTOCOLS, SHOT, "auto")
    if name not in known:
        raise RecipeError(f"protocol {name!r} is unknown; use one of: {', '.join(known)}")


def protocol_by_cameras(domain: Domain) -> str:
    """Return the protocol that "auto" stands for: `market` where all test cameras are known, else `any-camera`."""
    known = domain.query.cams is not None and domain.gallery.cams is not None
    return "market" if known else "any-camera"


def why_unscored(domain: Domain) -> str:
    """Return in one line why nothing can be scored on a domain; nothing where it has queries and a gallery."""
    missing = [part for part in ("query", "gallery") if not len(getattr(domain, part))]
    if not missing:
        return ""
    return f"not scored: {domain.name} has no {' and '.join(missing)} images; give it labelled ones to score it"


@dataclass(frozen=True)
class RankedList:
    """The nearest gallery images of one query, after the removals of the protocol.

    Args:
        query: row of the query.
        gallery: rows of gallery images, nearest first, equal distances in the gallery's order.
        right: for each, whether it shows the query's identity.
        distances: for each, the cosine distance to the query, in [0, 2].
    """

    query: int
    gallery: tuple[int, ...]
    right: tuple[bool, ...]
    distances: tuple[float, ...]


class Features(NamedTuple):
    """What an encoder makes of a domain's test images: query (Q, D) and gallery (G, D) float32, on the CPU."""

    query: Tensor
    gallery: Tensor


@dataclass(frozen=True)
class Evaluator:
    """Scores encoders on one domain; the test images are decoded once and kept.

    Args:
        domain: the domain; its query and gallery splits are searched with and in.
        protocol: a name from `ops.protocols.PROTOCOLS` or `single-gallery-shot`; "auto" is `market` where cameras are
            known, else `any-camera`.
        run: the surroundings.

    Raises:
        DataError: the domain has no query or no gallery images, or no query has a valid match.
        RecipeError: the protocol is unknown.
    """

    domain: Domain
    protocol: str = "auto"
    run: Run = QUIET
    query: Photographs = field(init=False)
    gallery: Photographs = field(init=False)

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if why_unscored(self.domain):
            raise DataError(f"{self.domain.root}: {why_unscored(self.domain)}")
        for part in ("query", "gallery"):
            split: Split = getattr(self.domain, part)
            object.__setattr__(self, part, Photographs(split, name=f"{self.domain.name} {part}"))
        if self.protocol == "auto":
            object.__setattr__(self, "protocol", self._by_cameras())
        labels = self._labels(self._by_cameras() if self.protocol == SHOT else self.protocol)
        if not labels.answerable().any():  # said before any training, and not after
            raise DataError(f"{self.domain.root}: {no_match(len(self.query), labels.protocol)}")

    def _labels(self, protocol: str) -> Labels:
        query, gallery = self.domain.query, self.domain.gallery
        return check_labels(query.pids, gallery.pids, query.cams, gallery.cams, protocol=protocol)

    def _by_cameras(self) -> str:
        return protocol_by_cameras(self.domain)

    def features(self, encoder: Encoder) -> Features:
        """Return the embeddings of the test images, for `score` and `ranked`."""
        query = extract(encoder, self.query, run=self.run, description=f"{self.domain.name} queries")
        return Features(query, extract(encoder, self.gallery, run=self.run, description=f"{self.domain.name} gallery"))

    def score(self, encoder: Encoder | Features) -> Scores:
        """Return how well an encoder, or what `features` gave for it, retrieves the domain's identities."""
        features = encoder if isinstance(encoder, Features) else self.features(encoder)
        return self.run.main_only(lambda: self._score(*features))

    def _score(self, query: Tensor, gallery: Tensor) -> Scores:
        if self.protocol == SHOT:
            return self._single_gallery_shot(query, gallery)
        ranking = rank(
            query,
            gallery,
            query_pids=self.domain.query.pids,
            gallery_pids=self.domain.gallery.pids,
            query_cams=self.domain.query.cams,
            gallery_cams=self.domain.gallery.cams,
            protocol=self.protocol,
        )
        return Scores(
            domain=self.domain.name,
            protocol=self.protocol,
            mean_ap=ranking.mean(ranking.average_precision),
            mean_ap_step=ranking.mean(ranking.average_precision_step),
            mean_inp=ranking.mean(ranking.inverse_penalty),
            cmc=ranking.cmc(RANKS),
            counted=ranking.counted,
            skipped=ranking.skipped,
            ties=ranking.ties,
            average_precision=ranking.average_precision,
        )

    def ranked(self, encoder: Encoder | Features, queries: Sequence[int], *, top: int = 10) -> tuple[RankedList, ...]:
        """Return the nearest gallery images of some queries, by the same distances and removals as `score`.

        Under `single-gallery-shot`, whose galleries are drawn, the whole gallery is ranked.

        Args:
            encoder: the encoder, or what `features` gave for it.
            queries: rows of queries.
            top: images per query, at least 1; fewer where the protocol leaves fewer.

        Raises:
            DataError: a row is out of range.
            RecipeError: `top` is not positive.
        """
        if top < 1:
            raise RecipeError(f"top {top} is not a positive number of images")
        for query in queries:
            if not 0 <= query < len(self.query):
                raise DataError(f"query {query} is out of range: there are {len(self.query):,}, counted from 0")
        if not queries:
            return ()
        split, among = self.domain.query, self.domain.gallery
        protocol = self._by_cameras() if self.protocol == SHOT else self.protocol
        labels = check_labels(split.pids, among.pids, split.cams, among.cams, protocol=protocol)
        features, gallery = encoder if isinstance(encoder, Features) else self.features(encoder)
        check_search(features, gallery, labels)
        found: dict[int, RankedList] = {}
        first = 0
        for distances in cosine_blocks(features, gallery):  # the blocks that `score` ranks: equal to the last bit
            for query in set(queries).intersection(range(first, first + len(distances))):
                found[query] = _nearest(query, distances[query - first], labels, top)
            first += len(distances)
        return tuple(found[query] for query in queries)

    def _single_gallery_shot(self, query: Tensor, gallery: Tensor) -> Scores:
        shot = single_gallery_shot(
            query,
            gallery,
            query_pids=self.domain.query.pids,
            gallery_pids=self.domain.gallery.pids,
            query_cams=self.domain.query.cams,
            gallery_cams=self.domain.gallery.cams,
            protocol=self._by_cameras(),
            ranks=RANKS,
            repeats=REPEATS,
            seed=self.run.seed_for("evaluate/single-gallery-shot"),
        )
        return Scores(
            domain=self.domain.name,
            protocol=f"{SHOT}, {REPEATS} repeats, seed {self.run.seed}",
            mean_ap=math.nan,
            mean_ap_step=math.nan,
            mean_inp=math.nan,
            cmc=shot.cmc,
            counted=shot.counted,
            skipped=shot.skipped,
            ties=0,
            average_precision=np.full(len(query), math.nan),
        )


def _nearest(query: int, distances: Tensor, labels: Labels, top: int) -> RankedList:
    right, removed = (mask[0] for mask in labels.masks(slice(query, query + 1)))
    order = distances.masked_fill(removed, torch.inf).argsort(stable=True)
    rows = order[: min(top, int((~removed).sum()))]
    return RankedList(query, tuple(rows.tolist()), tuple(right[rows].tolist()), tuple(distances[rows].tolist()))


def evaluate(encoder: Encoder, domain: Domain, *, protocol: str = "auto", run: Run = QUIET) -> Scores:
    """Return how well `encoder` retrieves the identities of `domain` (see `Evaluator`)."""
    return Evaluator(domain, protocol, run).score(encoder)
