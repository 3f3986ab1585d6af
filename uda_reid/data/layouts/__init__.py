"""Data sets on disk: only this place knows folders and file names. `read` turns a name into a `Domain`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from uda_reid.data.layouts.crops import CROPS
from uda_reid.data.layouts.dataset import KnownDataset, Published
from uda_reid.data.layouts.files import folders_in
from uda_reid.data.layouts.known import DATASETS, find_known, known_at
from uda_reid.data.layouts.labels import SPLITS
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.manifest import MANIFEST, TABLE
from uda_reid.data.layouts.unlabelled import UNLABELLED
from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR, JUNK, Domain, Split

__all__ = ["DATASETS", "Counts", "KnownDataset", "Published", "describe", "listing", "read"]


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
    root = Path(root)
    known, number = _split_of(name)
    folder = _place(known, name.partition(":")[0], root) if known else _folder(name, root, others)
    # Unlike resolve(), abspath leaves a symbolic link the name its owner gave it.
    typed = Path(os.path.abspath(folder))  # noqa: PTH100
    known = known or find_known(typed.name) or known_at(typed)
    called = known.name if known else typed.name
    known = known or find_known(folder.resolve().name)
    layout = _layout(folder, known)
    parts = layout.read(folder, number)
    called += f"-split{number}" if number else ""
    domain = Domain(called, folder, parts.train, parts.query, parts.gallery, parts.notes, layout.title)
    return replace(domain, notes=(*known.surprises(domain), *domain.notes)) if known else domain


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
    """Return a hex digest over the split, relative path, size in bytes and labels of every image.

    Moving the whole folder leaves it as it is; adding, removing, relabelling or resizing an image changes it.

    Raises:
        DataError: a file has gone.
    """
    digest = hashlib.sha256()
    for name in SPLITS:
        split: Split = getattr(domain, name)
        for row, (path, pid, cam) in enumerate(split):
            shown = path.relative_to(domain.root) if path.is_relative_to(domain.root) else path
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"{path}: the image cannot be read ({error.strerror}); was the data set moved?"
                ) from error
            tracklet = "" if split.tracklets is None else f"\0{split.tracklets[row]}"
            line = f"{name}\0{shown.as_posix()}\0{size}\0{pid}\0{cam}{tracklet}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


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


def _layout(folder: Path, known: KnownDataset | None) -> Layout:
    """Return the first layout that recognises the folder, those of the known data set before all others."""
    others = (layout for dataset in DATASETS.values() for layout in dataset.layouts)
    for layout in dict.fromkeys((TABLE, *(known.layouts if known else ()), *others, UNLABELLED)):
        if layout.recognises(folder):
            return layout
    return CROPS


def _place(known: KnownDataset, name: str, root: Path) -> Path:
    """Return the folder of a known data set: one of its places, or called as it was typed or by its title."""
    spellings: dict[str, str] = {}  # one of those that differ in case only: all cases are looked for
    for place in (*known.places, name, known.title):
        spellings.setdefault(place.casefold(), place)
    places = list(spellings.values())
    for place in places if root.is_dir() else ():
        for folder in _spelt(place, root, name):
            if any(layout.recognises(folder) for layout in (TABLE, *known.layouts)):
                return folder
    raise DataError(
        f"{known.name} ({known.title}) is not in {root}{_absent(root)}: looked for "
        f"{', '.join(places)}; one has to hold {', or '.join(layout.holds for layout in known.layouts)}, "
        f"or a {MANIFEST}; {known.origin}"
    )


def _spelt(place: str, root: Path, name: str) -> Iterator[Path]:
    """Yield the folders at `place` below `root` in whatever case, those called exactly `name` or so first."""
    head, _, rest = place.partition("/")
    same = [folder for folder in folders_in(root) if folder.name.casefold() == head.casefold()]
    for folder in sorted(same, key=lambda folder: (folder.name != name, folder.name != head)):
        if rest:
            yield from _spelt(rest, folder, name)
        else:
            yield folder


def _folder(name: str, root: Path, others: Iterable[str]) -> Path:
    """Return the folder of a data set that is not a known one."""
    if not name.strip():
        raise DataError(f"no data set is named; known are {', '.join(DATASETS)}, or give a folder")
    # An absolute path wins over the root when the two are joined.
    places = dict.fromkeys((root / name, Path(name)))
    for place in places:
        if place.is_dir():
            return place
        if place.is_file():
            raise DataError(f"{place} is a file; give the folder that holds the data set")
    names = list(dict.fromkeys((*DATASETS, *others)))
    aliases = [alias for known in DATASETS.values() for alias in known.aliases]
    here = [folder.name for folder in folders_in(root)] if root.is_dir() else []
    spellings = {spelling.casefold(): spelling for spelling in (*here, *aliases, *names)}
    close = get_close_matches(name.casefold(), spellings, n=1)
    hint = f"did you mean {spellings[close[0]]!r}? " if close else ""
    looked = " and ".join(map(str, places))
    raise DataError(
        f"{name!r} is no known data set and no folder (looked for {looked}{_absent(root)}); {hint}"
        f"known are {', '.join(names)}, or give the path of a folder"
    )


def _absent(root: Path) -> str:
    return "" if root.is_dir() else f" (there is no folder {root})"
