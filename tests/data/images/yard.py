"""A split of forty images, and what is kept of their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from uda_reid.data.images import Photographs, images_of
from uda_reid.types import Split

COUNT, HEIGHT, WIDTH = 40, 20, 12
ROWS = torch.arange(COUNT)


class Watcher:
    """Reporter that keeps what it is told: descriptions with the number of items, and lines."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int]] = []
        self.lines: list[str] = []

    def progress(self, items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        done = list(items)
        assert total in (None, len(done))
        self.shown.append((description, len(done)))
        return done


def mapped(split: Split, *, cache_bytes: int = 0) -> Photographs:
    return Photographs(split, name="yard", cache_bytes=cache_bytes, mapped_above=0)


def plain(split: Split, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return images_of(split, cache_bytes=0).read(torch.arange(len(split)), height, width)


def preloaded(split: Split, height: int = HEIGHT, width: int = WIDTH) -> tuple[Photographs, Watcher]:
    """Return images with their pixels in a file, and what was said meanwhile."""
    images, watcher = mapped(split), Watcher()
    images.preload(height, width, watcher.progress, watcher.lines.append)
    return images, watcher


def files(cache: Path) -> list[Path]:
    """Return all files of pixels, finished or not; the locks are left behind."""
    return sorted(path for path in cache.iterdir() if path.suffix != ".lock") if cache.is_dir() else []


READ, DECODED = ("reading yard", COUNT), ("decoding yard", COUNT)
