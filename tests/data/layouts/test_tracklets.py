from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, mentions, names, touch, tracklets
from uda_reid.data.layouts import read
from uda_reid.errors import DataError

OLD = (
    "train/0001/0003/0001C6F0002X30823.jpg",
    "train/0001/0003/0001C6F0001X30811.jpg",
    "train/0001/0004/0001C2F0001X00100.jpg",
    "train/0010/0005/0010C2F0001X00100.jpg",
    "query/0002/0001/0002C1F0002X00013.jpg",
    "query/0002/0001/0002C1F0001X00001.jpg",
    "gallery/0002/0002/0002C5F0001X00001.jpg",
    "gallery/0002/0002/0002C5F0002X00013.jpg",
    "gallery/0003/0001/0003C8F0001X00001.jpg",
)


@pytest.mark.parametrize(
    "place", ["dukemtmc-vidreid/DukeMTMC-VideoReID", "DukeMTMC-VideoReID", "dukemtmc-vidreid", "duke-video"]
)
@pytest.mark.parametrize("typed", ["duke-video", "DukeMTMC-VideoReID", "dukemtmc-vidreid"])
def test_tracklets_are_read_in_each_place_by_their_images(place: str, typed: str, tmp_path: Path) -> None:
    touch(tmp_path / place, OLD)
    domain = read(typed, tmp_path)
    assert domain.root.samefile(tmp_path / place)
    assert (domain.name, domain.layout) == ("duke-video", "a folder per tracklet")
    assert names(domain.train) == [
        "0001C6F0001X30811.jpg",
        "0001C6F0002X30823.jpg",
        "0001C2F0001X00100.jpg",
        "0010C2F0001X00100.jpg",
    ]
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1, 1, 1, 10], [6, 6, 2, 2])
    numbers = tracklets(domain.train)
    assert numbers[0] == numbers[1]
    assert len({*numbers, *tracklets(domain.query), *tracklets(domain.gallery)}) == 6
    assert (names(domain.query), cams(domain.query)) == (["0002C1F0001X00001.jpg"], [1])
    assert names(domain.gallery) == ["0002C5F0001X00001.jpg", "0003C8F0001X00001.jpg"]
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([2, 3], [5, 8])
    assert mentions(domain, "each tracklet stands by its first image, so their counts are in tracklets")
    assert mentions(
        domain, "gallery has 2 images of 2 identities, DukeMTMC-VideoReID was published with 2,636 of 1,110"
    )


def test_names_with_underscores_hold_cameras_too(tmp_path: Path) -> None:
    touch(
        tmp_path / "film",
        [
            "train/0001/0003/0001_C6_F0099_X30823.jpg",
            "query/0002/0001/0002_C1_F0001_X00001.jpg",
            "gallery/0002/0002/0002_C5_F0001_X00001.jpg",
        ],
    )
    domain = read("film", tmp_path)
    assert [cams(split) for split in (domain.train, domain.query, domain.gallery)] == [[6], [1], [5]]


def test_names_as_in_mars_hold_cameras_too(tmp_path: Path) -> None:
    touch(
        tmp_path / "film",
        [
            "Train/0001/a/0001C3T0002F001.jpg",
            "Query/0002/a/0002C1T0001F001.jpg",
            "Gallery/0002/b/0002C5T0001F001.jpg",
            "Gallery/-1/c/00-1C2T0001F001.jpg",
        ],
    )
    domain = read("film", tmp_path)
    assert domain.layout == "a folder per tracklet"
    assert [cams(split) for split in (domain.train, domain.query, domain.gallery)] == [[3], [1], [2, 5]]


def test_tracklets_of_ones_own_need_no_cameras(tmp_path: Path) -> None:
    touch(tmp_path / "film", ["train/ann/a/1.jpg", "train/ann/a/2.jpg", "query/bob/a/1.jpg", "gallery/bob/b/1.jpg"])
    domain = read("film", tmp_path)
    assert (domain.train.pids.tolist(), domain.train.cams, tracklets(domain.train)) == ([1, 1], None, [3, 3])
    assert mentions(domain, "no file name holds a camera, so cameras are unknown")


def test_split_without_tracklets_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "film", ["train/ann/a/1.jpg", "query/bob/1.jpg", "gallery/bob/b/1.jpg"])
    message = fault("film", tmp_path)
    assert message.startswith(f"{tmp_path / 'film' / 'query'}: no images in it below a folder for the identity")


def test_folders_per_identity_with_a_folder_in_one_are_no_tracklets(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["train/a/1.jpg", "train/a/night/2.jpg", "query/b/1.jpg", "gallery/b/2.jpg"])
    domain = read("own", tmp_path)
    assert (domain.layout, len(domain.train), domain.train.tracklets) == ("a folder per identity", 1, None)


@pytest.mark.parametrize(
    "names_of",
    [("cam01", "cam02"), ("camera_a", "camera_b"), ("images_1", "images_2"), ("c1", "c2"), ("Camera 1", "Camera 2")],
)
def test_folders_of_cameras_are_no_identities(names_of: tuple[str, str], tmp_path: Path) -> None:
    """The depth of tracklets, but of cameras: two identities had been read of four people."""
    for split in ("train", "query", "gallery"):
        touch(tmp_path / "own" / split, [f"{cam}/person0{n}/frame000.jpg" for cam in names_of for n in (1, 2)])
    with pytest.raises(DataError, match=rf"train/{names_of[0]}: '{names_of[0]}' names a split, a camera or a kind"):
        read("own", tmp_path)
    marker = tmp_path / "own" / "train" / "unlabelled.txt"  # the first remedy, here for all splits
    marker.touch()
    with pytest.raises(DataError, match=rf"query/{names_of[0]}: .* are no tracklets of one; list the images in a man"):
        read("own", tmp_path)
    marker.unlink()
    lines = [
        f"{split}/{cam}/person0{n}/frame000.jpg,{n},{place},{split}"
        for split in ("train", "query", "gallery")
        for place, cam in enumerate(names_of)
        for n in (1, 2)
    ]
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(["path,identity,camera,split", *lines]) + "\n")
    assert set(read("own", tmp_path).train.pids.tolist()) == {1, 2}


def test_owner_s_word_that_train_has_no_labels_is_heard_beside_tracklets(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    touch(folder / "train", [f"cam{cam}/track{n}/00{k}.jpg" for cam in (1, 2) for n in (0, 1) for k in (0, 1)])
    for split, cam in (("query", 1), ("gallery", 2)):
        touch(folder / split, [f"000{who}/track0/cam{cam}_{k}.jpg" for who in (1, 2) for k in (0, 1)])
    with pytest.raises(DataError, match="names a split, a camera"):
        read("own", tmp_path)
    (folder / "train" / "unlabelled.txt").touch()
    domain = read("own", tmp_path)
    assert len(domain.train) == 8 and not domain.labelled
    assert cams(domain.train) == [1] * 4 + [2] * 4
    assert (domain.query.pids.tolist(), domain.gallery.pids.tolist()) == ([1, 2], [1, 2])
    assert mentions(domain, "train: 2 cameras read from the names of folders")


def test_first_identity_whose_images_are_not_read_does_not_hide_the_layout(tmp_path: Path) -> None:
    touch(tmp_path / "own", [name.replace(".jpg", ".tif") if "train/0001" in name else name for name in OLD])
    domain = read("own", tmp_path)
    assert domain.layout == "a folder per tracklet" and domain.train.pids.tolist() == [10]
    assert mentions(domain, "3 files of a kind that is not read (tif)")
