"""Market-1501's layout: a folder per split, identity and camera in the file names."""

from __future__ import annotations

import re
from pathlib import Path

from uda_reid.data.layouts.files import SUFFIXES_TEXT, folder_called, folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR

MARKET_NAME = re.compile(r"(-1|\d{4,})_c(\d+)", re.ASCII)
"""Identity and camera at the start of a file's name: `0002_c1s1_000451_03.jpg`, `-1_c3s2_000000_00.jpg`."""
SHORT_NAME = re.compile(r"(-1|\d+)_c(\d+)", re.ASCII)
"""The same with numbers of any length, `2_c1.jpg`, where the folders show already that names hold labels."""

MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
"""The folders of the training images, the queries and the gallery."""


def is_market(folder: Path, *, folders: tuple[str, str, str] = MARKET_FOLDERS) -> bool:
    """Return whether `folder` looks like this layout: it holds the folder of training images."""
    return folder_called(folder, folders[0]) is not None


def read_market(
    folder: Path,
    *,
    pattern: re.Pattern[str] = SHORT_NAME,
    folders: tuple[str, str, str] = MARKET_FOLDERS,
    nested: bool = False,
) -> Parts:
    """Read a folder in Market-1501's layout.

    Junk (-1) and distractors (0) stay in the gallery; elsewhere they are left out, with a note. A query of
    identity 0 shows that identities are numbered from 0, which cannot be told from distractors in the gallery.

    Args:
        folder: the data set.
        pattern: matched at the start of a file's own name; groups are identity and camera.
        folders: the folders of training images, queries and gallery.
        nested: whether every identity's images lie in a folder of their own below these.

    Raises:
        DataError: a folder is missing or holds no image, no image in it is named by the pattern, or a query
            is of identity 0.
    """
    rows, notes = named_rows(folder, pattern=pattern, folders=folders, nested=nested)
    for row in rows:
        if row.split == "query" and int(row.identity) == DISTRACTOR:
            raise DataError(
                f"{row.where}: a query of identity 0, so identities are numbered from 0 here, which Market-1501's "
                "layout keeps for distractors; list the images in a manifest.csv instead"
            )
    parts = arrange(rows, folder=folder, zero_is_distractor=True)
    return parts._replace(notes=(*notes, *parts.notes))


def named_rows(
    folder: Path, *, pattern: re.Pattern[str], folders: tuple[str, str, str], nested: bool = False
) -> tuple[list[Row], list[str]]:
    """Return the images of all splits with the labels in their names, and a note on those named otherwise.

    Args:
        folder: the data set.
        pattern: matched at the start of a file's own name; groups are identity and camera.
        folders: the folders of training images, queries and gallery.
        nested: whether every identity's images lie in a folder of their own below these.

    Raises:
        DataError: a folder is missing or holds no image, or no image in it is named by the pattern.
    """
    rows: list[Row] = []
    strange: list[Path] = []
    total = 0
    for split, name in zip(SPLITS, folders, strict=True):
        place = folder_called(folder, name)
        if place is None:
            layout = f"{folders[0]}, {folders[1]} and {folders[2]}"
            raise DataError(f"{folder}: the folder {name} is missing; this layout has {layout}")
        images = [image for inner in (folders_in(place) if nested else (place,)) for image in images_in(inner)]
        if not images:
            raise DataError(f"{place}: no images in it ({SUFFIXES_TEXT})")
        # The name alone: a parent folder called exp-1_c2 would otherwise make every image junk of camera 2.
        matches = [(path, pattern.match(path.name)) for path in images]
        found = [Row(path, match[1], match[2], split, str(path)) for path, match in matches if match]
        if not found:
            raise DataError(
                f"{place}: none of its {len(images)} images is named by identity and camera, "
                f"like 0002_c1s1_000451_03.jpg; the first is {images[0].name}"
            )
        rows += found
        total += len(images)
        strange += [path for path, match in matches if not match]
    return rows, left_out(strange, total)


def left_out(strange: list[Path], total: int) -> list[str]:
    """Return a note on the images, of so many in all, whose names say nothing, if there are any."""
    if not strange:
        return []
    share = f"{len(strange)} of {total} images ({len(strange) / total:.1%})"
    return [f"{share} not named by identity and camera and so left out, first {strange[0]}"]


MARKET = Layout(
    "Market-1501's folders",
    f"the folders {MARKET_FOLDERS[0]}, {MARKET_FOLDERS[1]} and {MARKET_FOLDERS[2]}",
    recognises=is_market,
    read=lambda folder, split: read_market(folder),
)
