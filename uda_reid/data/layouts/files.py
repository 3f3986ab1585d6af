"""Looking into folders: images and subfolders in the order of their names, without opening a single image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from uda_reid.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""How an image's name may end, in lower case; every other file (Thumbs.db, notes) is none of our business."""
SUFFIXES_TEXT = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)


def images_in(folder: Path) -> tuple[Path, ...]:
    """Return the images that lie directly in `folder`, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    return tuple(folder / name for name in sorted(_images(folder)))


def first_image(folder: Path) -> Path | None:
    """Return the first of `images_in(folder)`, or nothing; to look at a large folder without listing it.

    Raises:
        DataError: the folder cannot be read.
    """
    name = min(_images(folder), default=None)
    return None if name is None else folder / name


def folders_in(folder: Path) -> tuple[Path, ...]:
    """Return the folders that lie directly in `folder`, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    return tuple(folder / name for name in sorted(entry.name for entry in _entries(folder) if entry.is_dir()))


def _images(folder: Path) -> Iterator[str]:
    return (entry.name for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in `folder`, hidden files (.DS_Store, macOS's "._" shadows of images) left out."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be read ({error.strerror}); check the path and its rights"
        ) from error
