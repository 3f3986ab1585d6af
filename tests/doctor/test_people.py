from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.oracles import is_removed
from uda_reid.doctor.findings import Finding
from uda_reid.doctor.people import cameras, in_test, in_train, search
from uda_reid.types import Domain, Split

Seen = Sequence[tuple[int, int]]
"""Identity and camera of every image."""
NOBODY: Seen = ()


def split(seen: Seen, *, known: bool = True) -> Split:
    pids = np.array([pid for pid, _ in seen], dtype=np.int64)
    cams = np.array([cam for _, cam in seen], dtype=np.int64)
    return Split(tuple(Path(f"{row}.png") for row in range(len(seen))), pids, cams if known else None)


def domain(train: Seen = NOBODY, query: Seen = NOBODY, gallery: Seen = NOBODY, *, known: bool = True) -> Domain:
    parts = [split(seen, known=known) for seen in (train, query, gallery)]
    return Domain("yard", Path("yard"), parts[0], parts[1], parts[2])


def only(findings: Iterable[Finding]) -> tuple[str, str]:
    (finding,) = findings
    return finding.level, finding.text


def told(query: Seen, gallery: Seen, *, train: Seen = NOBODY, known: bool = True) -> list[Finding]:
    yard = domain(train, query, gallery, known=known)
    return list(in_test(yard, search(yard)))


GALLERY: Seen = ((1, 1), (1, 2), (2, 1), (3, 1), (3, 3), (0, 2), (-1, 2))


@pytest.mark.parametrize("known", [True, False])
def test_search_agrees_with_the_oracle_on_every_query(known: bool) -> None:
    query: Seen = ((1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1))
    found = search(domain(query=query, gallery=GALLERY, known=known))
    assert found.labels is not None
    protocol = "market" if known else "any-camera"
    assert found.labels.protocol == protocol
    expected = [
        any(pid == own and not is_removed(protocol, own, seen, pid, cam) for pid, cam in GALLERY) for own, seen in query
    ]
    assert found.valid.tolist() == expected
    assert not found.valid.all()
    assert not found.fault


def test_queries_without_a_match_are_explained() -> None:
    level, text = only(told(((1, 1), (2, 1), (2, 1), (3, 1), (4, 1)), GALLERY))
    assert level == "warning"
    assert text == (
        "queries without a valid match under protocol market: 3 of 5, skipped and in no mean; "
        "1 identity not in the gallery: 4; 1 identity in the gallery in the query's own camera only: 2"
    )


def test_no_query_with_a_match_is_an_error() -> None:
    yard = domain(query=((2, 1), (4, 1)), gallery=GALLERY)
    found = search(yard)
    level, text = next((finding.level, finding.text) for finding in in_test(yard, found))
    assert level == "error"
    assert "2 of 2, so nothing can be scored" in text
    assert found.fault == "none of 2 queries has a valid match under protocol market"


def test_more_than_ten_identities_are_counted_and_ten_named() -> None:
    query = [(pid, 1) for pid in range(101, 125)] + [(1, 3)]
    assert "24 identities not in the gallery: 101, 102, 103, 104, 105, 106, 107, 108, 109, 110 and 14 more" in next(
        finding.text for finding in told(query, GALLERY)
    )


def test_identities_in_train_and_query_are_named() -> None:
    findings = told(((1, 3), (3, 2)), ((1, 1), (3, 1)), train=((3, 1), (8, 1)))
    assert only(findings) == (
        "warning",
        "1 identity both in train and in query, so scores flatter; keep each in one of them: 3",
    )


@pytest.mark.parametrize(
    ("gallery", "meaning"),
    [
        (((5, 1), (-1, 2)), "every answer is right and scores say nothing"),
        (((5, 1), (0, 2)), "scores tell of one person"),
    ],
)
def test_test_of_one_identity_is_a_warning(gallery: Seen, meaning: str) -> None:
    assert only(told(((5, 3),), gallery)) == ("warning", f"query has one identity, 5: {meaning}")


def test_identities_that_nobody_searches_are_counted() -> None:
    assert only(told(((1, 3), (2, 3)), GALLERY)) == (
        "note",
        "1 identity in the gallery without a query, wrong answers to all: 3",
    )


def test_test_that_is_not_there_is_no_finding_and_a_bad_one_an_error() -> None:
    assert not told((), GALLERY)
    assert search(domain(gallery=GALLERY)).missing == "no query images"
    assert search(domain()).missing == "no query and no gallery images"
    level, text = only(told(((-2, 1),), GALLERY))
    assert (level, text.startswith("query_pids: identity -2 in row 0")) == ("error", True)


def test_train_identities_are_counted() -> None:
    found = {
        finding.text: finding.level
        for finding in in_train(split(((1, 1), (1, 2), (2, 2), (3, 1), (3, 1), (-2, 1), (-2, 2))))
    }
    assert found == {
        "2 of 7 training images have no identity: a target needs none": "note",
        "train: 1 of 3 identities with a single image, which shows one look only: 2": "note",
        "train: 2 of 3 identities in one camera only, no help across cameras: 2, 3": "note",
    }


def test_train_of_unknown_identities_is_only_that() -> None:
    text = "all 2 training images have no identity: a target needs none"
    assert only(in_train(split(((-2, 1), (-2, 2))))) == ("note", text)


def test_train_that_shows_nobody_twice_is_a_warning() -> None:
    assert only(in_train(split(((1, 1), (1, 1), (2, 3), (2, 3))))) == (
        "warning",
        "train: 2 of 2 identities in one camera only, so nothing shows how looks change between cameras",
    )
    assert only(in_train(split(((1, 1), (1, 2))))) == (
        "warning",
        "train has one identity, 1: there is nobody to tell it from",
    )
    assert not list(in_train(split(((1, 1), (1, 1), (2, 3), (2, 3)), known=False)))


def test_cameras_that_are_unknown_are_told() -> None:
    assert not list(cameras(domain(((1, 1), (1, 2)), ((2, 2),), ((2, 1),))))
    need = "methods that need cameras cannot run; give them in a manifest.csv if you know them"
    rule = "matches within a camera count (protocol any-camera) and"
    blind = domain(((1, 1),), ((2, 1),), ((2, 1),), known=False)
    assert only(cameras(blind)) == ("note", f"cameras are unknown: {rule} {need}")
    seen = domain(((1, 1),), ((2, 2),), ((2, 1),))
    assert only(cameras(replace(seen, query=blind.query)))[1] == f"cameras are unknown in query: {rule} {need}"
    assert only(cameras(replace(seen, train=blind.train)))[1] == f"cameras are unknown in train: {need}"
    assert only(cameras(domain(((1, 1),), known=False)))[1] == f"cameras are unknown: {need}"


def test_cameras_without_an_image_are_named() -> None:
    assert only(cameras(domain(((1, 1), (1, 5)), ((2, 5),), ((2, 1),)))) == (
        "note",
        "cameras are numbered up to 5, without an image: 2, 3, 4",
    )
    timestamps = ((1, 1_500_000_001), (1, 1_500_000_007))
    assert not list(cameras(domain(timestamps, timestamps, timestamps)))


def test_cameras_of_training_or_test_alone_are_named() -> None:
    assert only(cameras(domain(((1, 1), (1, 2)), ((2, 2),), ((2, 3),)))) == (
        "note",
        "cameras 1 in train only and 3 in the test only: learning and test differ in their cameras",
    )
    assert not list(cameras(domain(((1, 1), (1, 2)))))
