"""The one source-to-target evaluator: an encoder and a labelled domain in, `Scores` out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from uda_reid.data.images import Photographs
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.protocols import PROTOCOLS
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


@dataclass(frozen=True)
class Evaluator:
    """Scores encoders on one domain; the test images are decoded once and kept.

    Args:
        domain: the domain; its query and gallery splits are searched with and in.
        protocol: a name from `ops.protocols.PROTOCOLS` or `single-gallery-shot`; "auto" is `market` where cameras are
            known, else `any-camera`.
        run: the surroundings.

    Raises:
        DataError: the domain has no query or no gallery images.
        RecipeError: the protocol is unknown.
    """

    domain: Domain
    protocol: str = "auto"
    run: Run = QUIET
    query: Photographs = field(init=False)
    gallery: Photographs = field(init=False)

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        for part in ("query", "gallery"):
            split: Split = getattr(self.domain, part)
            if not len(split):
                raise DataError(f"{self.domain.root}: no {part} images, so nothing can be scored on {self.domain.name}")
            object.__setattr__(self, part, Photographs(split, name=f"{self.domain.name} {part}"))
        if self.protocol == "auto":
            object.__setattr__(self, "protocol", self._by_cameras())

    def _by_cameras(self) -> str:
        known = self.domain.query.cams is not None and self.domain.gallery.cams is not None
        return "market" if known else "any-camera"

    def score(self, encoder: Encoder) -> Scores:
        """Return how well `encoder` retrieves the domain's identities."""
        query = extract(encoder, self.query, run=self.run, description=f"{self.domain.name} queries")
        gallery = extract(encoder, self.gallery, run=self.run, description=f"{self.domain.name} gallery")
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


def evaluate(encoder: Encoder, domain: Domain, *, protocol: str = "auto", run: Run = QUIET) -> Scores:
    """Return how well `encoder` retrieves the identities of `domain` (see `Evaluator`)."""
    return Evaluator(domain, protocol, run).score(encoder)
