"""Thumbnails that a page carries inside itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uda_reid.data.images import images_of
from uda_reid.errors import DataError
from uda_reid.types import JUNK, Split

HEIGHT, WIDTH, QUALITY = 128, 64, 80


def thumbnails(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return small JPEG copies of images as `data:` addresses, without whatever notes the files carry.

    They are squeezed to one shape, as an encoder sees them.

    Args:
        root: the folder that relative paths start from.
        paths: image files.

    Returns:
        Path -> address; files that are gone or damaged are left out.
    """
    found = {}
    for path in dict.fromkeys(paths):
        images = images_of(Split((root / path,), np.array([JUNK]), None))
        try:
            pixels = images.read(torch.tensor([0]), HEIGHT, WIDTH)[0]
        except DataError:
            continue
        file = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=QUALITY)
        found[path] = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return found
