"""Attention maps of some target images, for encoders that have an attention, and `attention.json`, which keeps them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uda_reid.data.images import augment, images_of
from uda_reid.errors import CheckpointError
from uda_reid.models.encoder import Embedder
from uda_reid.reading import read_text
from uda_reid.report.pictures import Picture, picture_of
from uda_reid.report.records import DAMAGE
from uda_reid.run import Run
from uda_reid.types import Domain, Encoder
from uda_reid.writing import replace_file

FORMAT = 1
SHOWN = 10
"""How many images are shown."""
STRONG = 0.05
"""Both maps together, of at most 2: where there is less, the share of either is noise."""

Map = tuple[tuple[float, ...], ...]
"""Rows of a map, its values in [0, 1]."""


@dataclass(frozen=True)
class Parts:
    """What the attention makes of one image.

    Args:
        picture: the image.
        share: how much of the maps is taken for shared, in [0, 1].
        shared: how strong the shared maps are at every place: the mean over the channels of their absolute values.
        specific: the same of the specific maps, on the same scale: 1 is the strongest place of either.
    """

    picture: Picture
    share: float
    shared: Map
    specific: Map


@dataclass(frozen=True)
class AttentionMaps:
    """The attention maps of a run.

    Args:
        root: the target's folder.
        images: the images, at even steps through the target's training images.
    """

    root: str
    images: tuple[Parts, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images that are shown."""
        return tuple(part.picture for part in self.images)


def collect_maps(encoder: Encoder, target: Domain, *, run: Run) -> AttentionMaps | None:
    """Return the attention maps of ten of the target's training images; None where the encoder has no attention.

    Args:
        encoder: the adapted encoder.
        target: the target.
        run: the surroundings.
    """
    if not isinstance(encoder, Embedder) or (attention := encoder.eval().attention) is None:
        return None
    root, count = Path(os.path.abspath(target.root)), len(target.train)  # noqa: PTH100
    rows = torch.tensor([(2 * step + 1) * count // (2 * min(SHOWN, count)) for step in range(min(SHOWN, count))])
    size = int(encoder.spec["height"]), int(encoder.spec["width"])
    pictures = augment(images_of(target.train).read(rows, *size).to(run.device), "none")
    run.prepare(encoder)
    with torch.inference_mode():
        shared, specific = (maps.abs().mean(1).float().cpu() for maps in attention(encoder.early(pictures)))
    highest = torch.maximum(shared, specific).amax((1, 2), keepdim=True).clamp_min(1e-12)
    shares = shared.sum((1, 2)) / (shared + specific).sum((1, 2)).clamp_min(1e-12)
    images = (
        Parts(picture_of(target.train, row, root), round(share, 3), _rounded(mine), _rounded(others))
        for row, share, mine, others in zip(
            rows.tolist(), shares.tolist(), shared / highest, specific / highest, strict=True
        )
    )
    return AttentionMaps(str(root), tuple(images))


def evenness(maps: AttentionMaps) -> str:
    """Return in a sentence how much the attention differs from place to place, where anything is strong enough."""
    shares = []
    for part in maps.images:
        shared, specific = np.array(part.shared), np.array(part.specific)
        strong = shared + specific > STRONG
        shares += (shared[strong] / (shared + specific)[strong]).tolist()
    if not shares:
        return ""
    low, high = min(shares), max(shares)
    told = f"At every place between {low:.0%} and {high:.0%} is taken for shared"
    if low > 0.4 and high < 0.6:
        return f"{told}: the attention hardly tells places apart, and both maps show where features are strong."
    return f"{told}."


def _rounded(values: Tensor) -> Map:
    return tuple(tuple(round(value, 3) for value in row) for row in values.tolist())


def write_maps(maps: AttentionMaps, path: Path) -> None:
    """Write attention maps as JSON, whole or not at all."""
    replace_file(path, (json.dumps({"format": FORMAT, **asdict(maps)}, allow_nan=False) + "\n").encode())


def read_maps(path: Path) -> AttentionMaps:
    """Read attention maps.

    Raises:
        CheckpointError: the file is missing, or holds no attention maps of this version.
    """
    try:
        data = json.loads(read_text(path))
        if data["format"] != FORMAT:
            raise ValueError("another format")
        images = tuple(_parts(entry) for entry in data["images"])
        return AttentionMaps(str(data["root"]), images)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: holds no attention maps, or is damaged ({error}); the command of the run makes them again"
        ) from error


def _parts(data: dict[str, Any]) -> Parts:
    shared, specific = (np.array(data[name], dtype=np.float64) for name in ("shared", "specific"))
    if shared.ndim != 2 or shared.shape != specific.shape or not np.isfinite(shared + specific).all():
        raise ValueError("maps that are no tables of one shape")
    maps = (tuple(map(tuple, values.tolist())) for values in (shared, specific))
    return Parts(Picture(**data["picture"]), float(data["share"]), *maps)
