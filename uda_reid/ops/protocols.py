"""Which gallery images a query is ranked against: the named protocols, and the labels they apply to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import check_features
from uda_reid.types import JUNK, Ids

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        "market": "gallery images with the query's identity and camera, and junk (-1), are removed; "
        "distractors (0) stay as wrong answers",
        "cross-camera": "every gallery image of the query's camera, and junk (-1), are removed; "
        "distractors (0) stay as wrong answers",
        "any-camera": "cameras are unknown or unused and only junk (-1) is removed; "
        "distractors (0) stay as wrong answers",
    }
)
"""The named rules for which gallery images a query is ranked against."""

IdsLike = Ids | Tensor | Sequence[int]


@dataclass(frozen=True)
class Labels:
    """Checked identities and cameras of a search; cameras are all 0 and unused under `any-camera`."""

    protocol: str
    query_pids: Tensor
    gallery_pids: Tensor
    query_cams: Tensor
    gallery_cams: Tensor

    def to(self, device: torch.device) -> Labels:
        """Return the same labels on another device."""
        columns = (self.query_pids, self.gallery_pids, self.query_cams, self.gallery_cams)
        return Labels(self.protocol, *(column.to(device) for column in columns))

    def masks(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return which gallery images match, and which are removed, for some queries: two (rows, G) bool."""
        same = self.query_pids[rows, None] == self.gallery_pids[None, :]
        removed = (self.gallery_pids == JUNK)[None, :].expand_as(same)
        if self.protocol != "any-camera":
            own_camera = self.query_cams[rows, None] == self.gallery_cams[None, :]
            removed = removed | (own_camera & same if self.protocol == "market" else own_camera)
        return same & ~removed, removed

    def answerable(self) -> Tensor:
        """Return which queries have a match that is not removed: (Q,) bool."""
        cameras: dict[int, set[int]] = {}
        for pid, cam in zip(self.gallery_pids.tolist(), self.gallery_cams.tolist(), strict=True):
            cameras.setdefault(pid, set()).add(cam)
        # Of matches, `market` and `cross-camera` remove the same: those of the query's camera.
        own = self.protocol != "any-camera"
        queries = zip(self.query_pids.tolist(), self.query_cams.tolist(), strict=True)
        found = [bool(cameras.get(pid, set()) - ({cam} if own else set())) for pid, cam in queries]
        return torch.tensor(found, dtype=torch.bool, device=self.query_pids.device)


def check_labels(
    query_pids: IdsLike,
    gallery_pids: IdsLike,
    query_cams: IdsLike | None,
    gallery_cams: IdsLike | None,
    *,
    protocol: str,
    device: torch.device | str = "cpu",
) -> Labels:
    """Check identities and cameras against the protocol.

    Args:
        query_pids: (Q,) integers > 0.
        gallery_pids: (G,) integers >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) integers, or None under `any-camera`.
        gallery_cams: (G,) integers, or None under `any-camera`.
        protocol: a name in `PROTOCOLS`.
        device: where the result's tensors live.

    Returns:
        The same as int64 tensors.

    Raises:
        RecipeError: the protocol is unknown.
        DataError: an array is empty, of another length or type, or out of range, or cameras are missing.
    """
    if protocol not in PROTOCOLS:
        raise RecipeError(f"protocol {protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
    query, gallery = _ids(query_pids, "query_pids"), _ids(gallery_pids, "gallery_pids")
    for name, pids, lowest in (("query_pids", query, 1), ("gallery_pids", gallery, JUNK)):
        if int(pids.min()) < lowest:
            row = int((pids < lowest).nonzero()[0])
            raise DataError(f"{name}: identity {int(pids[row])} in row {row}; identities must be >= {lowest} here")
    if protocol == "any-camera":
        cams = torch.zeros_like(query), torch.zeros_like(gallery)
    elif query_cams is None or gallery_cams is None:
        raise DataError(
            f"protocol {protocol!r} needs the camera of every query and every gallery image; "
            "where no camera is known use protocol 'any-camera'"
        )
    else:
        cams = _ids(query_cams, "query_cams"), _ids(gallery_cams, "gallery_cams")
    for name, pids, cameras in (("query", query, cams[0]), ("gallery", gallery, cams[1])):
        if len(pids) != len(cameras):
            raise DataError(f"{len(pids)} {name}_pids but {len(cameras)} {name}_cams; they must be equally many")
    return Labels(protocol, query, gallery, *cams).to(torch.device(device))


def _ids(values: IdsLike, name: str) -> Tensor:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise DataError(f"{name}: {array.dtype} of shape {array.shape} given, integers (N,) with N >= 1 expected")
    return torch.from_numpy(array.astype(np.int64))


def check_search(query: Tensor, gallery: Tensor, labels: Labels) -> None:
    """Refuse features that are unusable or do not fit each other or their labels.

    Args:
        query: (Q, D) float32, finite.
        gallery: (G, D) float32, finite.
        labels: the Q and G labels.

    Raises:
        DataError: the features are empty, not finite, not float32, or do not fit each other or the labels.
    """
    check_features(query, "query features")
    check_features(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise DataError(f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}")
    for name, features, pids in (
        ("query", query, labels.query_pids),
        ("gallery", gallery, labels.gallery_pids),
    ):
        if len(features) != len(pids):
            raise DataError(f"{len(features)} {name} features but {len(pids)} {name}_pids; they must be equally many")


def no_match(queries: int, protocol: str) -> str:
    """Return the one-line message for a search in which no query can be answered."""
    advice = (
        "check the identities" if protocol == "any-camera" else "check the identities and cameras, or use any-camera"
    )
    return (
        f"none of the {queries} queries has a match in the gallery under protocol {protocol!r} "
        f"({PROTOCOLS[protocol]}); {advice}"
    )
