"""Video cut into tracklets, a folder for each: `{train,query,gallery}/IDENTITY/TRACKLET/IMAGE`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from uda_reid.data.layouts.cameras import camera_in, camera_of, settled
from uda_reid.data.layouts.crops import NO_IDENTITY
from uda_reid.data.layouts.files import first_image, folder_called, folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.unlabelled import MARKER, is_marked, unlabelled_rows
from uda_reid.errors import DataError

FIRST_IMAGE = "in query and gallery each tracklet stands by its first image, so their counts are in tracklets"
"""The note on how tracklets are read as images, until features are pooled over them."""
_NAME = re.compile(r"(?:00-1|-1|\d{4})_?C(\d+)(?:T\d+)?_?F\d+", re.ASCII)
"""DukeMTMC-VideoReID's file names in both spellings, `0001C6F0099X30823.jpg` and `0001_C6_F0099_X30823.jpg`, and
MARS', `0001C1T0001F001.jpg`."""


def is_tracklets(folder: Path) -> bool:
    """Return whether the first identity with images has them in folders for tracklets, and none beside these.

    That is one to train on or, where the owner says that no folder below `train` is an identity's, a query.
    """
    places = [folder_called(folder, split) for split in SPLITS]
    if not all(places):
        return False
    for identity in folders_in(next(place for place in places if place and not is_marked(place))):
        if first_image(identity):
            return False
        if any(first_image(tracklet) for tracklet in folders_in(identity)):
            return True
    return False


def read_tracklets(folder: Path) -> Parts:
    """Read a folder of tracklets: every image trains, a query or a gallery tracklet stands by its first image.

    Cameras come from the file names, else they are unknown; a note says which. Below `train` there may be images
    without identities instead, where its owner says so.

    Raises:
        DataError: a folder is missing, no image is where it has to be, or a folder is evidently not an identity's.
    """
    rows: list[Row] = []
    train: list[Row] = []
    notes: list[str] = []
    for split in SPLITS:
        place = folder_called(folder, split) or folder / split
        if split == "train" and is_marked(place):
            train, found_notes = unlabelled_rows(place)
            notes += [f"train: {note}" for note in found_notes]
            continue
        found = list(_rows(place, split))
        if not found:
            raise DataError(f"{place}: no images in it below a folder for the identity and one for the tracklet")
        rows += found
    rows, note = settled(rows)
    parts = arrange([*train, *rows], folder=folder)
    return parts._replace(notes=(FIRST_IMAGE, *notes, note, *parts.notes))


def _rows(folder: Path, split: str) -> Iterator[Row]:
    identities = folders_in(folder)
    cameras = all(camera_of(identity.name) for identity in identities)
    for identity in identities:
        if cameras or NO_IDENTITY.fullmatch(identity.name):
            marker = (
                f"put a file {MARKER} into {folder} to read its images without labels, or " if split == "train" else ""
            )
            raise DataError(
                f"{identity}: {identity.name!r} names a split, a camera or a kind of images, not an identity, so the "
                f"folders in it are no tracklets of one; {marker}list the images in a manifest.csv"
            )
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
