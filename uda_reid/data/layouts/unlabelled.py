"""A target that nobody labelled: images that lie flat, or in folders for cameras and dates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from uda_reid.data.layouts.cameras import camera_in, camera_of, settled
from uda_reid.data.layouts.files import SUFFIXES_TEXT, Walk, first_image, folder_called, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET_NAME
from uda_reid.errors import DataError

_DATE = r"(?:19|20)\d\d[-_.](?:0?[1-9]|1[0-2])(?:[-_.](?:0?[1-9]|[12]\d|3[01]))?"
_COMPACT = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_REVERSED = r"(?:0?[1-9]|[12]\d|3[01])[-_.](?:0?[1-9]|1[0-2])[-_.](?:19|20)\d\d"
_TIME = r"(?:[01]?\d|2[0-3])(?:h|[-_.:h][0-5]\d(?:[-_.:m][0-5]\d)?)"
_WHEN = re.compile(
    rf"(?:{_DATE}|{_COMPACT}|{_REVERSED})(?:[-_ T]+{_TIME})?|(?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|day[-_ ]?\d+|morning|noon|afternoon|evening|night",
    re.ASCII | re.IGNORECASE,
)
"""Names of folders that say when, and so do not say who."""


MARKER = "unlabelled.txt"
"""A file, empty or not, that says of its folder that nothing below it is labelled, whatever the names are."""


def is_marked(folder: Path) -> bool:
    """Return whether the owner says that nothing in `folder` is labelled."""
    return (folder / MARKER).is_file()


def is_unlabelled(folder: Path) -> bool:
    """Return whether every image in `folder` lies flat or below folders named like a camera or a date.

    Folders without any image in them do not count. What the owner says goes before the names.
    """
    return is_marked(folder) or _is_unlabelled(folder, Walk(folder))


def _is_unlabelled(folder: Path, walk: Walk) -> bool:
    found = first_image(folder) is not None
    for inner in walk.folders_in(folder):
        if not _holds_image(inner, Walk(inner)):
            continue
        if not (camera_of(inner.name) or _WHEN.fullmatch(inner.name)) or not _is_unlabelled(inner, walk):
            return False
        found = True
    return found


def unlabelled_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """Return the images of a folder that `is_unlabelled`, as training images without identities, and notes on it.

    Cameras come from the names of the folders when every image lies below one for a camera, else from the file names
    when every one holds a camera, else they are unknown.
    """
    found = list(_images(folder, Walk(folder)))
    rows = [Row(path, "", camera, "train", str(path)) for path, camera in found]
    if rows and all(row.camera for row in rows):
        cameras = len({row.camera.lstrip("0") for row in rows})
        example = f"as in {rows[0].path.relative_to(folder).as_posix()}; give a manifest.csv if that is wrong"
        note = f"{cameras} camera{'s' if cameras > 1 else ''} read from the names of folders, {example}"
    else:
        rows, note = settled([row._replace(camera=camera_in(row.path.stem)) for row in rows])
    notes = [note]
    named = [row.path.name for row in rows if MARKET_NAME.match(row.path.name)]
    if named:
        notes.append(
            f"{len(named)} files are named like Market-1501's, as {named[0]}; the identities in the names are not read"
        )
    return rows, notes


def read_unlabelled(folder: Path) -> Parts:
    """Read a folder of images without identities: all of them train, there are no queries and no gallery.

    Raises:
        DataError: there are no images.
    """
    rows, notes = unlabelled_rows(folder)
    if not rows:
        raise DataError(f"{folder}: no images in it or in the folders in it ({SUFFIXES_TEXT})")
    if is_marked(folder):
        notes.append(f"read without labels, as {MARKER} in it says")
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def _images(folder: Path, walk: Walk, camera: str = "") -> Iterator[tuple[Path, str]]:
    """Yield the images in and below a folder, each with the camera of the innermost folder called after one."""
    for path in images_in(folder):
        yield path, camera
    for inner in walk.folders_in(folder):
        yield from _images(inner, walk, camera_of(inner.name) or camera)


def _holds_image(folder: Path, walk: Walk) -> bool:
    return first_image(folder) is not None or any(_holds_image(inner, walk) for inner in walk.folders_in(folder))


UNLABELLED = Layout(
    "images without labels",
    "images that lie flat or in folders for cameras or dates",
    recognises=lambda folder: (
        is_marked(folder) or (not any(folder_called(folder, split) for split in SPLITS) and is_unlabelled(folder))
    ),
    read=lambda folder, split: read_unlabelled(folder),
)
