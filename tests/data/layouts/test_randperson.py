from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, mentions, names, touch
from uda_reid.data.layouts import read

NAMES = (
    "000000_s00_c00_f000264.jpg",
    "000000_s00_c01_f001632.jpg",
    "000012_s01_c00_f000001.jpg",
    "007999_s10_c18_f000001.jpg",
)


@pytest.mark.parametrize(
    "place",
    [
        "randperson_subset/randperson_subset",
        "randperson/randperson_subset",
        "randperson/images/subset",
        "randperson_subset",
        "RandPerson",
    ],
)
@pytest.mark.parametrize("typed", ["randperson", "RandPerson", "randperson_subset"])
def test_randperson_is_a_source_only_in_each_place(place: str, typed: str, tmp_path: Path) -> None:
    touch(tmp_path / place, NAMES)
    domain = read(typed, tmp_path)
    assert domain.root.samefile(tmp_path / place)
    assert (domain.name, domain.layout) == ("randperson", "RandPerson's subset")
    assert names(domain.train) == list(NAMES)
    assert domain.train.pids.tolist() == [1, 1, 13, 8000]
    assert cams(domain.train) == [1, 2, 3, 4]  # camera 0 of scene 1 is not camera 0 of scene 0
    assert (len(domain.query), len(domain.gallery)) == (0, 0)
    assert domain.labelled
    assert mentions(domain, "train has 4 images of 3 identities, RandPerson was published with 132,145 of 8,000")
    assert mentions(domain, "no queries or no gallery, so this can be a source but nothing can be scored on it")
    assert not mentions(domain, "query has")


def test_names_with_a_prefix_and_without_zeros_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "drawn", ["id6_s2_c2_f6.jpg", "id6_s10_c2_f7.jpg", "id7_s2_c11_f1.png", "zebra.jpg"])
    domain = read("drawn", tmp_path)
    assert names(domain.train) == ["id6_s10_c2_f7.jpg", "id6_s2_c2_f6.jpg", "id7_s2_c11_f1.png"]
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([6, 6, 7], [3, 1, 2])
    assert mentions(domain, "not named by identity and camera and so left out, first")
