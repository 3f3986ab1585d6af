"""CUHK03: the release, unpacked or not, and the folders of its new protocol, under one numbering."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uda_reid.data.layouts.cuhk03_mat import IMAGES, MAT, held_out, unpacked
from uda_reid.data.layouts.files import folders_in, images_in
from uda_reid.data.layouts.labels import SPLITS, Parts, Row, arrange, count
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET_FOLDERS, is_market, read_market
from uda_reid.errors import DataError
from uda_reid.options import one_line
from uda_reid.reading import check_regular
from uda_reid.types import Split

PEOPLE = (843, 440, 77, 58, 49)
"""Identities seen by each of the five pairs of cameras: 1,467, of whom everyone is seen by one pair only."""
TEST_SETS = 20
"""Test sets of 100 identities in `cuhk-03.mat`."""

_NAME = re.compile(r"([1-5])_(\d{3})_([12])_\d{2}", re.ASCII)
_BEFORE = np.concatenate([[0], np.cumsum(PEOPLE)])


def _labels(stem: str) -> tuple[int, int] | None:
    """Return identity and camera of an unpacked image, or None for a name that is not of CUHK03.

    Identities are numbered through the pairs, as the new protocol's folders do. Cameras are numbered 1 and 2 for the
    first pair to 9 and 10 for the fifth: an identity's two views never share a number, and no number is given to
    views of two pairs, which are of different places. Which of the ten views are of one of the six cameras that took
    them was not published.

    >>> _labels("2_001_1_03"), _labels("5_049_2_10"), _labels("5_050_2_10")
    ((844, 3), (1467, 10), None)
    """
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    pair, pid, view = (int(number) for number in match.groups())
    return (int(_BEFORE[pair - 1]) + pid, 2 * (pair - 1) + view) if 1 <= pid <= PEOPLE[pair - 1] else None


def _homes(folder: Path) -> tuple[Path, Path]:
    """Return where the release's parts lie: in the folder, or in what the archive unpacks to."""
    return folder, folder / "cuhk03_release"


def _find(folder: Path, name: str) -> Path | None:
    return next((home / name for home in _homes(folder) if (home / name).is_file()), None)


def _is_release(folder: Path, boxes: str) -> bool:
    return _find(folder, MAT) is not None or any((home / f"images_{boxes}").is_dir() for home in _homes(folder))


def _images(folder: Path, boxes: str) -> tuple[dict[str, Path], list[str]]:
    """Return the image files by their names without suffix, and what is to be noted about them."""
    mat = _find(folder, MAT)
    # A folder beside the file may be half unpacked, which `unpacked` sees; one elsewhere is somebody's finished work.
    places = [home / f"images_{boxes}" for home in _homes(folder) if mat is None or home != mat.parent]
    finished = [place for place in places if place.is_dir()]
    done = unpacked(mat, boxes) if mat is not None and not finished else finished[0]
    files = images_in(done)
    named = {path.stem: path for path in files if _labels(path.stem)}
    notes = []
    if len(named) < len(files):
        notes.append(f"{len(files) - len(named)} of {len(files)} images in {done} are not named like 1_001_1_01.png")
    if len(named) != IMAGES[boxes]:
        notes.append(f"{done} holds {len(named):,} images, CUHK03 was published with {IMAGES[boxes]:,} {boxes} ones")
    return named, notes


def _arranged(names: dict[str, list[str]], files: dict[str, Path], folder: Path, notes: list[str]) -> Parts:
    """Return the images of each split, by their names without suffix; those that are not there are noted."""
    gone = [name for split in SPLITS for name in names[split] if name not in files]
    if gone:
        notes = [*notes, f"{count(len(gone), 'image')} of the protocol missing and left out, first {gone[0]}"]
    rows = []
    for split in SPLITS:
        for name in names[split]:
            labels = _labels(name)
            if name in files and labels:
                rows.append(Row(files[name], str(labels[0]), str(labels[1]), split, str(files[name])))
    parts = arrange(rows, folder=folder)
    return parts._replace(notes=(*notes, *parts.notes))


def _read_new(folder: Path, boxes: str) -> Parts:
    """Read the new protocol's 767 and 700 identities from the release and the protocol's own file."""
    name = f"cuhk03_new_protocol_config_{boxes}.mat"
    config = _find(folder, name)
    if config is None and folder.name.casefold() == "cuhk03_release":
        config = _find(folder.parent, name)
    if config is None:
        raise DataError(
            f"{folder}: {name} is missing, which says who trains; "
            "it is in https://github.com/zhunzhong07/person-re-ranking under evaluation/data/CUHK03"
        )
    names = _protocol(config)
    files, notes = _images(folder, boxes)
    return _arranged(names, files, folder, notes)


def _protocol(config: Path) -> dict[str, list[str]]:
    """Return the names, without suffix, of the images of each split of the new protocol."""
    from scipy.io import loadmat

    try:
        check_regular(config)
        table: dict[str, Any] = loadmat(str(config))
        listed = [Path(str(cell.item())).stem for cell in table["filelist"].flat]
        rows = {split: table[f"{split}_idx"].flatten().astype(np.int64) - 1 for split in SPLITS}
        if any(((chosen < 0) | (chosen >= len(listed))).any() for chosen in rows.values()):
            raise ValueError("an index is out of range")
    # SciPy raises nearly anything on a damaged file.
    except Exception as error:
        raise DataError(
            f"{config}: is not the file of CUHK03's new protocol ({one_line(error)}); fetch it anew"
        ) from error
    return {split: [listed[row] for row in chosen.tolist()] for split, chosen in rows.items()}


def _read_classic(folder: Path, boxes: str, split: int) -> Parts:
    """Read one of the release's 20 test sets of 100 identities; all their images are query and gallery alike."""
    mat = _find(folder, MAT)
    if mat is None:
        raise DataError(f"{folder}: {MAT} is missing, which holds the classic test sets; put it beside images_{boxes}")
    sets = held_out(mat)
    if len(sets) != TEST_SETS:
        raise DataError(f"{mat}: holds {len(sets)} test sets, CUHK03 was published with {TEST_SETS}")
    tested = {int(_BEFORE[pair - 1]) + pid for pair, pid in sets[split]}
    files, notes = _images(folder, boxes)
    pids = {name: labels[0] for name in files if (labels := _labels(name))}
    test = [name for name, pid in pids.items() if pid in tested]
    train = [name for name, pid in pids.items() if pid not in tested]
    notes = [
        f"this is test set {split} of 0 to {TEST_SETS - 1}; the classic protocol is scored by single-gallery-shot "
        "CMC (--protocol single-gallery-shot), averaged over all of them",
        *notes,
    ]
    return _arranged({"train": train, "query": test, "gallery": test}, files, folder, notes)


def _folders(folder: Path, boxes: str) -> Path | None:
    """Return the folder that holds the new protocol's three folders for one kind of boxes."""
    spellings = {"labeled", "labelled"} if boxes == "labeled" else {boxes}
    inside = [own for own in folders_in(folder) if own.name.casefold() in spellings and is_market(own)]
    return next(iter(inside), folder if is_market(folder) else None)


def _read_folders(folder: Path, boxes: str) -> Parts:
    """Read the new protocol's folders; cameras are numbered as in `_labels`, where identities are CUHK03's own."""
    parts = read_market(_folders(folder, boxes) or folder)
    splits = (parts.train, parts.query, parts.gallery)
    if not all(map(_has_views, splits)):
        return parts
    train, query, gallery = (_by_pair(split) for split in splits)
    return parts._replace(train=train, query=query, gallery=gallery)


def _has_views(split: Split) -> bool:
    """Return whether identities and cameras are in the range of the new protocol's file names."""
    people = (split.pids >= 1) & (split.pids <= sum(PEOPLE))
    return split.cams is not None and bool((people & np.isin(split.cams, (1, 2))).all())


def _by_pair(split: Split) -> Split:
    pairs = np.searchsorted(_BEFORE, split.pids) - 1
    return split if split.cams is None else replace(split, cams=2 * pairs + split.cams)


def _release(boxes: str, *, classic: bool) -> Layout:
    needed = f"{MAT}" if classic else f"{MAT} (or images_{boxes}) and cuhk03_new_protocol_config_{boxes}.mat"
    return Layout(
        f"CUHK03's release ({boxes} boxes)",
        needed,
        recognises=lambda folder: _is_release(folder, boxes),
        read=lambda folder, split: _read_classic(folder, boxes, split) if classic else _read_new(folder, boxes),
    )


def _new_folders(boxes: str) -> Layout:
    return Layout(
        f"CUHK03-NP's folders ({boxes} boxes)",
        f"the folder {boxes} with {', '.join(MARKET_FOLDERS)}",
        recognises=lambda folder: _folders(folder, boxes) is not None,
        read=lambda folder, split: _read_folders(folder, boxes),
    )


DETECTED = (_new_folders("detected"), _release("detected", classic=False))
LABELLED = (_new_folders("labeled"), _release("labeled", classic=False))
CLASSIC_DETECTED = (_release("detected", classic=True),)
CLASSIC_LABELLED = (_release("labeled", classic=True),)
