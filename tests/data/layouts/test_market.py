from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.layouts.folders import GALLERY, QUERY, TRAIN, cams, fault, market, mentions, names, touch
from uda_reid.data.layouts import read
from uda_reid.data.layouts.market import MARKET_NAME, read_market
from uda_reid.errors import DataError


def test_market_layout_is_read_sorted_with_junk_and_distractors_in_the_gallery(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop", train=reversed(TRAIN)).parent)
    assert names(domain.train) == sorted(TRAIN)
    assert domain.train.pids.tolist() == [2, 2, 7]
    assert cams(domain.train) == [1, 2, 1]
    assert domain.gallery.pids.tolist() == [-1, 0, 4, 5]
    assert cams(domain.query) == [1, 2]
    assert domain.train.pids.dtype == np.int64
    assert domain.train.cams is not None and domain.train.cams.dtype == np.int64
    assert domain.notes == ()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("0002_c1s1_000451_03.jpg", ("0002", "1")),
        ("-1_c3s2_000000_00.jpg", ("-1", "3")),
        ("0001_c2_f0046182.jpg", ("0001", "2")),
        ("00012_c014_x.jpg", ("00012", "014")),
        ("002_c1.jpg", None),
        ("x0002_c1.jpg", None),
        ("-2_c1.jpg", None),
    ],
)
def test_market_names_hold_identity_and_camera(name: str, labels: tuple[str, str] | None) -> None:
    match = MARKET_NAME.match(name)
    assert (match.groups() if match else None) == labels


def test_identities_without_leading_zeros_are_read_in_the_market_folders(tmp_path: Path) -> None:
    market(tmp_path / "shop", train=("7_c1_1.jpg", "1003_c2_1.jpg"), query=("12_c1_1.jpg",), gallery=("12_c2_1.jpg",))
    domain = read("shop", tmp_path)
    assert (sorted(domain.train.pids.tolist()), domain.query.pids.tolist()) == ([7, 1003], [12])
    assert not mentions(domain, "left out")


def test_folders_are_found_in_whatever_case(tmp_path: Path) -> None:
    market(tmp_path / "shop")
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "shop" / name).rename(tmp_path / "shop" / name.title())
    domain = read("shop", tmp_path)
    assert domain.layout == "Market-1501's folders"
    assert [len(split) for split in (domain.train, domain.query, domain.gallery)] == [3, 2, 4]


def test_parent_folder_that_looks_like_a_label_does_not_disturb(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "exp-1_c2" / "shop").parent)
    assert domain.train.pids.tolist() == [2, 2, 7]
    assert cams(domain.train) == [1, 2, 1]


def test_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    extra = ("Thumbs.db", "._0002_c1s1_000451_03.jpg", ".DS_Store", "notes.txt", "0009_c1s1_000001_01.JPeG")
    domain = read("shop", market(tmp_path / "shop", train=(*TRAIN, *extra)).parent)
    assert names(domain.train) == [*sorted(TRAIN), "0009_c1s1_000001_01.JPeG"]
    assert domain.notes == ()


def test_unmatched_names_are_counted_in_one_note(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop", train=(*TRAIN, "cover.jpg"), gallery=(*GALLERY, "zebra.png"))
    domain = read("shop", tmp_path)
    assert len(domain.train) == 3
    assert len(domain.notes) == 1
    assert domain.notes[0].startswith("2 of 11 images (18.2%) not named by identity and camera and so left out")
    assert str(folder / "bounding_box_train" / "cover.jpg") in domain.notes[0]


def test_junk_and_distractors_outside_the_gallery_are_dropped_with_a_note(tmp_path: Path) -> None:
    market(
        tmp_path / "shop",
        train=(*TRAIN, "-1_c1s1_000009_01.jpg", "0000_c1s1_000009_01.jpg"),
        query=(*QUERY, "-1_c1s1_000009_01.jpg"),
    )
    domain = read("shop", tmp_path)
    assert (names(domain.train), names(domain.query)) == (sorted(TRAIN), sorted(QUERY))
    assert mentions(domain, "left out of train: 2 of junk or distractors, first -1_c1s1_000009_01.jpg")
    assert mentions(domain, "left out of query: 1")
    assert domain.gallery.pids.tolist() == [-1, 0, 4, 5]


def test_query_of_identity_zero_is_refused(tmp_path: Path) -> None:
    market(tmp_path / "shop", query=("0000_c1_0001.jpg", *QUERY))
    with pytest.raises(DataError, match=r"^.*query/0000_c1_0001.jpg: .*numbered from 0 .* distractors; .*manifest.csv"):
        read("shop", tmp_path)


def test_identities_in_train_and_query_alike_are_noted(tmp_path: Path) -> None:
    market(tmp_path / "shop", query=(*QUERY, "0007_c2s1_000001_01.jpg"))
    assert mentions(read("shop", tmp_path), "1 identity both in train and query")


def test_market_layout_faults_are_one_line(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop")
    shutil.rmtree(folder / "query")
    assert "shop: the folder query is missing" in fault("shop", tmp_path)
    (folder / "query").mkdir()
    assert f"{folder / 'query'}: no images in it (jpg, jpeg, png, bmp, webp)" in fault("shop", tmp_path)
    touch(folder / "query", ["x.jpg", "y.jpg"])
    assert "none of its 2 images is named by identity and camera" in fault("shop", tmp_path)
    market(tmp_path / "junk", train=["-1_c1s1_000001_01.jpg"])
    assert f"{tmp_path / 'junk'}: no image is left in train" in fault("junk", tmp_path)


def test_other_folder_names_are_one_field_away(tmp_path: Path) -> None:
    market(tmp_path)
    (tmp_path / "bounding_box_train").rename(tmp_path / "image_train")
    (tmp_path / "query").rename(tmp_path / "image_query")
    (tmp_path / "bounding_box_test").rename(tmp_path / "image_test")
    parts = read_market(tmp_path, folders=("image_train", "image_query", "image_test"))
    assert [len(split) for split in (parts.train, parts.query, parts.gallery)] == [3, 2, 4]


def test_images_of_a_kind_that_is_not_read_are_named_in_every_layout(tmp_path: Path) -> None:
    folder = market(tmp_path / "market")
    for name in ("bounding_box_train", "bounding_box_test"):
        first = min((folder / name).glob("*.jpg"))
        first.rename(first.with_suffix(".tif"))
    assert mentions(read("market", tmp_path), "2 files of a kind that is not read (tif), first")
