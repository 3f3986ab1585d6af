"""Your own data by folders: one folder of crops per identity, below folders for the splits or without."""

from __future__ import annotations

import re
from pathlib import Path

from uda_reid.data.layouts.files import SUFFIXES_TEXT, folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.errors import DataError

_CAMERA = re.compile(r"(?<![a-z0-9])(?:(?<=_)c(\d+)|c(\d+)_|cam(?:era)?[-_]?(\d+))", re.ASCII | re.IGNORECASE)


def read_crops(folder: Path) -> Parts:
    """Read `folder/IDENTITY/IMAGE`, or `folder/{train,query,gallery}/IDENTITY/IMAGE`.

    Cameras come from the file names when every name holds one (see `camera_in`), else they are unknown.

    Raises:
        DataError: a split's folder is missing, there are no images, or none of them has an identity.
    """
    given = [split for split in SPLITS if (folder / split).is_dir()]
    missing = [split for split in SPLITS if split not in given]
    if given and missing:
        raise DataError(
            f"{folder}: has a folder {given[0]} but none called {missing[0]}; give all of {', '.join(SPLITS)}"
        )
    notes: list[str] = []
    rows: list[Row] = []
    for split in given or [""]:
        rows += _crops(folder / split, split, notes)
    cameras = sum(bool(row.camera) for row in rows)
    if cameras < len(rows):
        if cameras:
            notes.append(f"only {cameras} of {len(rows)} file names hold a camera, so cameras count as unknown")
        rows = [row._replace(camera="") for row in rows]
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def camera_in(name: str) -> str:
    """Return the digits of the camera in a file's name, or nothing.

    A camera is written `_c2`, `c2_`, `cam2` or `camera_2`, not inside a longer word.

    >>> [camera_in(name) for name in ("0002_c1s1_000451_03.jpg", "cam04-17.png", "c3_12.jpg", "abc3_1.jpg")]
    ['1', '04', '3', '']
    """
    match = _CAMERA.search(name)
    return next(group for group in match.groups() if group) if match else ""


def _crops(folder: Path, split: str, notes: list[str]) -> list[Row]:
    rows = [
        Row(path, identity.name, camera_in(path.stem), split, str(identity))
        for identity in folders_in(folder)
        for path in images_in(identity)
    ]
    stray = images_in(folder)
    if not rows and stray:
        raise DataError(
            f"{folder}: its {len(stray)} images have no identities, which evaluation needs; "
            "put each identity's images into a folder of its own, or list them in a manifest.csv"
        )
    if not rows:
        raise DataError(
            f"{folder}: no images in it or in the folders in it ({SUFFIXES_TEXT}); "
            "give a folder of crops per identity, a manifest.csv, or Market-1501's layout"
        )
    if stray:
        notes.append(f"{len(stray)} images outside the identities' folders were left out, first {stray[0]}")
    return rows
