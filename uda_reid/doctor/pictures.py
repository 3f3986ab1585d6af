"""What the files of a data set are: readable or not, how large, and which are the same bytes."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uda_reid.data.images import Progress, sizes
from uda_reid.data.layouts.labels import count
from uda_reid.doctor.findings import NAMED, Finding, Level
from uda_reid.errors import DataError
from uda_reid.ops.protocols import Labels
from uda_reid.reading import open_file
from uda_reid.run import QUIET
from uda_reid.training.devices import digest_of
from uda_reid.types import DISTRACTOR, Domain, Ids, Split

SPLITS = ("train", "query", "gallery")
LANDSCAPE = 0.05
"""Crops of people stand upright: with more than this share of crops that are wider than tall, something is odd."""

START = 4096
"""Bytes of files of one size that are compared before any is read to the end."""


class Damaged(NamedTuple):
    """A file that cannot be read, and what is wrong with it."""

    path: Path
    why: str


class Looked(NamedTuple):
    """The files of a domain after every one was decoded.

    Args:
        shapes: (N, 2) int64 height and width of every readable image, all splits one after another.
        wide: the readable images that are wider than tall.
        unreadable: split -> all its unreadable images.
    """

    shapes: Ids
    wide: tuple[Path, ...]
    unreadable: Mapping[str, tuple[Damaged, ...]]


def look(domain: Domain, *, progress: Progress = QUIET.progress) -> Looked:
    """Decode every image of a domain, keeping none."""
    shapes: list[tuple[int, int]] = []
    wide: list[Path] = []
    unreadable: dict[str, tuple[Damaged, ...]] = {}
    for name in SPLITS:
        split: Split = getattr(domain, name)
        bad: list[Damaged] = []
        found = sizes(split, name=f"{domain.name} {name}", progress=progress)
        for path, size in zip(split.paths, found, strict=True):
            if isinstance(size, DataError):
                bad.append(Damaged(path, str(size).removeprefix(f"{path}: ")))
                continue
            shapes.append(size)
            if size[1] > size[0]:
                wide.append(path)
        unreadable[name] = tuple(bad)
    return Looked(np.array(shapes, dtype=np.int64).reshape(-1, 2), tuple(wide), unreadable)


def decoded(domain: Domain, looked: Looked) -> Iterator[Finding]:
    """Yield what decoding showed: unreadable files, each of the first few with its reason, and sizes."""
    failures = [(name, each) for name in SPLITS for each in looked.unreadable[name]]
    if failures:
        where = ", ".join(f"{len(bad):,} in {name}" for name, bad in looked.unreadable.items() if bad)
        first = f" (the first {NAMED} follow; `--json` names all)" if len(failures) > NAMED else ""
        yield Finding(
            "error",
            f"{count(len(failures), 'image')} cannot be read ({where}), and a run stops at the first of them: "
            f"replace or remove them, or leave them out with `--skip-damaged`{first}",
        )
    for name, each in failures[:NAMED]:
        yield Finding("error", f"{name}: {within(each.path, domain.root)}: {each.why}")
    if len(looked.shapes):
        yield Finding("note", _sizes(looked.shapes))
    if looked.wide:
        share = len(looked.wide) / len(looked.shapes)
        yield Finding(
            "warning" if share > LANDSCAPE else "note",
            f"{count(len(looked.wide), 'image')} ({share:.1%}) wider than tall, and an encoder takes upright crops of "
            f"one person each, squeezing all else: look at {within(looked.wide[0], domain.root)}",
            tuple(within(path, domain.root) for path in looked.wide),
        )


def _sizes(shapes: Ids) -> str:
    areas = shapes.prod(axis=1)
    smallest, largest = shapes[areas.argmin()], shapes[areas.argmax()]
    median = np.median(shapes, axis=0)
    if (smallest == largest).all():
        return f"all images are {smallest[0]} x {smallest[1]} pixels (height x width)"
    return (
        f"images are {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels (height x width), "
        f"median {median[0]:.0f} x {median[1]:.0f}"
    )


class Place(NamedTuple):
    """Where an image stands: split and row."""

    split: str
    row: int


def copies(domain: Domain, *, progress: Progress = QUIET.progress) -> list[list[Place]]:
    """Return the places of all images that are the same bytes, group by group; files that cannot be read are left out.

    Only files of equal size are read, and only those whose beginnings agree are read to the end.
    """
    by_size: dict[int, list[Place]] = defaultdict(list)
    for name in SPLITS:
        for row, path in enumerate(getattr(domain, name).paths):
            with suppress(OSError):
                by_size[path.stat().st_size].append(Place(name, row))
    alike = [(size, place) for size, places in by_size.items() if len(places) > 1 for place in places]
    by_start: dict[tuple[int, bytes], list[Place]] = defaultdict(list)
    for size, place in progress(alike, f"comparing {domain.name}", len(alike)):
        with suppress(OSError), open_file(_path(domain, place)) as file:
            by_start[size, hashlib.sha256(file.read(START)).digest()].append(place)
    by_bytes: dict[str, list[Place]] = defaultdict(list)
    for place in [place for places in by_start.values() if len(places) > 1 for place in places]:
        with suppress(OSError):
            by_bytes[digest_of(_path(domain, place))].append(place)
    return [group for group in by_bytes.values() if len(group) > 1]


def repeated(domain: Domain, groups: Sequence[Sequence[Place]], labels: Labels | None) -> Iterator[Finding]:
    """Yield what identical files mean for learning and for the test.

    Args:
        domain: the domain.
        groups: what `copies` found.
        labels: the labels of queries and gallery, where they can be used.
    """

    def same(level: Level, chosen: Sequence[Sequence[Place]], where: str, meaning: str) -> Finding:
        named = [[within(_path(domain, place), domain.root) for place in places] for places in chosen]
        text = f"identical files {where}: {len(chosen):,}, first {' = '.join(named[0][:2])}; {meaning}"
        return Finding(level, text, tuple(" = ".join(names) for names in named))

    leaks = [group for group in groups if {place.split for place in group} > {"train"}]
    if leaks:
        meaning = "the test shows pictures that were learnt from, so scores flatter: keep each in one of them"
        yield same("warning", leaks, "in train and in the test", meaning)
    torn = [group for group in groups if len({_pid(domain, place) for place in group} - {None}) > 1]
    if torn:
        yield same("warning", torn, "with two identities", "one of the two is wrong: mend the labels")
    found = [group for group in groups if labels is not None and _finds_itself(group, labels)]
    if found:
        meaning = "such a query finds itself, so scores flatter: take its copy out of the gallery"
        yield same("warning", found, "in query and gallery", meaning)
    for name in SPLITS:
        inside = [[place for place in group if place.split == name] for group in groups]
        again = [places for places in inside if len(places) > 1]
        if again:
            yield same("note", again, f"within {name}", "each copy weighs as an image of its own")


def _finds_itself(group: Sequence[Place], labels: Labels) -> bool:
    """Return whether the protocol keeps a copy of a query in the gallery that the query is ranked against."""
    queries = [place.row for place in group if place.split == "query"]
    gallery = [place.row for place in group if place.split == "gallery"]
    if not queries or not gallery:
        return False
    of_group = replace(labels, gallery_pids=labels.gallery_pids[gallery], gallery_cams=labels.gallery_cams[gallery])
    return any(not bool(of_group.masks(slice(row, row + 1))[1].all()) for row in queries)


def _path(domain: Domain, place: Place) -> Path:
    path: Path = getattr(domain, place.split).paths[place.row]
    return path


def _pid(domain: Domain, place: Place) -> int | None:
    pid = int(getattr(domain, place.split).pids[place.row])
    return pid if pid > DISTRACTOR else None


def within(path: Path, root: Path) -> str:
    """Return a file's path below the root, or as it is where it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def shortened(text: str, root: Path) -> str:
    """Return a message with the root's path taken off the file that it begins with."""
    return text.removeprefix(f"{root}{os.sep}")
