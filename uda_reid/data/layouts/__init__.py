"""Data sets on disk: only this place knows folders and file names. `read` turns a name into a `Domain`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from uda_reid.data.contents import digests
from uda_reid.data.layouts.crops import CROPS
from uda_reid.data.layouts.dataset import KnownDataset, Published
from uda_reid.data.layouts.files import passed_over
from uda_reid.data.layouts.known import DATASETS, find_known, known_at
from uda_reid.data.layouts.labels import SPLITS
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.manifest import MANIFEST, TABLE
from uda_reid.data.layouts.places import Place, place_of_folder, place_of_known
from uda_reid.data.layouts.unlabelled import UNLABELLED, is_marked
from uda_reid.errors import DataError
from uda_reid.options import one_line
from uda_reid.types import DISTRACTOR, JUNK, Domain, Split

__all__ = ["DATASETS", "SPLITS", "Counts", "KnownDataset", "Published", "describe", "listing", "read"]


def read(name: str, root: str | Path, *, others: Iterable[str] = ()) -> Domain:
    """Return the data set called `name`; no image is opened.

    A folder with a `manifest.csv` is read through it, a known data set in one of its layouts, and any other folder in
    the first layout that recognises it.

    Args:
        name: a known data set or an alias of it, with `:NUMBER` behind it for another of its splits than the
            first (0); a folder below `root`, or the path of a folder.
        root: the folder that holds data sets.
        others: further names to suggest when `name` is misspelt.

    Returns:
        The domain: known data sets under their short name, others under the folder's name, which of a
        symbolic link is the link's. Every split is sorted by path; what was unusual is in the notes.

    Raises:
        DataError: there is no such data set, or its folder is not what it has to be.
    """
    try:
        return _read(name, Path(root), others)
    except OSError as error:
        place = one_line(error.filename or name)
        raise DataError(f"{place}: cannot be read ({error.strerror}); check the path and its rights") from error


class Counts(NamedTuple):
    """What one split holds; `identities` counts no junk and no distractors, `cameras` is 0 where unknown."""

    split: str
    images: int
    identities: int
    cameras: int
    distractors: int
    junk: int


def describe(domain: Domain) -> tuple[Counts, ...]:
    """Return the counts of the training images, the queries and the gallery, in this order."""
    return tuple(_counts(name, getattr(domain, name)) for name in SPLITS)


def listing(domain: Domain) -> str:
    """Return a hex digest over the split, relative path, content and labels of every image.

    Every byte of every file counts, and nothing else of it: copying or moving the whole folder, to another machine too,
    leaves the digest as it is; adding, removing, relabelling, exchanging or overwriting an image changes it.

    Raises:
        DataError: a file has gone, cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    for name in SPLITS:
        split: Split = getattr(domain, name)
        for row, ((path, pid, cam), content) in enumerate(zip(split, digests(split.paths), strict=True)):
            shown = path.relative_to(domain.root) if path.is_relative_to(domain.root) else path
            tracklet = "" if split.tracklets is None else f"\0{split.tracklets[row]}"
            line = f"{name}\0{shown.as_posix()}\0{content.hex()}\0{pid}\0{cam}{tracklet}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read(name: str, root: Path, others: Iterable[str]) -> Domain:
    asked, number = _split_of(name)
    place = place_of_known(asked, name.partition(":")[0], root) if asked else place_of_folder(name, root, others)
    known, called = (asked, asked.name) if asked else _known_by(place)
    layout = _layout(place.folder, known)
    if layout is TABLE and asked and not asked.told_by_table:
        raise DataError(
            f"{place.folder}: is read through its {MANIFEST}, which does not say that it is {name}; "
            f"give the path of the folder to read the table, or move the table away to read {asked.title} as published"
        )
    # A folder of one's own may be called like a published data set.
    if known and not (layout in known.layouts or (layout is TABLE and known.told_by_table)):
        known, called = None, _own_name(place.meant)
    parts = layout.read(place.folder, number)
    called += f"-split{number}" if number else ""
    domain = Domain(called, place.folder, parts.train, parts.query, parts.gallery, (), layout.title)
    surprises = known.surprises(domain) if known else ()
    # A table names its files, and may lie in a folder of anything.
    more = [] if layout is TABLE else passed_over(place.folder)
    return replace(domain, notes=(*surprises, *place.notes, *parts.notes, *more))


def _counts(name: str, split: Split) -> Counts:
    return Counts(
        split=name,
        images=len(split),
        identities=len(set(split.pids[split.pids > DISTRACTOR].tolist())),
        cameras=0 if split.cams is None else len(set(split.cams.tolist())),
        distractors=int((split.pids == DISTRACTOR).sum()),
        junk=int((split.pids == JUNK).sum()),
    )


def _split_of(name: str) -> tuple[KnownDataset | None, int]:
    """Return the known data set that `name` or `name:number` means, and the number of the split."""
    whole = find_known(name)
    first, colon, number = name.rpartition(":")
    known = find_known(first) if colon and whole is None else None
    if known is None:
        return whole, 0
    if not number.isdecimal() or int(number) >= known.splits:
        last = f"0 to {known.splits - 1}" if known.splits > 1 else "0 only"
        raise DataError(f"{name}: {known.name} has no split {number!r}; its splits are {last}")
    return known, int(number)


def _known_by(place: Place) -> tuple[KnownDataset | None, str]:
    """Return the data set that a folder is called after, and what to call it."""
    folders = [Path(os.path.abspath(folder)) for folder in dict.fromkeys((place.meant, place.folder))]  # noqa: PTH100
    known = next((known for folder in folders if (known := find_known(folder.name) or known_at(folder))), None)
    # A link keeps the name that its owner gave it.
    return (known, known.name) if known else (find_known(place.folder.resolve().name), _own_name(place.meant))


def _own_name(folder: Path) -> str:
    # Unlike resolve(), abspath leaves a symbolic link the name its owner gave it.
    return Path(os.path.abspath(folder)).name  # noqa: PTH100


def _layout(folder: Path, known: KnownDataset | None) -> Layout:
    """Return the first layout that recognises the folder, those of the known data set before all others."""
    if is_marked(folder) and not TABLE.recognises(folder):
        return UNLABELLED
    others = (layout for dataset in DATASETS.values() for layout in dataset.layouts)
    for layout in dict.fromkeys((TABLE, *(known.layouts if known else ()), *others, UNLABELLED)):
        if layout.recognises(folder):
            return layout
    return CROPS
