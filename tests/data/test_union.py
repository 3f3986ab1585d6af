from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uda_reid.data.union import union
from uda_reid.errors import DataError
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Domain, Ids, Split

SPLITS = ("train", "query", "gallery")
Labels = tuple[tuple[int, int], ...]


def split(name: str, labels: Labels, *, known: bool = True) -> Split:
    """Return a split of images with these identities and cameras."""
    pids, cams = np.array(labels, dtype=np.int64).reshape(-1, 2).T
    return Split(tuple(Path(name, f"{row}.jpg") for row in range(len(labels))), pids, cams if known else None)


def domain(name: str, train: Labels, query: Labels = (), gallery: Labels = (), *, known: bool = True) -> Domain:
    def part(kind: str, labels: Labels) -> Split:
        return split(f"{name}/{kind}", labels, known=known)

    return Domain(name, Path(name), part("train", train), part("query", query), part("gallery", gallery))


PLAZA = domain("plaza", ((1, 1), (1, 2), (7, 2)), ((3, 1),), ((3, 2), (JUNK, 2), (DISTRACTOR, 4)))
STATION = domain("station", ((1, 2), (2, 1)), ((3, 2),), ((3, 1), (JUNK, 1)))
BLIND = domain("blind", ((1, 1), (1, 1), (2, 1)), known=False)


def test_splits_are_joined_in_the_order_given() -> None:
    joined = union([PLAZA, STATION])
    assert joined.name == "plaza+station"
    assert joined.root == PLAZA.root
    for name in SPLITS:
        assert getattr(joined, name).paths == getattr(PLAZA, name).paths + getattr(STATION, name).paths
    assert joined.train.domains is not None and joined.gallery.domains is not None
    assert joined.train.domains.tolist() == [0, 0, 0, 1, 1]
    assert joined.gallery.domains.tolist() == [0, 0, 0, 1, 1]
    turned = union([STATION, PLAZA])
    assert turned.name == "station+plaza"
    assert turned.train.paths == STATION.train.paths + PLAZA.train.paths


def test_identities_are_numbered_over_all_splits_and_special_ones_stay() -> None:
    joined = union([PLAZA, STATION])
    assert joined.train.pids.tolist() == [1, 1, 3, 4, 5]  # plaza's 1, 3, 7 are 1, 2, 3; station's 1, 2, 3 are 4, 5, 6
    assert joined.query.pids.tolist() == [2, 6]
    assert joined.gallery.pids.tolist() == [2, JUNK, DISTRACTOR, 6, JUNK]
    assert joined.train.pids.dtype == np.int64


def test_cameras_are_numbered_over_all_splits() -> None:
    joined = union([PLAZA, STATION])
    assert joined.train.cams is not None and joined.query.cams is not None and joined.gallery.cams is not None
    assert joined.train.cams.tolist() == [1, 2, 2, 5, 4]  # plaza's 1, 2, 4 are 1, 2, 3; station's 1, 2 are 4, 5
    assert joined.query.cams.tolist() == [1, 5]
    assert joined.gallery.cams.tolist() == [2, 2, 3, 4, 4]
    assert joined.notes == ()


def test_every_image_of_a_domain_without_cameras_is_a_camera_of_its_own() -> None:
    joined = union([BLIND, STATION])
    assert joined.train.cams is not None
    assert joined.train.cams.tolist() == [1, 2, 3, 5, 4]
    assert joined.notes == ("the cameras of blind are unknown: each of their images counts as a camera of its own",)
    after = union([STATION, BLIND])
    assert after.train.cams is not None
    assert after.train.cams.tolist() == [2, 1, 3, 4, 5]


def test_cameras_that_no_domain_knows_stay_unknown() -> None:
    joined = union([BLIND, domain("dark", ((1, 1),), known=False)])
    assert joined.train.cams is None
    assert joined.notes == ()
    # Only the queries' are unknown: a camera is the same in training and gallery, and no query shares one.
    half = replace(PLAZA, query=replace(PLAZA.query, cams=None))
    query = union([half, STATION]).query
    assert query.cams is not None
    assert query.cams.tolist() == [4, 6]


def test_tracklets_are_kept_apart_and_single_images_are_tracklets_of_their_own() -> None:
    video = replace(PLAZA, train=replace(PLAZA.train, tracklets=np.array([0, 0, 5])))
    other = replace(STATION, train=replace(STATION.train, tracklets=np.array([5, 5])))
    assert union([PLAZA, STATION]).train.tracklets is None
    found = union([video, other]).train.tracklets
    assert found is not None
    assert found.tolist()[:3] == [1, 1, 2]
    assert found[3] == found[4] > 2
    mixed = union([video, STATION]).train.tracklets
    assert mixed is not None
    assert mixed.tolist()[:3] == [1, 1, 2]
    assert len(set(mixed.tolist())) == 4


def test_one_domain_stays_as_it_is() -> None:
    assert union([PLAZA]) is PLAZA
    unlabelled = replace(PLAZA, train=replace(PLAZA.train, pids=np.full(3, UNKNOWN)))
    assert union([unlabelled]) is unlabelled


def codes(pairs: list[tuple[int, int]]) -> list[list[bool]]:
    """Return which of some pairs are equal, one by one."""
    return [[one == other for other in pairs] for one in pairs]


LABELS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5).map(tuple)


@given(st.lists(st.tuples(LABELS, LABELS), min_size=2, max_size=4))
def test_people_and_cameras_are_the_same_exactly_where_domain_and_number_are(
    parts: list[tuple[Labels, Labels]],
) -> None:
    joined = union([domain(f"{place}", train, (), gallery) for place, (train, gallery) in enumerate(parts)])
    rows = [(place, *row) for place, (train, _) in enumerate(parts) for row in train]
    rows += [(place, *row) for place, (_, gallery) in enumerate(parts) for row in gallery]
    assert joined.train.cams is not None and joined.gallery.cams is not None
    columns: Mapping[int, tuple[Ids, Ids]] = {
        1: (joined.train.pids, joined.gallery.pids),
        2: (joined.train.cams, joined.gallery.cams),
    }
    for column, arrays in columns.items():
        found = np.concatenate(arrays)
        assert (found[:, None] == found[None]).tolist() == codes([(row[0], row[column]) for row in rows])
        assert sorted(set(found.tolist())) == list(range(1, len(set(found.tolist())) + 1))


@pytest.mark.parametrize("pids", [(UNKNOWN,) * 3, (1, 1, UNKNOWN), (0, 1, 2)])
def test_images_without_identities_are_refused(pids: tuple[int, ...]) -> None:
    bare = replace(PLAZA, train=replace(PLAZA.train, pids=np.array(pids)))
    unknown = sum(pid <= 0 for pid in pids)
    with pytest.raises(DataError, match=rf"^plaza: {unknown} of its 3 training images have no identity above 0; every"):
        union([STATION, bare])


def test_one_data_set_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    one, other = replace(PLAZA, root=tmp_path / "here"), replace(STATION, root=tmp_path / "link")
    with pytest.raises(DataError, match=r"^plaza and station are both read from .*link, and the same people would be"):
        union([one, replace(BLIND, root=tmp_path), other])


def test_shared_images_are_refused_however_their_paths_are_written() -> None:
    whole = replace(
        STATION, train=replace(STATION.train, paths=(Path("elsewhere.jpg"), PLAZA.train.paths[2].absolute()))
    )
    with pytest.raises(DataError, match=r"^plaza and station share training images \(plaza/train/2.jpg is one\), and "):
        union([PLAZA, whole])


def test_shared_images_are_refused() -> None:
    inner = replace(STATION, train=replace(STATION.train, paths=(Path("elsewhere.jpg"), PLAZA.train.paths[2])))
    with pytest.raises(DataError, match=r"^plaza and station share training images \(plaza/train/2.jpg is one\), and "):
        union([PLAZA, inner])


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(DataError, match="no domain is given; give at least one"):
        union([])
