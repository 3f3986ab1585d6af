from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images.yard import COUNT
from uda_reid.data.images import pixels
from uda_reid.types import Split


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of pixel files, not there yet."""
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pixels, "_DIGESTS", {})
    monkeypatch.setattr(pixels, "SPARE", 0)
    return tmp_path / "cache/pixels"


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Forty different images, not in the order of their contents."""
    noise, paths = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        path = tmp_path / "images" / f"{number:04d}_c1.jpg"
        Image.fromarray(noise.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return Split(tuple(paths), np.arange(COUNT), None)
