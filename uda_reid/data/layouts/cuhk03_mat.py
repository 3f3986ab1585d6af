"""CUHK03 as its owners publish it: one MATLAB file that holds all pixels, unpacked once into image files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock
from PIL import Image

from uda_reid.data.layouts.files import images_in
from uda_reid.errors import DataError
from uda_reid.options import one_line
from uda_reid.reading import open_file, read_text
from uda_reid.terminal import RichReporter, Screen
from uda_reid.writing import PRIVATE_FILE, PRIVATE_FOLDER, only_ours, private_folder

MAT = "cuhk-03.mat"
IMAGES = {"detected": 14_097, "labeled": 14_096}
"""How many images the file holds: boxes, as the file calls them -> images."""
_MARKER = "unpacked.json"
"""Written into a folder of unpacked images once all are there, with their number."""
_SHOTS = 5
"""An identity has ten cells: five from the first camera of its pair, then five from the second."""


def unpacked(mat: Path, boxes: str) -> Path:
    """Return the folder of the images in `cuhk-03.mat`, unpacked on first use and again where images have gone.

    They go beside the file, or into the cache folder (`UDA_REID_CACHE`, or the user's) where that cannot be written;
    an interrupted unpacking goes on where it stopped. A folder that is made is for this user alone, and so are the
    images; what another user could have put into the cache folder is not used. Images are called by camera pair,
    identity, view and cell, all counted from 1: `1_001_2_06.png`.

    Args:
        mat: the file.
        boxes: `detected` or `labeled`.

    Raises:
        DataError: the file cannot be read, h5py is not installed, or the images cannot be written.
    """
    cache = Path(os.environ.get("UDA_REID_CACHE") or platformdirs.user_cache_dir("uda_reid")) / "cuhk03"
    own = hashlib.sha256(str(mat.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    places = [mat.parent / f"images_{boxes}", cache / own / f"images_{boxes}"]
    if _complete(places[0]):
        return places[0]
    if _complete(places[1]) and only_ours(places[1].stat()):
        return places[1]
    _h5py(mat)
    writable = [place for place in places if _can_write(place, cached=place is places[1])]
    if not writable:
        raise DataError(f"{mat}: cannot be unpacked into {places[0]} or {places[1]}; set UDA_REID_CACHE to a folder")
    try:
        with FileLock(writable[0] / ".lock"):
            if not _complete(writable[0]):
                _unpack(mat, boxes, writable[0])
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{writable[0]}: cannot be written ({reason}); make room, what is there is kept") from error
    return writable[0]


def held_out(mat: Path) -> list[set[tuple[int, int]]]:
    """Return the identities of each test set in `cuhk-03.mat`, as (camera pair, number in the pair) from 1.

    Raises:
        DataError: the file cannot be read, or h5py is not installed.
    """
    with _opened(mat) as file:
        cells = [_cell(file, reference) for reference in file["testsets"][()].flat]
        return [{(int(pair), int(pid)) for pair, pid in cell.tolist()} for cell in cells]


def _complete(place: Path) -> bool:
    """Return whether a folder holds all the images that were unpacked into it."""
    try:
        expected = json.loads(read_text(place / _MARKER))["images"]
        found = sum(path.stat().st_size > 0 for path in images_in(place))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(found >= expected)


def _can_write(place: Path, *, cached: bool) -> bool:
    """Make a folder for this user alone; one that exists beside the file keeps the rights that its owner gave it."""
    try:
        if cached:
            private_folder(place)
        else:
            place.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _unpack(mat: Path, boxes: str, place: Path) -> None:
    """Write the images that are not there yet, each in one step, and the marker last."""
    (place / _MARKER).unlink(missing_ok=True)
    there = {path.name for path in images_in(place) if path.stat().st_size}
    crops = RichReporter(Screen(stderr=True)).progress(_crops(mat, boxes), f"unpacking {MAT}, {boxes}", IMAGES[boxes])
    images = 0
    for name, pixels in crops:
        images += 1
        if name not in there:
            part = place / f".{name}.part"
            part.touch(PRIVATE_FILE)
            Image.fromarray(pixels).save(part, format="PNG")
            part.replace(place / name)
    part = place / f".{_MARKER}.part"
    part.write_text(json.dumps({"images": images}) + "\n", encoding="utf-8")
    part.replace(place / _MARKER)


def _crops(mat: Path, boxes: str) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield the name and the (H, W, 3) pixels of every cell that is not empty."""
    with _opened(mat) as file:
        for pair, people in enumerate(file[boxes][()].flat, start=1):
            for pid, shots in enumerate(_cell(file, people), start=1):
                for shot, reference in enumerate(shots):
                    pixels = _cell(file, reference)
                    if pixels.ndim == 3:  # of an empty cell the file holds the size alone
                        view = 1 + shot // _SHOTS
                        yield f"{pair}_{pid:03d}_{view}_{shot + 1:02d}.png", np.ascontiguousarray(pixels, np.uint8)


def _cell(file: Any, reference: Any) -> npt.NDArray[Any]:
    """Return what a reference of the file leads to; MATLAB stores arrays with their axes reversed."""
    return np.asarray(file[reference][()]).T


def _h5py(mat: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f'{mat}: is read by h5py, which is not installed: pip install "uda_reid[cuhk03]"') from error
    return h5py


@contextmanager
def _opened(mat: Path) -> Iterator[Any]:
    """Open the file; whatever is wrong with it is one line."""
    h5py = _h5py(mat)
    try:
        with open_file(mat) as content, h5py.File(content, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"{mat}: is not CUHK03's MATLAB 7.3 file, or only a part of it ({one_line(error)})") from error
