from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, mentions, names, touch
from uda_reid.data.layouts import DATASETS, read
from uda_reid.data.layouts.two_cameras import trains
from uda_reid.types import Domain


def cuhk01(folder: Path, people: tuple[int, ...] = (1, 2, 3, 4)) -> Path:
    touch(folder, [f"{pid:04d}00{shot}.png" for pid in people for shot in (1, 2, 3, 4)])
    return folder


def viper(folder: Path) -> Path:
    touch(folder, ["cam_a/000_45.bmp", "cam_a/001_45.bmp", "cam_a/002_90.bmp", "cam_a/003_0.bmp"])
    touch(folder, ["cam_b/000_90.bmp", "cam_b/001_135.bmp", "cam_b/002_180.bmp", "cam_b/003_90.bmp", "cam_b/Thumbs.db"])
    return folder


def pku(folder: Path, pattern: str = "{pid:03d}_{cam:02d}_{orientation}.png") -> Path:
    crops = [(pid, cam, orientation) for pid in (1, 2, 3, 4) for cam in (1, 2) for orientation in (1, 2, 3)]
    touch(folder, [pattern.format(pid=pid, cam=cam, orientation=orientation) for pid, cam, orientation in crops])
    return folder


def shown(domain: Domain) -> dict[str, list[tuple[str, int, int]]]:
    splits = {"train": domain.train, "query": domain.query, "gallery": domain.gallery}
    return {
        name: list(zip(names(split), split.pids.tolist(), cams(split), strict=True)) for name, split in splits.items()
    }


def test_half_that_trains_is_the_same_for_everyone() -> None:
    # By `printf viper/3/1 | sha256sum` and so on, sorted: the sum of the first 316 of 632, and so for CUHK01.
    assert sum(trains("viper", 3, range(1, 633))) == 103455
    assert sum(trains("cuhk01", 9, reversed(range(1, 972)))) == 230243
    assert (len(trains("viper", 3, range(1, 633))), len(trains("cuhk01", 9, range(1, 972)))) == (316, 485)
    assert len({trains("viper", half, range(1, 633)) for half in range(10)}) == 10


@pytest.mark.parametrize("place", ["cuhk01/campus", "CUHK01/campus", "cuhk01"])
def test_cuhk01_is_found_in_each_place_with_two_views_of_four_images(place: str, tmp_path: Path) -> None:
    folder = cuhk01(tmp_path / place)
    domain = read("cuhk01", tmp_path)
    assert (domain.name, domain.root, domain.layout) == ("cuhk01", folder, "CUHK01's campus")
    assert shown(domain) == {
        "train": [
            *(("0001001.png", 1, 1), ("0001002.png", 1, 1), ("0001003.png", 1, 2), ("0001004.png", 1, 2)),
            *(("0003001.png", 3, 1), ("0003002.png", 3, 1), ("0003003.png", 3, 2), ("0003004.png", 3, 2)),
        ],
        "query": [("0002001.png", 2, 1), ("0002002.png", 2, 1), ("0004001.png", 4, 1), ("0004002.png", 4, 1)],
        "gallery": [("0002003.png", 2, 2), ("0002004.png", 2, 2), ("0004003.png", 4, 2), ("0004004.png", 4, 2)],
    }
    other = read("cuhk01:3", tmp_path)
    assert other.name == "cuhk01-split3"
    assert set(names(other.query)) == {"0002003.png", "0002004.png", "0003003.png", "0003004.png"}
    assert set(names(other.gallery)) == {"0002001.png", "0002002.png", "0003001.png", "0003002.png"}


@pytest.mark.parametrize("place", ["viper/VIPeR", "VIPeR", "VIPeR.v1.0/VIPeR", "viper", "VIPeR.v1.0"])
def test_viper_is_found_in_each_place_with_identities_from_one(place: str, tmp_path: Path) -> None:
    folder = viper(tmp_path / place)
    domain = read("VIPeR", tmp_path)
    assert (domain.name, domain.root, domain.layout) == ("viper", folder, "VIPeR's cam_a and cam_b")
    assert shown(domain) == {
        "train": [("001_45.bmp", 2, 1), ("003_0.bmp", 4, 1), ("001_135.bmp", 2, 2), ("003_90.bmp", 4, 2)],
        "query": [("000_45.bmp", 1, 1), ("002_90.bmp", 3, 1)],
        "gallery": [("000_90.bmp", 1, 2), ("002_180.bmp", 3, 2)],
    }


def test_viper_splits_are_halves_in_two_directions(tmp_path: Path) -> None:
    viper(tmp_path / "viper")
    tests = {split: read(f"viper:{split}", tmp_path) for split in range(4)}
    assert {split: (names(domain.query), names(domain.gallery)) for split, domain in tests.items()} == {
        0: (["000_45.bmp", "002_90.bmp"], ["000_90.bmp", "002_180.bmp"]),
        1: (["000_90.bmp", "002_180.bmp"], ["000_45.bmp", "002_90.bmp"]),
        2: (["000_45.bmp", "001_45.bmp"], ["000_90.bmp", "001_135.bmp"]),
        3: (["000_90.bmp", "001_135.bmp"], ["000_45.bmp", "001_45.bmp"]),
    }
    assert mentions(
        tests[3], "this is viper:3 of viper:0 to viper:19, fixed by a rule; camera 2 is searched in camera 1"
    )
    assert (DATASETS["viper"].splits, DATASETS["cuhk01"].splits, DATASETS["pku"].splits) == (20, 20, 1)
    assert "viper has no split '20'; its splits are 0 to 19" in fault("viper:20", tmp_path)
    assert "pku has no split '1'; its splits are 0 only" in fault("pku:1", tmp_path)


PKU_SPLITS = {
    "train": [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (3, 1), (3, 1), (3, 1), (3, 2), (3, 2), (3, 2)],
    "query": [(2, 1), (2, 2), (4, 1), (4, 2)],
    "gallery": [(2, 1), (2, 1), (2, 2), (2, 2), (4, 1), (4, 1), (4, 2), (4, 2)],
}


@pytest.mark.parametrize(
    "place",
    [
        "PKUv1a_128x48",
        "PKU-Reid-Dataset/PKUv1a_128x48",
        "PKU-Reid/PKUv1a_128x48",
        "pku/PKUv1a_128x48",
        "pku",
        "pku-reid",
    ],
)
@pytest.mark.parametrize("pattern", ["{pid:03d}_{cam:02d}_{orientation}.png", "{pid}_{cam}_{orientation}.png"])
def test_pku_release_is_found_in_each_place_and_divided_by_rule(place: str, pattern: str, tmp_path: Path) -> None:
    folder = pku(tmp_path / place, pattern)
    domain = read("PKU-Reid", tmp_path)
    assert (domain.name, domain.root, domain.layout) == ("pku", folder, "PKU-Reid's names")
    assert {split: [row[1:] for row in rows] for split, rows in shown(domain).items()} == PKU_SPLITS
    assert all(re.search(r"_1\.png$", name) for name in names(domain.query))
    assert mentions(domain, "no split is given: every second of the 4 identities trains")


def test_pku_is_read_from_a_folder_per_identity(tmp_path: Path) -> None:
    pku(tmp_path / "pku" / "images", "{pid:03d}/{cam:02d}_{orientation}.png")
    domain = read("pku", tmp_path)
    assert {split: [row[1:] for row in rows] for split, rows in shown(domain).items()} == PKU_SPLITS


def test_folder_given_by_path_is_looked_into(tmp_path: Path) -> None:
    cuhk01(tmp_path / "cuhk01" / "campus")
    viper(tmp_path / "viper" / "VIPeR")
    pku(tmp_path / "pku-reid" / "PKUv1a_128x48")
    for name, called in (("cuhk01", "cuhk01"), ("viper", "viper"), ("pku-reid", "pku")):
        domain = read(str(tmp_path / name), tmp_path / "no data folder")
        assert (domain.name, domain.root) == (called, tmp_path / name)


def test_other_data_is_not_taken_for_a_published_set(tmp_path: Path) -> None:
    touch(tmp_path / "frames", [f"{number:07d}.png" for number in range(1, 8)])
    assert read("frames", tmp_path).layout == "images without labels"
    touch(cuhk01(tmp_path / "cuhk01" / "campus"), ["sheet.png"])
    assert "has to hold images called 0001001.png and so on, alone in it or in its folder campus" in fault(
        "cuhk01", tmp_path
    )
    touch(tmp_path / "viper", ["cam_a/person_0001.png", "cam_b/person_0001.png"])
    assert "has to hold the folders cam_a and cam_b with images called 000_45.bmp" in fault("viper", tmp_path)
    touch(pku(tmp_path / "pku" / "images", "{pid:03d}/{cam:02d}_{orientation}.png"), ["005/9_1.png"])
    assert "has to hold images called 001_02_8.png" in fault("pku", tmp_path)


def test_campus_alone_is_no_name_of_cuhk01(tmp_path: Path) -> None:
    cuhk01(tmp_path / "campus")
    assert read("campus", tmp_path).name == "campus"
    assert "cuhk01 (CUHK01) is not in" in fault("cuhk01", tmp_path)
