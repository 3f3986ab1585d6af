"""CUHK01, VIPeR and PKU-Reid: small sets of two cameras, published without a list of who trains."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from uda_reid.data.layouts.files import folders_in, images_in
from uda_reid.data.layouts.labels import Parts, Row, arrange
from uda_reid.data.layouts.layout import Layout

HALVES = 10
"""How often CUHK01 and VIPeR are halved by chance; each half is searched in both directions."""


class _Crop(NamedTuple):
    path: Path
    pid: int
    cam: int


def trains(name: str, half: int, identities: Iterable[int]) -> frozenset[int]:
    """Return which identities train, by a rule that gives everyone the same benchmark.

    Identities are ordered by the SHA-256 digest, in hexadecimal, of the text `name/half/identity` with plain decimal
    numbers; the first half of them, rounded down, trains. The number of the half is thus the seed.

    Args:
        name: the data set's short name.
        half: which of the `HALVES`, counted from 0.
        identities: the identities, as numbered in the domain.

    >>> sorted(trains("viper", 0, [1, 2, 3, 4, 5, 6, 7]))
    [2, 4, 5]
    """
    order = sorted(set(identities), key=lambda pid: hashlib.sha256(f"{name}/{half}/{pid}".encode()).hexdigest())
    return frozenset(order[: len(order) // 2])


def _halved(name: str, crops: list[_Crop], folder: Path, split: int) -> Parts:
    """Divide by `trains`: split 2h searches camera 1's images of half h in camera 2, split 2h + 1 the reverse."""
    half, reverse = divmod(split, 2)
    training = trains(name, half, (crop.pid for crop in crops))
    searched = (2, 1) if reverse else (1, 2)
    rows = []
    for path, pid, cam in crops:
        part = "train" if pid in training else "query" if cam == searched[0] else "gallery"
        rows.append(Row(path, str(pid), str(cam), part, str(path)))
    parts = arrange(rows, folder=folder)
    last = 2 * HALVES - 1
    note = (
        f"none of the literature's random splits was published: this is {name}:{split} of {name}:0 to {name}:{last}, "
        f"fixed by a rule; camera {searched[0]} is searched in camera {searched[1]}, report the mean over all splits"
    )
    return parts._replace(notes=(note, *parts.notes))


def _named(folder: Path, pattern: str) -> list[tuple[Path, list[int]]]:
    """Return the images in a folder with the numbers in their names, or nothing where one is named otherwise.

    Names of digits alone are too common to take a folder for a published data set while others lie among them.
    """
    found = []
    for path in images_in(folder) if folder.is_dir() else ():
        match = re.fullmatch(pattern, path.stem, re.ASCII)
        if match is None:
            return []
        found.append((path, [int(number) for number in match.groups()]))
    return found


def _inner(folder: Path, name: str) -> Path:
    """Return what the archive unpacks to, where it lies in `folder`, else `folder`."""
    return folder / name if (folder / name).is_dir() else folder


def _cuhk01(folder: Path) -> list[_Crop]:
    """Return the crops of CUHK01: `0001001.png` and `0001002.png` are of camera 1, the next two of camera 2."""
    found = _named(_inner(folder, "campus"), r"(\d{4})00([1-4])")
    return [_Crop(path, pid, (shot + 1) // 2) for path, (pid, shot) in found]


def _viper(folder: Path) -> list[_Crop]:
    """Return the crops of VIPeR: `cam_b/000_90.bmp` is identity 0 at 90 degrees; numbered from 1 here."""
    inside = _inner(folder, "VIPeR")
    views = [_named(inside / view, r"(\d{3})_\d+") for view in ("cam_a", "cam_b")]
    if not all(views):
        return []
    return [_Crop(path, pid + 1, cam) for cam, found in enumerate(views, start=1) for path, (pid,) in found]


def _pku(folder: Path) -> list[_Crop]:
    """Return the crops of PKU-Reid: `001_02_8.png` or `images/001/02_8.png` is identity 1, camera 2, orientation 8."""
    camera_and_orientation = r"0*([12])_0*[1-8]"
    flat = _named(_inner(folder, "PKUv1a_128x48"), rf"(\d{{1,3}})_{camera_and_orientation}")
    if flat or not (folder / "images").is_dir():
        return [_Crop(path, pid, cam) for path, (pid, cam) in flat]
    crops = []
    for person in folders_in(folder / "images"):
        found = _named(person, camera_and_orientation)
        if not found or re.fullmatch(r"\d+", person.name, re.ASCII) is None:
            return []
        crops += [_Crop(path, int(person.name), cam) for path, (cam,) in found]
    return crops


def _read_pku(folder: Path) -> Parts:
    rows = [Row(path, str(pid), str(cam), "", str(path)) for path, pid, cam in _pku(folder)]
    return arrange(rows, folder=folder)


CUHK01 = Layout(
    "CUHK01's campus",
    "images called 0001001.png and so on, alone in it or in its folder campus",
    recognises=lambda folder: bool(_cuhk01(folder)),
    read=lambda folder, split: _halved("cuhk01", _cuhk01(folder), folder, split),
)
VIPER = Layout(
    "VIPeR's cam_a and cam_b",
    "the folders cam_a and cam_b with images called 000_45.bmp and so on",
    recognises=lambda folder: bool(_viper(folder)),
    read=lambda folder, split: _halved("viper", _viper(folder), folder, split),
)
PKU = Layout(
    "PKU-Reid's names",
    "images called 001_02_8.png (identity, camera, orientation), or images/001/02_8.png",
    recognises=lambda folder: bool(_pku(folder)),
    read=lambda folder, split: _read_pku(folder),
)
