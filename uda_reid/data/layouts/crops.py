"""Your own data by folders: one folder of crops per identity, below folders for the splits or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from uda_reid.data.layouts.cameras import camera_in, settled
from uda_reid.data.layouts.files import SUFFIXES_TEXT, first_image, folder_called, folders_in, images_in, passed_over
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange, count
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET_NAME
from uda_reid.data.layouts.unlabelled import MARKER, is_unlabelled, unlabelled_rows
from uda_reid.errors import DataError

NO_IDENTITY = re.compile(
    r"cam[-_]?\d+|cam[-_][a-z]|camera[-_]?(\d+|[a-z])|images?([-_].*)?|imgs?|bbox([-_].*)?|bounding_box(es)?([-_].*)?"
    r"|gt[-_].*|labell?ed|detected|(train|val|test)([-_].*)?|training|validation|testing|query|gallery|probe"
    r"|multi[-_]query|(single|multi)[-_]shot|distractors?",
    re.ASCII | re.IGNORECASE,
)
"""Folders that published data sets divide their images by: splits, cameras and how the crops were made."""
_FEW, _MANY = 5, 10
"""Fewer folders than this, none called by a number, with so many images each may be places instead of people."""


def read_crops(folder: Path) -> Parts:
    """Read `folder/IDENTITY/IMAGE`, or `folder/{train,query,gallery}/IDENTITY/IMAGE`.

    Cameras come from the file names when every name holds one (see `camera_in`), else they are unknown; the
    notes say which, and what was left out. Below `train` there may be images without identities instead: then the
    folder can be a target, and query and gallery may be absent if neither is given.

    Raises:
        DataError: a split's folder is missing, there are no images, none of them has an identity, or a folder
            is evidently not one identity's, by its name or by the names of the files in it.
    """
    given = {split: place for split in SPLITS if (place := folder_called(folder, split))}
    missing = [split for split in SPLITS if split not in given]
    unlabelled = "train" in given and is_unlabelled(given["train"])
    if given and missing and not (unlabelled and list(given) == ["train"]):
        raise DataError(
            f"{folder}: has a folder {next(iter(given))} but none called {missing[0]}; give all of {', '.join(SPLITS)}"
        )
    notes = _beside(folder) if given else []
    rows: list[Row] = []
    if unlabelled:
        rows, found = unlabelled_rows(given["train"])
        notes += [f"train: {note}" for note in found]
    labelled = {split: place for split, place in (given or {"": folder}).items() if split != "train" or not unlabelled}
    if labelled:
        named = [row for split, place in labelled.items() for row in _crops(place, split, notes)]
        _check_names(named)
        crops, note = settled(named)
        rows += crops
        notes.append(f"query and gallery: {note}" if unlabelled else note)
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def _crops(folder: Path, split: str, notes: list[str]) -> list[Row]:
    rows: list[Row] = []
    partly: list[Path] = []
    identities = folders_in(folder)
    for identity in identities:
        _check_identity(identity)
        images = images_in(identity)
        rows += [Row(path, identity.name, camera_in(path.stem), split, str(identity)) for path in images]
        if not images or folders_in(identity):
            partly.append(identity)
    stray = images_in(folder)
    if not rows:
        raise _nothing(folder, identities, stray)
    if len(identities) == 1 and not split:
        raise _alone(identities[0], len(rows), len(stray))
    if stray:
        notes.append(f"{count(len(stray), 'image')} outside the identities' folders left out, first {stray[0]}")
    if partly:
        notes.append(
            f"{count(len(partly), 'folder')} of identities with no image or with folders inside, first {partly[0]}; "
            "only images that lie directly in an identity's folder are read"
        )
    named = not any(identity.name.isdecimal() for identity in identities)
    if not split and named and len(identities) < _FEW and len(rows) >= _MANY * len(identities):
        notes.append(f"read as {len(identities)} identities; if these are cameras or places, put a file {MARKER} there")
    return rows


def _nothing(folder: Path, identities: Sequence[Path], stray: Sequence[Path]) -> DataError:
    """Return the error for a folder without an image in any identity's folder."""
    if stray:
        return DataError(
            f"{folder}: its {len(stray)} images have no identities, which evaluation needs; "
            "put each identity's images into a folder of its own, or list them in a manifest.csv"
        )
    deeper = (
        (identity, image) for identity in identities for inner in folders_in(identity) if (image := first_image(inner))
    )
    for identity, image in deeper:
        flat = f"{identity.name}/{image.parent.name}_{image.name}"
        itself = f"give {identity} itself, " if len(identities) == 1 else ""
        return DataError(
            f"{folder}: the images lie one folder deeper than an identity's, as {image}; {itself}"
            f"move them up, as {flat}, or list them in a manifest.csv"
        )
    others = "".join(f"; {note}" for note in passed_over(folder))
    return DataError(
        f"{folder}: no images in it or in the folders in it ({SUFFIXES_TEXT}){others}; "
        "give a folder of crops per identity, a manifest.csv, or Market-1501's layout"
    )


def _alone(identity: Path, images: int, stray: int) -> DataError:
    """Return the error for a single identity's folder, which is more likely no identity's."""
    beside = f" beside {count(stray, 'loose image')}" if stray else ""
    return DataError(
        f"{identity.parent}: one folder, {identity.name}, with {count(images, 'image')}{beside}, read as 1 identity, "
        f"too few to train and test on; to read all images without labels put a file {MARKER} into {identity.parent}"
    )


def _check_identity(folder: Path) -> None:
    """Raise a DataError when the folder is evidently not that of one identity."""
    if NO_IDENTITY.fullmatch(folder.name):
        raise DataError(
            f"{folder}: {folder.name!r} names a split, a camera or a kind of images, not an identity, so these are "
            "no folders of crops per identity; give that folder itself to read its images without labels, "
            "or list the images in a manifest.csv"
        )


def _check_names(rows: Sequence[Row]) -> None:
    """Raise a DataError when images of several identities, by their names, lie in one folder.

    Where most names begin alike in several folders, as `0001_c1`, they number something else, such as frames.
    """
    beginnings: dict[str, set[str]] = {}
    people: dict[str, dict[str, str]] = {}
    for row in rows:
        match = MARKET_NAME.match(row.path.name)
        if match:
            beginnings.setdefault(match[0], set()).add(row.where)
            people.setdefault(row.where, {}).setdefault(match[1], row.path.name)
    mixed = next((where for where, examples in people.items() if len(examples) > 1), None)
    again = sum(len(folders) > 1 for folders in beginnings.values())
    if mixed is None or 2 * again > len(beginnings):
        return
    first, second = list(people[mixed].values())[:2]
    raise DataError(
        f"{mixed}: {first} and {second} are named like images of different identities, so this is not one "
        "identity's folder; list the images in a manifest.csv"
    )


def _beside(folder: Path) -> list[str]:
    """Return a note when there are folders beside those of the splits, such as val or train_all."""
    others = [other.name for other in folders_in(folder) if other.name.casefold() not in SPLITS]
    return [f"only {', '.join(SPLITS)} are read, ignored beside them: {', '.join(others)}"] if others else []


CROPS = Layout(
    "a folder per identity",
    "a folder of crops per identity, below train, query and gallery or without",
    recognises=lambda folder: bool(folders_in(folder)),
    read=lambda folder, split: read_crops(folder),
)
