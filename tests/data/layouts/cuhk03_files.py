"""CUHK03 in small: the owners' MATLAB 7.3 file, the new protocol's MATLAB 5 files, and unpacked images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.io

from tests.data.layouts.folders import touch

SHOTS: Mapping[tuple[int, int], tuple[int, ...]] = {
    (1, 1): (1, 2, 6),
    (1, 2): (1, 6, 7),
    (1, 3): (2, 10),
    (2, 1): (1, 6),
    (3, 1): (5, 6),
    (4, 1): (1, 6),
    (5, 1): (3, 8),
    (5, 2): (4,),
}
"""(camera pair, identity in the pair) -> the cells of the ten that hold an image, counted from 1."""

NAMES = [
    *("1_001_1_01", "1_001_1_02", "1_001_2_06", "1_002_1_01", "1_002_2_06", "1_002_2_07", "1_003_1_02", "1_003_2_10"),
    *("2_001_1_01", "2_001_2_06", "3_001_1_05", "3_001_2_06", "4_001_1_01", "4_001_2_06", "5_001_1_03", "5_001_2_08"),
    "5_002_1_04",
]
"""How the images are called once they are unpacked."""

TRAIN = ("1_001_1_01", "1_001_1_02", "1_001_2_06", "2_001_1_01", "2_001_2_06", "5_002_1_04")
QUERY = ("1_002_1_01", "1_002_2_06", "4_001_1_01")
GALLERY = ("1_002_2_07", "4_001_2_06")


def pixels(boxes: str, pair: int, pid: int, shot: int) -> npt.NDArray[np.uint8]:
    """Return an image of 5 rows and 3 columns in which no two places are alike."""
    start = 100 * (boxes == "labeled") + 20 * pair + 5 * pid + shot
    return (start + np.arange(5 * 3 * 3)).astype(np.uint8).reshape(5, 3, 3)


def write_mat(path: Path, *, test_sets: int = 20) -> Path:
    """Write cells as MATLAB does: references into the group `#refs#`, axes reversed, empty cells by their size.

    Test set 0 is person 2 of pair 1 and person 1 of pair 5, set 3 person 1 of pair 2, the others person 1 of pair 1.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for boxes in ("detected", "labeled"):
            pairs = [_people(file, boxes, pair) for pair in range(1, 6)]
            file[boxes] = np.array([pairs], dtype=h5py.ref_dtype)
        people = {0: [[1, 2], [5, 1]], 3: [[2, 1]]}
        tests = [_stored(file, np.array(people.get(number, [[1, 1]]), float)) for number in range(test_sets)]
        file["testsets"] = np.array([tests], dtype=h5py.ref_dtype)
    return path


def _people(file: Any, boxes: str, pair: int) -> Any:
    cells = np.empty((sum(own == pair for own, _ in SHOTS), 10), dtype=h5py.ref_dtype)
    for pid, shot in np.ndindex(*cells.shape):
        if shot + 1 in SHOTS[pair, pid + 1]:
            cells[pid, shot] = _stored(file, pixels(boxes, pair, pid + 1, shot + 1))
        else:
            cells[pid, shot] = _stored(file, np.zeros(2, np.uint64))
            file[cells[pid, shot]].attrs["MATLAB_empty"] = 1
    return _stored(file, cells)


def _stored(file: Any, values: Any) -> Any:
    refs = file.require_group("#refs#")
    return refs.create_dataset(f"r{len(refs)}", data=values.T).ref


def write_protocol(
    folder: Path,
    boxes: str,
    *,
    train: Iterable[str] = TRAIN,
    query: Iterable[str] = QUERY,
    gallery: Iterable[str] = GALLERY,
) -> None:
    """Write cuhk03_new_protocol_config_BOXES.mat as the authors of the new protocol did."""
    folder.mkdir(parents=True, exist_ok=True)

    def rows(names: Iterable[str]) -> npt.NDArray[np.uint16]:
        return np.array([[NAMES.index(name) + 1] for name in names], np.uint16)

    table = {
        "filelist": np.array([[f"{name}.png"] for name in NAMES], dtype=object),
        "labels": np.array([[int(name[2:5])] for name in NAMES], np.uint16),
        "camId": np.array([[int(name[6])] for name in NAMES], np.uint8),
        "train_idx": rows(train),
        "query_idx": rows(query),
        "gallery_idx": rows(gallery),
    }
    scipy.io.savemat(folder / f"cuhk03_new_protocol_config_{boxes}.mat", table)


def write_images(folder: Path, suffix: str = ".png") -> None:
    touch(folder, [name + suffix for name in NAMES])


def write_new_folders(folder: Path) -> None:
    """Write the new protocol's folders, whose file names hold identities through the pairs, and the view."""
    touch(folder / "bounding_box_train", ["0001_c1_1.png", "0001_c1_2.png", "0001_c2_3.png"])
    touch(folder / "bounding_box_train", ["0844_c1_9.png", "0844_c2_10.png", "1420_c1_17.png"])
    touch(folder / "query", ["0002_c1_4.png", "0002_c2_5.png", "1361_c1_13.png"])
    touch(folder / "bounding_box_test", ["0002_c2_6.png", "1361_c2_14.png"])
