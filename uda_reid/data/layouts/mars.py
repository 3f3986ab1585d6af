"""MARS: Market-1501's people as tracklets, divided by the tables in its folder `info`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uda_reid.data.layouts.files import Presence, first_image, folders_in, images_in
from uda_reid.data.layouts.labels import Parts, Row, arrange, choose_queries
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import left_out
from uda_reid.data.layouts.tracklets import FIRST_IMAGE
from uda_reid.errors import DataError
from uda_reid.reading import check_regular, read_text
from uda_reid.types import Ids

_NAME = re.compile(r"(00-1|\d{4})C(\d)T\d+(?=F\d)", re.ASCII)
"""Identity, camera and tracklet at the start of a file's name: `0001C1T0001F001.jpg`; junk is `00-1`."""
_TRAIN, _TEST = "bbox_train", "bbox_test"
_TABLES = ("train_name.txt", "test_name.txt", "tracks_train_info.mat", "tracks_test_info.mat", "query_IDX.mat")
_RULE_NOTE = (
    "there is no folder info, so this is not the published division of the test: of each identity the first tracklet "
    "of each camera is a query where a match remains"
)
_TABLES_NOTE = (
    "a tracklet that is a query is not in the gallery; the owners' own evaluation searches all test tracklets, queries "
    "too, and leaves out those of the query's identity and camera"
)


class _Tracklet(NamedTuple):
    """Images of one identity that follow one another, and where a table or a folder has them."""

    images: tuple[Path, ...]
    identity: str
    camera: str
    where: str


def is_mars(folder: Path) -> bool:
    """Return whether `folder` holds MARS' two folders, with its tables or with images named as it names them."""
    if not all((folder / name).is_dir() for name in (_TRAIN, _TEST)):
        return False
    if any((folder / "info" / name).is_file() for name in _TABLES):
        return True
    identities = folders_in(folder / _TRAIN)
    first = first_image(identities[0]) if identities else None
    return first is not None and _NAME.match(first.name) is not None


def read_mars(folder: Path) -> Parts:
    """Read MARS as images: every image trains, a query or a gallery tracklet stands by its first image.

    Which test tracklets are queries is told by `info`. Without it, the first tracklet of each identity in each camera
    is a query where a match remains.

    Raises:
        DataError: a table is missing, cannot be read or does not fit the images, or there are no images.
    """
    notes = [FIRST_IMAGE]
    if (folder / "info").is_dir():
        training, testing, queries = _by_tables(folder)
        notes.append(_TABLES_NOTE)
    else:
        training, strange = _by_names(folder / _TRAIN)
        testing, others = _by_names(folder / _TEST)
        total = sum(len(tracklet.images) for tracklet in training + testing) + len(strange + others)
        notes += [_RULE_NOTE, *left_out(strange + others, total)]
        pids = np.array([int(tracklet.identity) for tracklet in testing])
        cams = np.array([int(tracklet.camera) for tracklet in testing])
        queries = set(np.flatnonzero(choose_queries(pids, cams) == "query").tolist())
    rows: list[Row] = []
    for number, (images, identity, camera, where) in enumerate(training):
        rows += [Row(path, identity, camera, "train", where, str(number)) for path in images]
    for number, (images, identity, camera, where) in enumerate(testing):
        split = "query" if number in queries else "gallery"
        rows.append(Row(images[0], identity, camera, split, where, str(len(training) + number)))
    parts = arrange(rows, folder=folder, zero_is_distractor=True)
    return parts._replace(notes=(*notes, *parts.notes))


def _by_names(folder: Path) -> tuple[list[_Tracklet], list[Path]]:
    """Return the tracklets that the file names tell of, and the files named otherwise."""
    found: dict[str, list[Path]] = {}
    strange: list[Path] = []
    for path in (image for identity in folders_in(folder) for image in images_in(identity)):
        match = _NAME.match(path.name)
        if match:
            found.setdefault(match[0], []).append(path)
        else:
            strange.append(path)
    if not found:
        raise DataError(f"{folder}: no image in the folders in it is named like 0001C1T0001F001.jpg")
    tracklets = []
    for called, images in found.items():
        identity, camera = called[:4], called[5]
        tracklets.append(_Tracklet(tuple(images), str(int(identity.lstrip("0") or 0)), camera, str(images[0])))
    return tracklets, strange


def _by_tables(folder: Path) -> tuple[list[_Tracklet], list[_Tracklet], set[int]]:
    """Return the tracklets to train and to test on, and the places of the queries among the latter."""
    missing = [name for name in _TABLES if not (folder / "info" / name).is_file()]
    if missing:
        raise DataError(
            f"{folder / 'info'}: {missing[0]} is missing; give all of {', '.join(_TABLES)}, "
            "or no folder info to divide the test by a rule"
        )
    tables = [folder / "info" / name for name in _TABLES]
    training = list(_listed(tables[0], tables[2], "track_train_info", folder / _TRAIN))
    testing = list(_listed(tables[1], tables[3], "track_test_info", folder / _TEST))
    queries = set((_matrix(tables[4], "query_IDX").ravel() - 1).tolist())
    if not queries or not 0 <= min(queries) <= max(queries) < len(testing):
        raise DataError(f"{tables[4]}: its queries are no rows of {tables[3].name}, which has {len(testing)}")
    return training, testing, queries


def _listed(names_file: Path, table: Path, variable: str, folder: Path) -> Iterator[_Tracklet]:
    try:
        names = read_text(names_file).split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names_file}: the list of images cannot be read ({error})") from error
    rows = _matrix(table, variable)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError(
            f"{table}: {variable} has the shape {rows.shape}; it has to hold rows of first, last, pid, camera"
        )
    present = Presence()
    for number, (first, last, pid, cam) in enumerate(rows.tolist(), start=1):
        where = f"{table}, row {number}"
        if not 1 <= first <= last <= len(names):
            raise DataError(f"{where}: images {first} to {last} are not in {names_file.name}, which lists {len(names)}")
        images = tuple(folder / name[:4] / name for name in names[first - 1 : last])
        for path in images:
            if path not in present:
                raise DataError(f"{where}: there is no image {path}; is MARS unpacked as a whole?")
        yield _Tracklet(images, str(pid), str(cam), where)


def _matrix(file: Path, variable: str) -> Ids:
    """Return a matrix of whole numbers out of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        check_regular(file)
        return np.asarray(loadmat(file)[variable]).astype(np.int64)
    # NotImplementedError is what SciPy raises for MATLAB's later, HDF5-based format.
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{file}: no matrix {variable} can be read from it ({error})") from error


MARS = Layout(
    "MARS' tracklets",
    f"the folders {_TRAIN} and {_TEST}, and info with its tables",
    recognises=is_mars,
    read=lambda folder, split: read_mars(folder),
)
