"""From labels as they are written on disk to numbered identities, cameras and the three splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uda_reid.data.layouts.tokens import UNSEEN, cameras, identities, whole, without_decimals
from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Ids, Split

SPLITS = ("train", "query", "gallery")
Texts = npt.NDArray[np.object_]


class Row(NamedTuple):
    """One image, its labels as written (all but the path may be empty), and where, for error messages."""

    path: Path
    identity: str
    camera: str
    split: str
    where: str
    tracklet: str = ""


class Parts(NamedTuple):
    """The three splits of a folder, and what was unusual about it."""

    train: Split
    query: Split
    gallery: Split
    notes: tuple[str, ...]


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    >>> count(1, "image"), count(2_500, "image"), count(0, "identity", "identities")
    ('1 image', '2,500 images', '0 identities')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def arrange(rows: Sequence[Row], *, folder: Path, zero_is_distractor: bool = False) -> Parts:
    """Number the labels, divide the images where no split is given, and sort every split by path.

    Whole numbers stay as they are, text is numbered from 1 in sorted order; an identity of -1 is junk and 0 a
    distractor in either, however they are written (0000), and other numbers beside text are refused. Training images
    without an identity are `UNKNOWN`. Cameras that count from 0 are shifted to count from 1; a single camera tells
    nothing and counts as unknown.

    Args:
        rows: the images; splits and tracklets are given for all of them or for none, the cameras and the training
            images' identities for all images of a split or for none.
        folder: where the images come from, for error messages.
        zero_is_distractor: whether 0 outside the gallery is a stray distractor, to be dropped; otherwise it
            shows that identities count from 0, and all are shifted by 1.

    Raises:
        DataError: a number is out of range, an identity is missing, or nothing is left to train on.
    """
    rows = sorted(rows, key=lambda row: row.path.as_posix())
    notes: list[str] = []
    _check_identities(rows)
    pids, named = _identities(rows, notes)
    cams = _cameras(rows, notes)
    given = np.array([row.split for row in rows], dtype=object)
    if not (zero_is_distractor or named) and bool(np.any((pids == DISTRACTOR) & (given != "gallery"))):
        pids[pids >= 0] += 1
        notes.append("identities count from 0, where 0 means a distractor in a gallery: 1 was added to each")
    splits = given if any(given) else _divided(pids, cams, folder, notes)
    parts = _parts(rows, pids, cams, splits, notes)
    if not len(parts.train):
        raise DataError(f"{folder}: no image is left in train; a data set needs training images")
    return parts


def divide(pids: Ids, cams: Ids | None) -> Texts:
    """Return a split for every image by a fixed rule: no chance, so everyone gets the same benchmark.

    In the order of their numbers, the 1st, 3rd, 5th ... identity trains and the others test, by `choose_queries`.
    Images without an identity train.

    Args:
        pids: (N,) int64, images sorted by path.
        cams: (N,) int64 or None.

    Returns:
        (N,) objects out of `train`, `query`, `gallery`.

    >>> divide(np.array([1, 1, 2, 2, 2]), np.array([1, 2, 1, 1, 2])).tolist()
    ['train', 'train', 'query', 'gallery', 'gallery']
    """
    splits = choose_queries(pids, cams)
    splits[np.isin(pids, np.unique(pids[pids > DISTRACTOR])[::2]) | (pids == UNKNOWN)] = "train"
    return splits


def choose_queries(pids: Ids, cams: Ids | None) -> Texts:
    """Return for every test image whether it is a query or in the gallery, by a fixed rule.

    Of every identity the first image of each camera (without cameras: the first image) is a query, as long as every
    query keeps a valid match in the gallery; the rest is gallery, junk and distractors too.

    Args:
        pids: (N,) int64, images in their order.
        cams: (N,) int64 or None.

    Returns:
        (N,) objects out of `query`, `gallery`.
    """
    splits = np.full(len(pids), "gallery", dtype=object)
    members: dict[int, list[int]] = {}
    for row, pid in enumerate(pids.tolist()):
        members.setdefault(pid, []).append(row)
    for pid, rows in members.items():
        if pid > DISTRACTOR:
            splits[_queries(rows, cams)] = "query"
    return splits


def _divided(pids: Ids, cams: Ids | None, folder: Path, notes: list[str]) -> Texts:
    if bool((pids == UNKNOWN).all()):
        return np.full(len(pids), "train", dtype=object)
    identities = len(np.unique(pids[pids > DISTRACTOR]))
    if identities < 2:
        raise DataError(
            f"{folder}: {count(identities, 'identity', 'identities')}, too few to train and test on; give at least 2"
        )
    first = "first image" if cams is None else "first image of each camera"
    notes.append(
        f"no split is given: every second of the {identities} identities trains, "
        f"the others test with the {first} as query where a match remains"
    )
    return divide(pids, cams)


def _queries(rows: list[int], cams: Ids | None) -> list[int]:
    """Return which images of one identity become queries."""
    if cams is None:
        return rows[:1] if len(rows) > 1 else []
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(int(cams[row]), row)
    chosen: list[int] = []
    for cam in sorted(first):
        candidates = [*chosen, first[cam]]
        left = {int(cams[row]) for row in rows if row not in candidates}
        if all(left - {int(cams[query])} for query in candidates):
            chosen = candidates
    return chosen


def _check_identities(rows: Sequence[Row]) -> None:
    """Raise a DataError where an identity is missing that has to be there."""
    named = any(row.identity for row in rows if row.split not in SPLITS[1:])
    for row in rows:
        if row.identity:
            continue
        if row.split in SPLITS[1:]:
            raise DataError(f"{row.where}: identity is blank; every {row.split} image needs one")
        if named:
            raise DataError(
                f"{row.where}: identity is blank here but given for other training images; "
                "fill in all, or none to adapt to images without labels"
            )


def _identities(rows: Sequence[Row], notes: list[str]) -> tuple[Ids, bool]:
    """Return the numbers of the identities, and whether they are written as names."""
    numbered = identities([row.identity for row in rows], lambda place: rows[place].where)
    written: dict[int, set[str]] = {}
    for row, number in zip(rows, numbered.numbers.tolist(), strict=True):
        if row.identity:
            written.setdefault(number, set()).add(without_decimals(row.identity))
    several = [", ".join(sorted(texts)) for texts in written.values() if len(texts) > 1]
    if several:
        people = count(len(several), "identity", "identities")
        notes.append(f"{people} written in several ways and read as one each: {several[0]}")
    return numbered.numbers, numbered.names > 0


def _cameras(rows: Sequence[Row], notes: list[str]) -> Ids | None:
    """Return the numbers of the cameras, `UNSEEN` where none is given."""
    seen = [place for place, row in enumerate(rows) if row.camera]
    if not seen:
        return None
    numbers = cameras([rows[place].camera for place in seen], lambda place: rows[seen[place]].where, mixed=True)
    if len(np.unique(numbers)) == 1:
        notes.append("all images are from one camera, so cameras count as unknown")
        return None
    cams = np.full(len(rows), UNSEEN, dtype=np.int64)
    cams[seen] = numbers + 1 if numbers.min() == 0 else numbers
    return cams


def _tracklets(names: Sequence[str]) -> Ids:
    """Return the number of each tracklet: 1, 2, ... in the order of the names; whole numbers stay as they are."""
    known = {name: whole(name) for name in set(names)}
    if any(number is None for number in known.values()):
        known = {name: number for number, name in enumerate(sorted(known), start=1)}
    return np.array([known[name] for name in names], dtype=np.int64)


def _parts(rows: Sequence[Row], pids: Ids, cams: Ids | None, splits: Texts, notes: list[str]) -> Parts:
    tracklets = _tracklets([row.tracklet for row in rows]) if any(row.tracklet for row in rows) else None
    columns: dict[str, Split] = {}
    for split in SPLITS:
        places = np.flatnonzero(splits == split)
        if split != "gallery":
            unwanted = np.isin(pids[places], (JUNK, DISTRACTOR))
            if unwanted.any():
                first = rows[int(places[unwanted][0])].path.name
                notes.append(f"images left out of {split}: {unwanted.sum()} of junk or distractors, first {first}")
            places = places[~unwanted]
        unseen = cams is None or bool((cams[places] == UNSEEN).any())
        columns[split] = Split(
            paths=tuple(rows[place].path for place in places.tolist()),
            pids=pids[places],
            cams=None if cams is None or unseen else cams[places],
            tracklets=None if tracklets is None else tracklets[places],
        )
    train, query, gallery = (columns[split] for split in SPLITS)
    shared = np.intersect1d(train.pids, query.pids)
    if len(shared):
        people = count(len(shared), "identity", "identities")
        notes.append(f"{people} both in train and query, so scores flatter: {shared[0]} is one")
    if len(np.unique(gallery.pids[gallery.pids != JUNK])) == 1 and len(query):
        notes.append("the gallery shows one identity, so every answer is right and scores say nothing")
    notes += _uses(train, scored=bool(len(query) and len(gallery)))
    return Parts(train, query, gallery, tuple(notes))


def _uses(train: Split, *, scored: bool) -> list[str]:
    """Return a note where a domain cannot be both a source and a target with scores."""
    if len(train) and bool((train.pids == UNKNOWN).all()):
        if scored:
            return ["the training images have no identities: it can be adapted to and scored on, but is no source"]
        return ["no identities: it can be adapted to, nothing can be scored on it"]
    return [] if scored else ["no queries or no gallery, so this can be a source but nothing can be scored on it"]
