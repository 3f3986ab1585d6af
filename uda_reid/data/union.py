"""Several labelled domains as one: their images joined, nobody and no camera taken for those of another domain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain, combinations
from typing import Literal

import numpy as np

from uda_reid.errors import DataError
from uda_reid.types import Domain, Ids, Split

Column = Literal["pids", "cams", "tracklets"]


def union(domains: Sequence[Domain]) -> Domain:
    """Return domains as one whose splits hold the images of all, in the order given; one domain stays as it is.

    Data sets count their people and cameras each from 1, so both are numbered anew from 1: identities are pairs of a
    domain and its pid, cameras of a domain and its camera. Junk and distractors keep their numbers. A domain without
    cameras beside one that has them: each of their images counts as a camera of its own, so that none of its matches
    is taken for one within a camera; and without tracklets every image is one of its own.

    Args:
        domains: at least one; in each every training image has an identity above 0.

    Returns:
        A domain called `first+second`, with the first one's root and a column `domains` in every split. Its notes tell
        only what the joining made unusual.

    Raises:
        DataError: no domain is given, training images have no identities, or two domains are one data set.

    >>> from pathlib import Path
    >>> def domain(name, *pids):
    ...     paths = tuple(Path(name, f"{row}.jpg") for row in range(len(pids)))
    ...     train, empty = Split(paths, np.array(pids), None), Split((), np.zeros(0, dtype=np.int64), None)
    ...     return Domain(name, Path(name), train, empty, empty)
    >>> joined = union([domain("plaza", 1, 1, 7), domain("station", 1, 2)])
    >>> joined.name, joined.train.pids.tolist(), joined.train.domains.tolist()
    ('plaza+station', [1, 1, 2, 3, 4], [0, 0, 0, 1, 1])
    """
    if not domains:
        raise DataError("no domain is given; give at least one")
    if len(domains) == 1:
        return domains[0]
    for domain in domains:
        _check_labels(domain)
    for first, second in combinations(domains, 2):
        _check_apart(first, second)
    # One column at a time for all domains: [domain][split].
    pids, cams, tracklets = (_numbered(domains, column) for column in ("pids", "cams", "tracklets"))
    train, query, gallery = (
        _joined(parts, place, pids, cams, tracklets)
        for place, parts in enumerate(zip(*map(_splits, domains), strict=True))
    )
    name = "+".join(domain.name for domain in domains)
    return Domain(name, domains[0].root, train, query, gallery, _notes(domains))


def _splits(domain: Domain) -> tuple[Split, Split, Split]:
    return domain.train, domain.query, domain.gallery


def _check_labels(domain: Domain) -> None:
    unknown = int((domain.train.pids <= 0).sum())
    if unknown:
        raise DataError(
            f"{domain.root}: {unknown} of its {len(domain.train)} training images have no identity above 0; "
            "every one of several sources needs them all, so leave it out or label it"
        )


def _check_apart(first: Domain, second: Domain) -> None:
    """Refuse one data set under two names: its people would be two classes each."""
    # The folder too: protocols of one data set share it and show the same people in other images.
    if first.root.resolve() == second.root.resolve():
        raise DataError(
            f"{first.name} and {second.name} are both read from {second.root}, and the same people would be two "
            "classes each; name one of them"
        )
    theirs = {os.path.abspath(path) for path in second.train.paths}  # noqa: PTH100 - not resolve, which asks the disk
    shared = [path for path in first.train.paths if os.path.abspath(path) in theirs]  # noqa: PTH100
    if shared:
        raise DataError(
            f"{first.name} and {second.name} share training images ({min(shared)} is one), and the same people would "
            "be two classes each; name one of them"
        )


def _numbered(domains: Sequence[Domain], column: Column) -> list[list[Ids]]:
    """Return a column for each split of each domain, numbered from 1 so that no two domains share a number.

    A value has one number in all splits of its domain; where a split lacks the column every image has its own.
    """
    free, numbered = 1, []
    for domain in domains:
        columns: list[Ids | None] = [getattr(split, column) for split in _splits(domain)]
        values = np.unique(np.concatenate([found for found in columns if found is not None] or [_EMPTY]))
        if column == "pids":
            values = values[values > 0]  # junk and distractors are special in every domain, and stay as they are
        own, first = [], free
        free += len(values)
        for split, found in zip(_splits(domain), columns, strict=True):
            if found is None:
                own.append(np.arange(free, free + len(split), dtype=np.int64))
                free += len(split)
            else:
                new = first + np.searchsorted(values, found).astype(np.int64)
                own.append(np.where(np.isin(found, values), new, found))
        numbered.append(own)
    return numbered


_EMPTY = np.zeros(0, dtype=np.int64)


def _joined(
    parts: Sequence[Split], place: int, pids: list[list[Ids]], cams: list[list[Ids]], tracklets: list[list[Ids]]
) -> Split:
    """Return one split of all domains; a column that all of them lack stays unknown."""

    def column(numbered: list[list[Ids]]) -> Ids:
        return np.concatenate([own[place] for own in numbered])

    return Split(
        paths=tuple(chain(*(part.paths for part in parts))),
        pids=column(pids),
        cams=None if all(part.cams is None for part in parts) else column(cams),
        tracklets=None if all(part.tracklets is None for part in parts) else column(tracklets),
        domains=np.repeat(np.arange(len(parts), dtype=np.int64), [len(part) for part in parts]),
    )


def _notes(domains: Sequence[Domain]) -> tuple[str, ...]:
    blind = [domain.name for domain in domains if domain.train.cams is None]
    if not blind or len(blind) == len(domains):
        return ()
    return (f"the cameras of {', '.join(blind)} are unknown: each of their images counts as a camera of its own",)
