"""Market-1501's layout: a folder per split, identity and camera in the file names."""

from __future__ import annotations

import re
from pathlib import Path

from uda_reid.data.layouts.files import SUFFIXES_TEXT, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR

MARKET_NAME = re.compile(r"(-1|\d{4,})_c(\d+)", re.ASCII)
"""Identity and camera at the start of a file's name: `0002_c1s1_000451_03.jpg`, `-1_c3s2_000000_00.jpg`."""

MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
"""The folders of the training images, the queries and the gallery."""


def market_layout(
    title: str, *, pattern: re.Pattern[str] = MARKET_NAME, folders: tuple[str, str, str] = MARKET_FOLDERS
) -> Layout:
    """Return the layout of a folder per split, with identity and camera at the start of the file names.

    Args:
        title: how people call it.
        pattern: matched at the start of a file's own name; groups are identity and camera.
        folders: the folders of training images, queries and gallery.
    """
    return Layout(
        title,
        f"the folders {folders[0]}, {folders[1]} and {folders[2]}",
        recognises=lambda folder: is_market(folder, folders=folders),
        read=lambda folder, split: read_market(folder, pattern=pattern, folders=folders),
    )


def is_market(folder: Path, *, folders: tuple[str, str, str] = MARKET_FOLDERS) -> bool:
    """Return whether `folder` looks like this layout: it holds the folder of training images."""
    return (folder / folders[0]).is_dir()


def read_market(
    folder: Path, *, pattern: re.Pattern[str] = MARKET_NAME, folders: tuple[str, str, str] = MARKET_FOLDERS
) -> Parts:
    """Read a folder in Market-1501's layout.

    Junk (-1) and distractors (0) stay in the gallery; elsewhere they are left out, with a note. A query of
    identity 0 shows that identities are numbered from 0, which cannot be told from distractors in the gallery.

    Args:
        folder: the data set.
        pattern: matched at the start of a file's own name; groups are identity and camera.
        folders: the folders of training images, queries and gallery.

    Raises:
        DataError: a folder is missing or holds no image, no image in it is named by the pattern, or a query
            is of identity 0.
    """
    rows: list[Row] = []
    strange: list[Path] = []
    for split, name in zip(SPLITS, folders, strict=True):
        named, unnamed = _split(folder, name, split, pattern, folders)
        rows += named
        strange += unnamed
    for row in rows:
        if row.split == "query" and int(row.identity) == DISTRACTOR:
            raise DataError(
                f"{row.where}: a query of identity 0, so identities are numbered from 0 here, which Market-1501's "
                "layout keeps for distractors; list the images in a manifest.csv instead"
            )
    parts = arrange(rows, folder=folder, zero_is_distractor=True)
    if strange:
        plural = "images are" if len(strange) > 1 else "image is"
        note = f"{len(strange)} {plural} not named by identity and camera and left out, first {strange[0]}"
        parts = parts._replace(notes=(note, *parts.notes))
    return parts


def _split(
    folder: Path, name: str, split: str, pattern: re.Pattern[str], folders: tuple[str, str, str]
) -> tuple[list[Row], list[Path]]:
    if not (folder / name).is_dir():
        layout = f"{folders[0]}, {folders[1]} and {folders[2]}"
        raise DataError(f"{folder}: the folder {name} is missing; this layout has {layout}")
    images = images_in(folder / name)
    if not images:
        raise DataError(f"{folder / name}: no images in it ({SUFFIXES_TEXT})")
    rows: list[Row] = []
    strange: list[Path] = []
    for path in images:
        # The name alone: a parent folder called exp-1_c2 would otherwise make every image junk of camera 2.
        match = pattern.match(path.name)
        if match:
            rows.append(Row(path, match[1], match[2], split, str(path)))
        else:
            strange.append(path)
    if not rows:
        raise DataError(
            f"{folder / name}: none of its {len(images)} images is named by identity and camera, "
            f"like 0002_c1s1_000451_03.jpg; the first is {images[0].name}"
        )
    return rows, strange


MARKET = market_layout("Market-1501's folders")
