"""Looking into folders: images and subfolders in the order of their names, without opening a single image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from uda_reid.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""How an image's name may end, in lower case; every other file (Thumbs.db, notes) is none of our business."""
SUFFIXES_TEXT = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
UNREAD = (".tif", ".tiff", ".gif", ".jfif", ".jpe", ".heic", ".heif", ".avif", ".jp2", ".ppm")
"""How images end that are not read; people should hear of them."""


def images_in(folder: Path) -> tuple[Path, ...]:
    """Return the images that lie directly in `folder`, sorted by name; also links whose file has gone.

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
    return tuple(folder / name for name in sorted(entry.name for entry in _entries(folder) if _is_folder(entry)))


def folder_called(folder: Path, name: str) -> Path | None:
    """Return the folder called `name` in `folder`, spelt so or else in another case, or nothing.

    Raises:
        DataError: the folder cannot be read.
    """
    if (folder / name).is_dir():
        return folder / name
    if not folder.is_dir():
        return None
    return next((inner for inner in folders_in(folder) if inner.name.casefold() == name.casefold()), None)


def file_called(folder: Path, name: str) -> Path | None:
    """Return the file called `name` in `folder` in whatever case, or nothing.

    Raises:
        DataError: the folder cannot be read.
    """
    same = (entry for entry in _entries(folder) if entry.name.casefold() == name.casefold())
    first = min((entry.name for entry in same if not _is_folder(entry)), default=None)
    return None if first is None else folder / first


class Presence:
    """Whether files are there, asked for very many of them: every folder is listed once, however slow the disk."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self._names:
            entries = _entries(path.parent) if path.parent.is_dir() else ()
            self._names[path.parent] = frozenset(entry.name for entry in entries if _is_image(entry))
        # Hidden files, and names in another case on a disk that tells no case apart, are in no list.
        return path.name in self._names[path.parent] or path.is_file()


class Walk:
    """A way through folders that enters each of them once, so that links in a circle end.

    Args:
        folder: where it begins.
    """

    def __init__(self, folder: Path) -> None:
        self._seen = {_key(folder)}

    def folders_in(self, folder: Path) -> Iterator[Path]:
        """Yield the folders that lie directly in `folder` and were not entered yet, sorted by name."""
        for inner in folders_in(folder):
            key = _key(inner)
            if key not in self._seen:
                self._seen.add(key)
                yield inner


def passed_over(folder: Path) -> list[str]:
    """Return notes on images in formats that are not read, and on links to nothing, in and below `folder`."""
    walk, waiting = Walk(folder), [folder]
    unread: list[Path] = []
    folders: list[Path] = []
    dead: list[Path] = []
    while waiting:
        here = waiting.pop()
        for entry in _entries(here):
            if entry.name.lower().endswith(UNREAD):
                unread.append(here / entry.name)
            elif entry.name.lower().endswith(SUFFIXES) and _is_folder(entry):
                folders.append(here / entry.name)
            elif entry.is_symlink() and not entry.name.lower().endswith(SUFFIXES) and not (here / entry.name).exists():
                dead.append(here / entry.name)
        waiting += walk.folders_in(here)
    notes = []
    if unread:
        kinds = ", ".join(sorted({path.suffix.lower().removeprefix(".") for path in unread}))
        files = "file" if len(unread) == 1 else "files"
        notes.append(f"{len(unread)} {files} of a kind that is not read ({kinds}), first {min(unread)}; convert them")
    if folders:
        are = "1 folder is" if len(folders) == 1 else f"{len(folders)} folders are"
        notes.append(f"{are} called like an image, first {min(folders)}; only what is inside is read")
    if dead:
        links = "1 link leads" if len(dead) == 1 else f"{len(dead)} links lead"
        notes.append(f"{links} to nothing, so what lay there is missing, first {min(dead)}")
    return notes


def _images(folder: Path) -> Iterator[str]:
    return (entry.name for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES) and _is_image(entry))


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A link whose file has gone, a pipe and a socket stay, so that they are called unreadable instead of vanishing.
    return not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _key(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in `folder`, hidden files (.DS_Store, macOS's "._" shadows of images) left out."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be read ({error.strerror}); check the path and its rights"
        ) from error
