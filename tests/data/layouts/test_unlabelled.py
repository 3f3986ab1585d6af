from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, manifest, market, mentions, names, touch
from uda_reid.data.layouts import Counts, describe, listing, read
from uda_reid.data.layouts.unlabelled import is_unlabelled
from uda_reid.errors import DataError
from uda_reid.types import UNKNOWN

NOTHING_SCORED = "no identities: it can be adapted to, nothing can be scored on it"
NO_CAMERAS = "no file name holds a camera, so cameras are unknown; give a manifest.csv if you know them"


def test_flat_images_are_a_target_without_labels(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["b.jpg", "a.PNG", "notes.txt", "docs/read.me", "._a.png"])
    domain = read("site", tmp_path)
    assert (domain.name, domain.layout) == ("site", "images without labels")
    assert names(domain.train) == ["a.PNG", "b.jpg"]
    assert domain.train.pids.tolist() == [UNKNOWN, UNKNOWN]
    assert domain.train.cams is None
    assert (len(domain.query), len(domain.gallery)) == (0, 0)
    assert domain.notes == (NO_CAMERAS, NOTHING_SCORED)
    assert not domain.labelled


def test_unlabelled_images_are_described_and_listed(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["cam1/a.jpg", "cam2/a.jpg", "cam2/b.jpg"])
    domain = read("site", tmp_path)
    assert describe(domain)[0] == Counts("train", images=3, identities=0, cameras=2, distractors=0, junk=0)
    before = listing(domain)
    (tmp_path / "site").rename(tmp_path / "place")
    assert listing(read("place", tmp_path)) == before
    (tmp_path / "place" / "cam1").rename(tmp_path / "place" / "cam3")
    assert listing(read("place", tmp_path)) != before


def test_cameras_come_from_file_names_when_every_name_holds_one(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["0001_c2_5.jpg", "0002_c1_5.jpg"])
    domain = read("site", tmp_path)
    assert cams(domain.train) == [2, 1]
    assert domain.notes == (
        "2 cameras read from the file names, as in 0001_c2_5.jpg; give a manifest.csv if that is wrong",
        "2 files are named like Market-1501's, as 0001_c2_5.jpg; the identities in the names are not read",
        NOTHING_SCORED,
    )
    touch(tmp_path / "site", ["x.jpg"])
    domain = read("site", tmp_path)
    assert domain.train.cams is None
    assert mentions(domain, "only 2 of 3 file names hold a camera")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("cam1/9_c5.jpg", "cam2/8_c6.jpg", "cam2/9_c5.jpg"), [1, 2, 2]),
        (("Camera_03/x.jpg", "camera 12/x.jpg"), [3, 12]),
        (("c0/x.jpg", "c1/x.jpg"), [1, 2]),
        (("cam_a/x.jpg", "cam_b/x.jpg"), [1, 2]),
        (("2024-01-31/cam2/x.jpg", "2024-02-01/cam1/x.jpg", "2024-02-01/cam2/x.jpg"), [2, 1, 2]),
        (("cam1/2024-01-31 12-00-05/x.jpg", "cam2/20240201/x.jpg", "cam2/x.jpg"), [1, 2, 2]),
        (("cam1/x.jpg", "cam2/x.jpg", "flat_c7.jpg"), None),
        (("morning/1_c7.jpg", "night/2_c8.jpg"), [7, 8]),
    ],
)
def test_folders_called_after_cameras_and_dates_are_no_identities(
    files: tuple[str, ...], expected: list[int] | None, tmp_path: Path
) -> None:
    touch(tmp_path / "site", files)
    domain = read("site", tmp_path)
    assert domain.layout == "images without labels"
    assert [path.relative_to(domain.root).as_posix() for path in domain.train.paths] == list(files)
    assert domain.train.pids.tolist() == [UNKNOWN] * len(files)
    assert (None if domain.train.cams is None else cams(domain.train)) == expected
    assert domain.notes[-1] == NOTHING_SCORED


def test_cameras_read_from_folders_are_noted(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["cam1/a.jpg", "cam2/b.jpg"])
    note = "2 cameras read from the names of folders, as in cam1/a.jpg; give a manifest.csv if that is wrong"
    assert read("site", tmp_path).notes == (note, NOTHING_SCORED)


@pytest.mark.parametrize(
    "folder",
    ["2024-01-31", "2024_1", "20240131", "31.01.2024", "2024-01-31_23h", "2024-01-31T12:30", "Monday", "day 3", "noon"],
)
def test_dates_are_told_from_identities(folder: str, tmp_path: Path) -> None:
    touch(tmp_path / "site", [f"{folder}/x.jpg"])
    assert is_unlabelled(tmp_path / "site")


@pytest.mark.parametrize(
    "files",
    [
        ("0001/x.jpg", "0002/x.jpg"),
        ("cam1/x.jpg", "0001/x.jpg"),
        ("cam1/0001/x.jpg", "cam2/0001/x.jpg"),
        ("x.jpg", "0001/x.jpg"),
        ("20241301/x.jpg",),
        ("202401/x.jpg",),
        ("2024/x.jpg",),
        ("12-30/x.jpg",),
        ("images/x.jpg",),
        ("docs/read.me",),
    ],
)
def test_other_folders_are_not_taken_for_unlabelled(files: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path / "site", files)
    assert not is_unlabelled(tmp_path / "site")


def test_one_camera_counts_as_unknown(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["cam1/a.jpg", "cam1/b.jpg"])
    domain = read("site", tmp_path)
    assert domain.train.cams is None
    assert mentions(domain, "all images are from one camera, so cameras count as unknown")


def test_folder_of_training_images_given_by_its_path_is_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path / "shop" / "bounding_box_train", ["0002_c1s1_000451_03.jpg", "0007_c2s1_000001_01.jpg"])
    domain = read("shop/bounding_box_train", tmp_path)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([UNKNOWN, UNKNOWN], [1, 2])


def test_folder_that_its_owner_calls_unlabelled_is_read_so(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["entrance/a.jpg", "entrance/b.jpg", "exit/a.jpg", "c.jpg", "unlabelled.txt"])
    domain = read("site", tmp_path)
    assert (domain.layout, len(domain.train)) == ("images without labels", 4)
    assert domain.train.pids.tolist() == [UNKNOWN] * 4
    assert "read without labels, as unlabelled.txt in it says" in domain.notes
    touch(tmp_path / "empty", ["unlabelled.txt"])
    assert "empty: no images in it" in fault("empty", tmp_path)


def test_marker_goes_before_published_layouts_and_after_a_table(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop")
    touch(folder, ["unlabelled.txt"])
    assert read("shop", tmp_path).layout == "images without labels"
    manifest(folder, "path,identity\na.jpg,1\nb.jpg,1\nc.jpg,2\nd.jpg,2\n")
    assert read("shop", tmp_path).labelled


def test_marker_in_train_leaves_the_test_its_labels(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["train/yard/a.jpg", "train/unlabelled.txt", "query/anna/1.jpg", "gallery/anna/2.jpg"])
    domain = read("own", tmp_path)
    assert (domain.train.pids.tolist(), domain.query.pids.tolist()) == ([UNKNOWN], [1])


def test_links_in_a_circle_end_and_every_folder_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["cam1/a.jpg", "cam2/a.jpg"])
    (tmp_path / "site" / "cam1" / "cam2").symlink_to("..")
    (tmp_path / "site" / "cam1" / "cam3").symlink_to(".")
    (tmp_path / "site" / "cam1" / "cam4").symlink_to("../cam2")
    (tmp_path / "site" / "cam2" / "self.jpg").symlink_to("self.jpg")
    domain = read("site", tmp_path)
    assert sorted(names(domain.train)) == ["a.jpg", "a.jpg", "self.jpg"]
    assert is_unlabelled(tmp_path / "site")
    circle = tmp_path / "circle"
    circle.mkdir()
    (circle / "x").symlink_to(".")
    assert not is_unlabelled(circle)
    assert "circle: no images in it" in fault("circle", tmp_path)


def test_dead_links_and_other_kinds_of_images_are_noted(tmp_path: Path) -> None:
    touch(tmp_path / "site", ["cam1/a.jpg", "cam1/b.TIF", "cam2/c.gif", "cam2/d.jpg"])
    (tmp_path / "site" / "cam2" / "e.jpg").symlink_to("gone.jpg")
    (tmp_path / "site" / "cam3").symlink_to("/gone/cam3")
    domain = read("site", tmp_path)
    assert names(domain.train) == ["a.jpg", "d.jpg", "e.jpg"]
    first, second = domain.notes[-2:]
    assert first == (f"2 files of a kind that is not read (gif, tif), first {tmp_path}/site/cam1/b.TIF; convert them")
    assert second == f"1 link leads to nothing, so what lay there is missing, first {tmp_path}/site/cam3"
    with pytest.raises(DataError, match=r"e.jpg: the image cannot be read"):
        listing(domain)
