"""Images that cannot be read, left out of a data set where its owner asks for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from uda_reid.data.contents import digests
from uda_reid.data.images.decoding import in_threads, opened
from uda_reid.data.images.pixels import Progress
from uda_reid.errors import DataError
from uda_reid.run import QUIET
from uda_reid.types import Domain, Split

SPLITS = ("train", "query", "gallery")

_SOUND: set[bytes] = set()
"""Digests of the files that this process has decoded: a matrix asks for the same images once for every run."""


def without_damaged(domain: Domain, splits: Collection[str], *, progress: Progress = QUIET.progress) -> Domain:
    """Return a domain without the images of some splits that cannot be read; all of them are decoded for it.

    Args:
        domain: the domain.
        splits: which of train, query and gallery.
        progress: shows how many images have passed, as `Run.progress` does.

    Returns:
        The domain; `left_out` says how many images of which split are missing, and the notes name the first of them.

    Raises:
        DataError: no image of a split can be read.
    """
    sound: dict[str, Split] = {}
    counts: dict[str, int] = {}
    notes: list[str] = []
    for name in (name for name in SPLITS if name in splits):
        split: Split = getattr(domain, name)
        errors = list(progress(in_threads(_damage, split.paths), f"checking {domain.name} {name}", len(split)))
        bad = [error for error in errors if error is not None]
        if not bad:
            continue
        if len(bad) == len(split):
            raise DataError(f"{domain.root}: none of the {len(split):,} {name} images can be read; the first: {bad[0]}")
        sound[name] = _rows(split, [row for row, error in enumerate(errors) if error is None])
        counts[name] = len(bad)
        notes.append(
            f"{len(bad):,} of {len(split):,} {name} images cannot be read and are left out; the first: {bad[0]}"
        )
    if not counts:
        return domain
    train, query, gallery = (sound.get(name, getattr(domain, name)) for name in SPLITS)
    notes = [*domain.notes, *notes]
    return replace(domain, train=train, query=query, gallery=gallery, notes=tuple(notes), left_out=counts)


def _damage(path: Path) -> DataError | None:
    """Return why a file cannot be read, or nothing where it can."""
    try:
        digest = digests([path])[0]
    except DataError as error:
        return error
    if digest in _SOUND:
        return None
    found = opened(path, lambda _: True, digest)
    if isinstance(found, DataError):
        return found
    _SOUND.add(digest)
    return None


def _rows(split: Split, rows: Sequence[int]) -> Split:
    columns = (split.cams, split.tracklets, split.domains)
    cams, tracklets, domains = (None if column is None else column[np.array(rows)] for column in columns)
    return Split(tuple(split.paths[row] for row in rows), split.pids[np.array(rows)], cams, tracklets, domains)
