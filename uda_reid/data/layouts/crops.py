"""Your own data by folders: one folder of crops per identity, below folders for the splits or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from uda_reid.data.layouts.cameras import camera_in, settled
from uda_reid.data.layouts.files import SUFFIXES_TEXT, folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET_NAME
from uda_reid.data.layouts.unlabelled import is_unlabelled, unlabelled_rows
from uda_reid.errors import DataError

_NO_IDENTITY = re.compile(
    r"cam[-_]?\d+|cam[-_][a-z]|camera[-_]?(\d+|[a-z])|images?([-_].*)?|imgs?|bbox([-_].*)?|bounding_box(es)?([-_].*)?"
    r"|gt[-_].*|labell?ed|detected|(train|val|test)([-_].*)?|training|validation|testing|query|gallery|probe"
    r"|multi[-_]query|(single|multi)[-_]shot|distractors?",
    re.ASCII | re.IGNORECASE,
)
"""Folders that published data sets divide their images by: splits, cameras and how the crops were made."""


def read_crops(folder: Path) -> Parts:
    """Read `folder/IDENTITY/IMAGE`, or `folder/{train,query,gallery}/IDENTITY/IMAGE`.

    Cameras come from the file names when every name holds one (see `camera_in`), else they are unknown; the
    notes say which, and what was left out. Below `train` there may be images without identities instead: then the
    folder can be a target, and query and gallery may be absent if neither is given.

    Raises:
        DataError: a split's folder is missing, there are no images, none of them has an identity, or a folder
            is evidently not one identity's, by its name or by the names of the files in it.
    """
    given = [split for split in SPLITS if (folder / split).is_dir()]
    missing = [split for split in SPLITS if split not in given]
    unlabelled = "train" in given and is_unlabelled(folder / "train")
    if given and missing and not (unlabelled and given == ["train"]):
        raise DataError(
            f"{folder}: has a folder {given[0]} but none called {missing[0]}; give all of {', '.join(SPLITS)}"
        )
    notes = _beside(folder) if given else []
    rows: list[Row] = []
    if unlabelled:
        rows, found = unlabelled_rows(folder / "train")
        notes += [f"train: {note}" for note in found]
    labelled = [split for split in given or [""] if not (unlabelled and split == "train")]
    if labelled:
        crops, note = settled([row for split in labelled for row in _crops(folder / split, split, notes)])
        rows += crops
        notes.append(f"query and gallery: {note}" if unlabelled else note)
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def _crops(folder: Path, split: str, notes: list[str]) -> list[Row]:
    rows: list[Row] = []
    partly: list[Path] = []
    for identity in folders_in(folder):
        images = images_in(identity)
        _check_identity(identity, images)
        rows += [Row(path, identity.name, camera_in(path.stem), split, str(identity)) for path in images]
        if not images or folders_in(identity):
            partly.append(identity)
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
    if partly:
        notes.append(
            f"{len(partly)} identities' folders hold no image or hold folders, first {partly[0]}; "
            "only images that lie directly in an identity's folder are read"
        )
    return rows


def _check_identity(folder: Path, images: Sequence[Path]) -> None:
    """Raise a DataError when the folder is evidently not that of one identity."""
    if _NO_IDENTITY.fullmatch(folder.name):
        raise DataError(
            f"{folder}: {folder.name!r} names a split, a camera or a kind of images, not an identity, so these are "
            "no folders of crops per identity; give that folder itself to read its images without labels, "
            "or list the images in a manifest.csv"
        )
    examples: dict[str, Path] = {}
    for path in images:
        match = MARKET_NAME.match(path.name)
        if match:
            examples.setdefault(match[1], path)
    if len(examples) > 1:
        first, second = (path.name for path in list(examples.values())[:2])
        raise DataError(
            f"{folder}: {first} and {second} are named like images of different identities, so this is not one "
            "identity's folder; list the images in a manifest.csv"
        )


def _beside(folder: Path) -> list[str]:
    """Return a note when there are folders beside those of the splits, such as val or train_all."""
    others = [other.name for other in folders_in(folder) if other.name not in SPLITS]
    return [f"only {', '.join(SPLITS)} are read, ignored beside them: {', '.join(others)}"] if others else []


CROPS = Layout(
    "a folder per identity",
    "a folder of crops per identity, below train, query and gallery or without",
    recognises=lambda folder: bool(folders_in(folder)),
    read=lambda folder, split: read_crops(folder),
)
