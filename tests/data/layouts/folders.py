"""Folders in every layout for the tests, and short ways to look at what was read from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from uda_reid.data.layouts import read
from uda_reid.errors import DataError
from uda_reid.types import Domain, Split

TRAIN = ("0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c1s1_000001_01.jpg")
QUERY = ("0004_c1s1_000001_00.jpg", "0005_c2s1_000001_00.jpg")
GALLERY = (
    "-1_c1s1_000001_01.jpg",
    "0000_c2s1_000001_01.jpg",
    "0004_c2s1_000001_01.jpg",
    "0005_c1s1_000001_01.jpg",
)


def touch(folder: Path, names: Iterable[str]) -> None:
    """Write files that are no images: reading a layout must not decode anything."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")


def market(
    folder: Path,
    *,
    train: Iterable[str] = TRAIN,
    query: Iterable[str] = QUERY,
    gallery: Iterable[str] = GALLERY,
) -> Path:
    touch(folder / "bounding_box_train", train)
    touch(folder / "query", query)
    touch(folder / "bounding_box_test", gallery)
    return folder


def manifest(folder: Path, text: str, *, images: Iterable[str] = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")) -> Path:
    touch(folder, images)
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


def names(split: Split) -> list[str]:
    return [path.name for path in split.paths]


def cams(split: Split) -> list[int]:
    assert split.cams is not None
    return [int(cam) for cam in split.cams]


def tracklets(split: Split) -> list[int]:
    assert split.tracklets is not None
    return [int(number) for number in split.tracklets]


def mentions(domain: Domain, text: str) -> bool:
    return any(text in note for note in domain.notes)


def fault(name: str | Path, root: Path) -> str:
    with pytest.raises(DataError, match=r"^.+$") as caught:
        read(str(name), root)
    message = str(caught.value)
    assert "\n" not in message
    return message
