"""The nouns of the package: what flows from a folder of crops to a table of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uda_reid.errors import DataError
from uda_reid.run import QUIET, Run

JUNK = -1
"""The identity of junk gallery images: removed from every ranking (Market-1501's "-1" files)."""
DISTRACTOR = 0
"""The identity of distractors: wrong answers to every query (Market-1501's "0000" files)."""
UNKNOWN = -2
"""The identity of a training image that nobody labelled: it can be adapted to, not trained or scored on."""

Ids = npt.NDArray[np.int64]


class Sample(NamedTuple):
    """One crop on disk."""

    path: Path
    pid: int
    cam: int


@dataclass(frozen=True)
class Split:
    """A list of crops, held as columns.

    Args:
        paths: N image files.
        pids: (N,) int64 identities; `JUNK` and `DISTRACTOR` are special in a gallery, `UNKNOWN` in training images.
        cams: (N,) int64 cameras counted from 1, or None where no camera is known.
        tracklets: (N,) int64, images with one number follow one another in one camera's video; None for single images.
        domains: (N,) int64, which of the joined domains an image comes from, counted from 0; None in a single domain.
    """

    paths: tuple[Path, ...]
    pids: Ids
    cams: Ids | None
    tracklets: Ids | None = None
    domains: Ids | None = None

    def __post_init__(self) -> None:
        columns = (self.pids, self.cams, self.tracklets, self.domains)
        if any(column is not None and len(column) != len(self.paths) for column in columns):
            raise DataError("a split's paths, pids, cams, tracklets and domains differ in length")

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Sample]:
        cams = self.cams if self.cams is not None else np.zeros(len(self), dtype=np.int64)
        for path, pid, cam in zip(self.paths, self.pids, cams, strict=True):
            yield Sample(path, int(pid), int(cam))


@dataclass(frozen=True)
class Domain:
    """One camera network, or several joined by `data.union`: training images, queries and a gallery.

    Args:
        name: how the domain is called in tables.
        root: the folder it was read from; of joined domains, the first's.
        train: images to learn from.
        query: images to search with.
        gallery: images to search in.
        notes: what was unusual about the folder, one line each.
        layout: the folder layout that it was recognised as.
        left_out: split -> how many of its images cannot be read and were left out, where that was asked for.
    """

    name: str
    root: Path
    train: Split
    query: Split
    gallery: Split
    notes: tuple[str, ...] = ()
    layout: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether any training image has an identity."""
        return bool((self.train.pids != UNKNOWN).any())


class Images(Protocol):
    """Pictures by row number; where they come from is nobody's business."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Return images as a (B, 3, height, width) uint8 RGB tensor on the CPU, in the order of `rows` (B,) int64."""


class Batch(NamedTuple):
    """What one training step sees: images (B, 3, H, W) float32 in [0, 1], labels (B,) int64, rows (B,) int64."""

    images: Tensor
    labels: Tensor
    rows: Tensor


class Encoder(nn.Module):
    """Images (B, 3, H, W) float32 in [0, 1] to embeddings (B, dim) float32, not normalised.

    `spec` rebuilds the encoder without its weights (`models.encoder.build`); it names the input's height and width.
    """

    dim: int
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """The labelled side: images with identities, and the model trained on them.

    Args:
        name: the domain's name.
        images: N training images.
        pids: (N,) int64, renumbered: 0..C-1 are the identities the classifier knows, C and above are held out.
        cams: (N,) int64 cameras or None; no two domains share a number.
        domains: (N,) int64, which source domain a row comes from, in the order given (all 0 with one source).
        validation: rows of the held-out identities, int64.
        encoder: the trained encoder.
        classifier: embeddings (B, dim) to logits (B, C).
    """

    name: str
    images: Images
    pids: Tensor
    cams: Tensor | None
    domains: Tensor
    validation: Tensor
    encoder: Encoder
    classifier: nn.Module

    @property
    def training(self) -> Tensor:
        """Rows of the identities that the classifier knows, int64, ascending."""
        held_out = torch.zeros(len(self.pids), dtype=torch.bool)
        held_out[self.validation] = True
        return torch.nonzero(~held_out).flatten()


@dataclass(frozen=True)
class Target:
    """The unlabelled side: images by row, cameras only where the strategy declared that it needs them."""

    name: str
    images: Images
    cams: Tensor | None = None


@dataclass(frozen=True)
class AdaptationResult:
    """What a strategy returns.

    Args:
        encoder: the adapted encoder, a module of its own.
        history: one mapping of plain numbers per epoch or round.
        facts: the supervision ledger: what the strategy knew and how it chose (printed beside every number).
    """

    encoder: Encoder
    history: tuple[Mapping[str, float], ...] = ()
    facts: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """How well an encoder retrieves identities in one domain; every number is a fraction in [0, 1].

    Args:
        domain: the domain's name.
        protocol: the named rule for which gallery images a query may be matched with, and how CMC is computed.
        mean_ap: mean average precision by the trapezoid rule (Market-1501 code) over the counted queries.
        mean_ap_step: the same by the step rule (most later toolkits).
        mean_inp: mean inverse negative penalty.
        cmc: rank -> share of the counted queries with a match at or before that rank.
        counted: queries with at least one valid match.
        skipped: queries without one; they are in no mean.
        ties: counted queries whose AP depends on how equal distances are ordered.
        average_precision: (Q,) float64 trapezoid AP of each query, NaN where skipped.
    """

    domain: str
    protocol: str
    mean_ap: float
    mean_ap_step: float
    mean_inp: float
    cmc: Mapping[int, float]
    counted: int
    skipped: int
    ties: int
    average_precision: npt.NDArray[np.float64]

    @property
    def mean_ap_all(self) -> float:
        """The trapezoid mAP over all queries, skipped ones counted as 0 (Person_reID_baseline's denominator)."""
        return self.mean_ap * self.counted / max(self.counted + self.skipped, 1)


@runtime_checkable
class Strategy(Protocol):
    """A way to adapt. A strategy is its hyper-parameters: a frozen dataclass whose defaults are the paper's values."""

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return an encoder adapted to `target`; the source's modules and the global random state stay as they are."""
