from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, market
from uda_reid.data.layouts import read

TRAIN = ("0001_c3_1.jpg", "0001_c12_2.jpg", "0002_c8_1.jpg")
QUERY = ("0411_c4_1.jpg", "0412_c10_1.jpg")
GALLERY = ("0411_c11_1.jpg", "0412_c3_1.jpg")


@pytest.mark.parametrize("place", ["personx/PersonX", "personx/subset1", "PersonX", "personx"])
@pytest.mark.parametrize("typed", ["personx", "PersonX", "personx-subset1"])
def test_personx_is_read_in_each_place_with_its_six_cameras_from_one(place: str, typed: str, tmp_path: Path) -> None:
    folder = market(tmp_path / place, train=TRAIN, query=QUERY, gallery=GALLERY)
    domain = read(typed, tmp_path)
    assert domain.root.samefile(folder)
    assert domain.name == "personx"
    assert domain.layout == "PersonX's subset 1"
    assert domain.train.pids.tolist() == [1, 1, 2]
    assert cams(domain.train) == [6, 1, 3]
    assert (domain.query.pids.tolist(), cams(domain.query)) == ([411, 412], [2, 4])
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([411, 412], [5, 1])
    assert not any("camera" in note for note in domain.notes)


def test_copy_with_cameras_renumbered_already_keeps_them(tmp_path: Path) -> None:
    train = ("0001_c1_1.jpg", "0001_c6_2.jpg", "0002_c3_1.jpg")
    market(tmp_path / "personx", train=train, query=("3_c2_1.jpg",), gallery=("3_c4_1.jpg",))
    domain = read("personx", tmp_path)
    assert [cams(split) for split in (domain.train, domain.query, domain.gallery)] == [[1, 6, 3], [2], [4]]
    assert domain.query.pids.tolist() == [3]


def test_copy_from_a_single_camera_has_none(tmp_path: Path) -> None:
    market(tmp_path / "personx", train=("0001_c3_1.jpg",), query=("0003_c3_1.jpg",), gallery=("0003_c3_2.jpg",))
    assert read("personx", tmp_path).train.cams is None
