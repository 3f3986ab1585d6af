"""Who is in a data set, seen by which cameras: what learning across cameras and scoring need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uda_reid.data.layouts.labels import count
from uda_reid.doctor.findings import Finding, some
from uda_reid.errors import DataError
from uda_reid.evaluation import protocol_by_cameras, why_unscored
from uda_reid.ops.protocols import Labels, check_labels
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Domain, Ids, Split


class Search(NamedTuple):
    """What the evaluator would do with the test.

    Args:
        labels: the labels of queries and gallery, where they can be used.
        valid: (Q,) bool, the queries with a valid match.
        missing: why nothing is scored, though a run goes on without scores; empty where it is scored.
        fault: why a run stops when it comes to scoring; empty where it does not.
    """

    labels: Labels | None = None
    valid: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)
    missing: str = ""
    fault: str = ""


def search(domain: Domain) -> Search:
    """Return which queries have a valid match under the protocol that the evaluator chooses."""
    query, gallery = domain.query, domain.gallery
    if why_unscored(domain):
        empty = [name for name, split in (("query", query), ("gallery", gallery)) if not len(split)]
        return Search(missing=f"no {' and no '.join(empty)} images")
    protocol = protocol_by_cameras(domain)
    try:
        labels = check_labels(query.pids, gallery.pids, query.cams, gallery.cams, protocol=protocol)
    except DataError as error:
        return Search(fault=str(error))
    valid = labels.answerable().numpy()
    none = f"none of {count(len(valid), 'query', 'queries')} has a valid match under protocol {protocol}"
    return Search(labels, valid, fault="" if valid.any() else none)


def identities(split: Split) -> Ids:
    """Return the identities of a split, ascending, without junk, distractors and unknown ones."""
    return np.unique(split.pids[split.pids > DISTRACTOR])


def in_train(train: Split) -> Iterator[Finding]:
    """Yield what is to be known about the identities of the training images."""
    unknown = int((train.pids == UNKNOWN).sum())
    if unknown:
        share = "all" if unknown == len(train) else f"{unknown:,} of"
        yield Finding("note", f"{share} {len(train):,} training images have no identity: a target needs none")
    known = train.pids > DISTRACTOR
    found, images = np.unique(train.pids[known], return_counts=True)
    if len(found) == 1:
        yield Finding("warning", f"train has one identity, {found[0]}: there is nobody to tell it from")
    single = found[images == 1]
    if len(single):
        share = f"{len(single):,} of {_who(found)}"
        yield Finding(
            "note", f"train: {share} with a single image, which shows one look only: {_some(single)}", _all(single)
        )
    if train.cams is None or not len(found):
        return
    pairs = np.unique(np.stack([train.pids, train.cams], axis=1)[known], axis=0)
    found, cams = np.unique(pairs[:, 0], return_counts=True)
    alone = found[cams == 1]
    share = f"{len(alone):,} of {_who(found)}"
    if len(alone) == len(found):
        text = f"train: {share} in one camera only, so nothing shows how looks change between cameras"
        yield Finding("warning", text)
    elif len(alone):
        text = f"train: {share} in one camera only, no help across cameras: {_some(alone)}"
        yield Finding("note", text, _all(alone))


def in_test(domain: Domain, found: Search) -> Iterator[Finding]:
    """Yield what is to be known about the identities of queries and gallery."""
    if found.labels is None:
        if found.fault:
            yield Finding("error", found.fault)
        return
    yield from _unanswered(domain, found, found.labels.protocol)
    queried, there = identities(domain.query), identities(domain.gallery)
    shared = np.intersect1d(identities(domain.train), queried)
    if len(shared):
        yield Finding(
            "warning",
            f"{_who(shared)} both in train and in query, so scores flatter; keep each in one of them: {_some(shared)}",
            _all(shared),
        )
    if len(queried) == 1:
        ranked = domain.gallery.pids[domain.gallery.pids != JUNK]
        alone = bool((ranked == queried[0]).all())
        meaning = "every answer is right and scores say nothing" if alone else "scores tell of one person"
        yield Finding("warning", f"query has one identity, {queried[0]}: {meaning}")
    others = np.setdiff1d(there, queried)
    if len(others):
        text = f"{_who(others)} in the gallery without a query, wrong answers to all: {_some(others)}"
        yield Finding("note", text, _all(others))


def _unanswered(domain: Domain, found: Search, protocol: str) -> Iterator[Finding]:
    """Yield how many queries have no valid match, whose they are, and why."""
    lost = ~found.valid
    if not lost.any():
        return
    there = np.isin(domain.query.pids, domain.gallery.pids)
    absent, near = np.unique(domain.query.pids[lost & ~there]), np.unique(domain.query.pids[lost & there])
    reasons = []
    if len(absent):
        reasons.append(f"{_who(absent)} not in the gallery: {_some(absent)}")
    if len(near):
        reasons.append(f"{_who(near)} in the gallery in the query's own camera only: {_some(near)}")
    items = (*(f"{pid}: not in the gallery" for pid in absent), *(f"{pid}: own camera only" for pid in near))
    queries = f"queries without a valid match under protocol {protocol}: {int(lost.sum()):,} of {len(lost):,}"
    if lost.all():
        yield Finding("error", f"{queries}, so nothing can be scored; {'; '.join(reasons)}", items)
    else:
        yield Finding("warning", f"{queries}, skipped and in no mean; {'; '.join(reasons)}", items)


def _who(people: Ids) -> str:
    return count(len(people), "identity", "identities")


def _some(people: Ids) -> str:
    return some(people.tolist())


def _all(people: Ids) -> tuple[str, ...]:
    return tuple(map(str, people.tolist()))


def cameras(domain: Domain) -> Iterator[Finding]:
    """Yield which cameras are unknown, missing from the numbering, or seen in training or test only."""
    known = {name: getattr(domain, name).cams for name in ("train", "query", "gallery") if len(getattr(domain, name))}
    without = [name for name, cams in known.items() if cams is None]
    if without:
        where = "" if len(without) == len(known) else f" in {', '.join(without)}"
        rule = (
            ""
            if without == ["train"] or len(known) == 1
            else " matches within a camera count (protocol any-camera) and"
        )
        yield Finding(
            "note",
            f"cameras are unknown{where}:{rule} methods that need cameras cannot run; "
            "give them in a manifest.csv if you know them",
        )
        return
    train = set(domain.train.cams.tolist()) if domain.train.cams is not None else set()
    test = {cam for name in ("query", "gallery") if name in known for cam in known[name].tolist()}
    numbers = sorted(train | test)
    missing = sorted(set(range(1, numbers[-1])) - set(numbers)) if numbers and numbers[-1] <= 10 * len(numbers) else []
    if missing:
        yield Finding(
            "note",
            f"cameras are numbered up to {numbers[-1]}, without an image: {some(missing)}",
            tuple(map(str, missing)),
        )
    if train and test and train != test:
        sides = ((sorted(train - test), "train"), (sorted(test - train), "the test"))
        apart = [f"{some(only)} in {name} only" for only, name in sides if only]
        items = tuple(f"{cam} in {name} only" for only, name in sides for cam in only)
        yield Finding("note", f"cameras {' and '.join(apart)}: learning and test differ in their cameras", items)
