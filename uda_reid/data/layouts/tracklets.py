"""Video cut into tracklets, a folder for each: `{train,query,gallery}/IDENTITY/TRACKLET/IMAGE`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from uda_reid.data.layouts.cameras import camera_in, settled
from uda_reid.data.layouts.files import first_image, folder_called, folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.errors import DataError

FIRST_IMAGE = "in query and gallery each tracklet stands by its first image, so their counts are in tracklets"
"""The note on how tracklets are read as images, until features are pooled over them."""
_NAME = re.compile(r"(?:00-1|-1|\d{4})_?C(\d+)(?:T\d+)?_?F\d+", re.ASCII)
"""DukeMTMC-VideoReID's file names in both spellings, `0001C6F0099X30823.jpg` and `0001_C6_F0099_X30823.jpg`, and
MARS', `0001C1T0001F001.jpg`."""


def is_tracklets(folder: Path) -> bool:
    """Return whether the first identity to train on has images in folders for tracklets, and none beside these."""
    training, *tests = (folder_called(folder, split) for split in SPLITS)
    if training is None or not all(tests):
        return False
    identities = folders_in(training)
    if not identities or first_image(identities[0]):
        return False
    return any(first_image(tracklet) for tracklet in folders_in(identities[0]))


def read_tracklets(folder: Path) -> Parts:
    """Read a folder of tracklets: every image trains, a query or a gallery tracklet stands by its first image.

    Cameras come from the file names, else they are unknown; a note says which.

    Raises:
        DataError: a folder is missing or no image is where it has to be.
    """
    rows: list[Row] = []
    for split in SPLITS:
        place = folder_called(folder, split) or folder / split
        found = list(_rows(place, split))
        if not found:
            raise DataError(f"{place}: no images in it below a folder for the identity and one for the tracklet")
        rows += found
    rows, note = settled(rows)
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(FIRST_IMAGE, note, *parts.notes))


def _rows(folder: Path, split: str) -> Iterator[Row]:
    for identity in folders_in(folder):
        for tracklet in folders_in(identity):
            images = images_in(tracklet)
            for path in images if split == "train" else images[:1]:
                match = _NAME.match(path.name)
                camera = match[1] if match else camera_in(path.stem)
                called = tracklet.relative_to(folder.parent).as_posix()
                yield Row(path, identity.name, camera, split, str(path), called)


TRACKLETS = Layout(
    "a folder per tracklet",
    "the folders train, query and gallery with a folder per identity and, in it, per tracklet",
    recognises=is_tracklets,
    read=lambda folder, split: read_tracklets(folder),
)
