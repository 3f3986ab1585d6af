from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, mentions, names, touch
from uda_reid.data.layouts import read
from uda_reid.errors import DataError


def test_folder_per_identity_is_divided_by_rule(tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"{person}/{n}.png" for person in ("dan", "ann", "bob", "cleo") for n in (2, 1)])
    domain = read("own", tmp_path)
    shown = [
        [str(path.relative_to(domain.root)) for path in split.paths]
        for split in (domain.train, domain.query, domain.gallery)
    ]
    assert shown == [
        ["ann/1.png", "ann/2.png", "cleo/1.png", "cleo/2.png"],
        ["bob/1.png", "dan/1.png"],
        ["bob/2.png", "dan/2.png"],
    ]
    assert domain.train.pids.tolist() == [1, 1, 3, 3]
    assert domain.train.cams is None
    assert mentions(domain, "first image as query")


def test_folder_per_identity_takes_cameras_from_file_names(tmp_path: Path) -> None:
    crops = ["0001/x_c1.jpg", "0001/x_c2.jpg", "0002/x_c1.jpg", "0002/x_c2.jpg", "0002/y_c2.jpg"]
    touch(tmp_path / "own", crops)
    domain = read("own", tmp_path)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1, 1], [1, 2])
    assert (names(domain.query), names(domain.gallery)) == (["x_c1.jpg"], ["x_c2.jpg", "y_c2.jpg"])
    assert mentions(domain, "2 cameras read from the file names, as in x_c1.jpg; give a manifest.csv if that is wrong")
    touch(tmp_path / "own", ["0002/z.jpg"])
    domain = read("own", tmp_path)
    assert domain.train.cams is None
    assert mentions(domain, "only 5 of 6 file names hold a camera, so cameras count as unknown, as in x_c1.jpg")


def test_folder_per_identity_under_given_splits(tmp_path: Path) -> None:
    crops = ["train/a/1.jpg", "train/b/1.jpg", "query/c/1.jpg", "gallery/c/2.jpg", "gallery/-1/3.jpg"]
    touch(tmp_path / "own", crops)
    domain = read("own", tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [
        [1, 2],
        [3],
        [-1, 3],
    ]
    assert domain.notes == (
        "no file name holds a camera, so cameras are unknown; give a manifest.csv if you know them",
        "the gallery shows one identity, so every answer is right and scores say nothing",
    )
    touch(tmp_path / "own", ["val/a/1.jpg", "train_all/a/1.jpg"])
    assert mentions(read("own", tmp_path), "only train, query, gallery are read, ignored beside them: train_all, val")
    shutil.rmtree(tmp_path / "own" / "gallery")
    assert "has a folder train but none called gallery" in fault("own", tmp_path)


def test_stray_images_beside_identities_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "cover.jpg"])
    assert mentions(read(str(tmp_path), tmp_path), "1 image outside the identities' folders left out, first")


def test_folders_in_and_without_images_of_an_identity_are_noted(tmp_path: Path) -> None:
    crops = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]
    touch(tmp_path, [*crops, "b/night/3.jpg", "docs/read.txt"])
    domain = read(str(tmp_path), tmp_path)
    assert sum(map(len, (domain.train, domain.query, domain.gallery))) == len(crops)
    assert mentions(
        domain, f"2 folders of identities with no image or with folders inside, first {tmp_path / 'b'}; only"
    )


@pytest.mark.parametrize(
    ("folders", "blamed"),
    [
        (("cam_a", "cam_b/0001"), "cam_a"),
        (("0001", "camera2"), "camera2"),
        (("Cam-1", "splits"), "Cam-1"),
        (("image_query", "image_test", "image_train"), "image_query"),
        (("images", "splits"), "images"),
        (("bbox_test/0001", "bbox_train/0001"), "bbox_test"),
        (("bounding_box_test", "gt_bbox"), "bounding_box_test"),
        (("0001", "gt_query"), "gt_query"),
        (("detected", "labeled"), "detected"),
        (("0001", "labelled"), "labelled"),
        (("train_all", "val"), "train_all"),
        (("0001", "val"), "val"),
        (("test", "validation"), "test"),
    ],
)
def test_folders_of_another_layout_are_refused(folders: tuple[str, ...], blamed: str, tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"{folder}/{n}.jpg" for folder in folders for n in (1, 2)])
    with pytest.raises(
        DataError, match=rf"own/{blamed}: '{blamed}' names a split, a camera .* that folder itself .*manifest.csv$"
    ):
        read("own", tmp_path)


def test_names_of_people_are_no_other_layout(tmp_path: Path) -> None:
    people = ("cam", "cameron", "cami", "camilla", "valentin", "tess", "gt", "-1", "trainor", "imogen")
    touch(tmp_path / "own", [f"{person}/{n}.jpg" for person in people for n in (1, 2)])
    domain = read("own", tmp_path)
    assert sum(map(len, (domain.train, domain.query, domain.gallery))) == 2 * len(people)


@pytest.mark.parametrize("slip", ["six", "unknown"])
def test_numbers_and_names_of_people_do_not_mix(slip: str, tmp_path: Path) -> None:
    """1 and 001 are one person as numbers, and two as names: among names, both would have become identities."""
    folders = [*(f"{number:03d}" for number in range(1, 6)), *map(str, range(1, 6)), slip]
    touch(tmp_path / "own", [f"{who}/c{n}_.jpg" for who in folders for n in (1, 2)])
    with pytest.raises(
        DataError, match=rf"own/{slip}: identity '{slip}' beside '001'; write whole numbers for all, or"
    ):
        read("own", tmp_path)
    (tmp_path / "own" / slip).rename(tmp_path / "own" / "6")  # the remedy
    assert len(set(read("own", tmp_path).train.pids.tolist())) == 3


@pytest.mark.parametrize("zero", ["0", "00", "0000"])
@pytest.mark.parametrize("split", [True, False])
def test_zero_among_names_is_a_folder_of_distractors(zero: str, split: bool, tmp_path: Path) -> None:
    splits = ("train/", "query/", "gallery/") if split else ("",)
    touch(
        tmp_path / "own",
        [f"{part}{who}/c{n}_{k}.jpg" for part in splits for who in ("anna", "ben") for n in (1, 2) for k in (1, 2)],
    )
    touch(tmp_path / "own", [f"{splits[-1]}{zero}/c1_9.jpg", f"{splits[-1]}{zero}/c2_9.jpg"])
    domain = read("own", tmp_path)
    assert (domain.gallery.pids == 0).sum() == 2 and 0 not in domain.train.pids
    assert set(domain.train.pids.tolist()) | set(domain.query.pids.tolist()) == {1, 2}


def test_identity_folder_with_images_of_several_identities_is_refused(tmp_path: Path) -> None:
    own = ["a/0002_c1s1_000451_03.jpg", "a/0002_c2s1_000001_01.jpg", "b/0007_c1_1.jpg", "b/-x.jpg"]
    touch(tmp_path / "own", own)
    assert names(read("own", tmp_path).train) == ["0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg"]
    touch(tmp_path / "own", ["b/0009_c1_1.jpg"])
    with pytest.raises(DataError, match=r"own/b: 0007_c1_1.jpg and 0009_c1_1.jpg are named like .*manifest.csv$"):
        read("own", tmp_path)


def test_queries_without_identities_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["train/a/1.jpg", "query/a.jpg", "query/b.jpg", "gallery/c/1.jpg"])
    assert "own/query: its 2 images have no identities, which evaluation needs" in fault("own", tmp_path)


@pytest.mark.parametrize(
    ("train", "cameras", "note"),
    [
        (("y.jpg", "x.jpg"), None, "train: no file name holds a camera"),
        (("y_c3.jpg", "x_c1.jpg"), [1, 3], "train: 2 cameras read from the file names, as in x_c1.jpg"),
        (("cam3/x.jpg", "cam9/x.jpg"), [3, 9], "train: 2 cameras read from the names of folders, as in cam3/x.jpg"),
    ],
)
def test_unlabelled_training_images_beside_labelled_tests_can_be_scored(
    train: tuple[str, ...], cameras: list[int] | None, note: str, tmp_path: Path
) -> None:
    touch(tmp_path / "own" / "train", train)
    touch(tmp_path / "own", ["query/7/1_c1.jpg", "gallery/7/2_c2.jpg", "gallery/-1/3_c2.jpg", "gallery/8/4_c1.jpg"])
    domain = read("own", tmp_path)
    assert (names(domain.train), domain.train.pids.tolist()) == (
        sorted(path.split("/")[-1] for path in train),
        [-2, -2],
    )
    assert (None if domain.train.cams is None else cams(domain.train)) == cameras
    assert (domain.query.pids.tolist(), cams(domain.query)) == ([7], [1])
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([-1, 7, 8], [2, 2, 1])
    assert not domain.labelled
    assert mentions(domain, note)
    assert mentions(domain, "query and gallery: 2 cameras read from the file names, as in 1_c1.jpg")
    assert domain.notes[-1] == (
        "the training images have no identities: it can be adapted to and scored on, but is no source"
    )


def test_unlabelled_training_images_need_no_query_and_gallery(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["train/x.jpg", "train/y.jpg"])
    domain = read("own", tmp_path)
    assert domain.train.pids.tolist() == [-2, -2]
    assert domain.notes[-1] == "no identities: it can be adapted to, nothing can be scored on it"
    touch(tmp_path / "own", ["query/a/1.jpg"])
    assert "has a folder train but none called gallery" in fault("own", tmp_path)
    shutil.rmtree(tmp_path / "own" / "query")
    touch(tmp_path / "own", ["train/a/1.jpg"])
    assert "has a folder train but none called query" in fault("own", tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert "own: no images in it or in the folders in it" in fault("own", tmp_path)
    touch(tmp_path / "own", ["a/notes.txt", "readme.md"])
    assert "own: no images in it or in the folders in it" in fault("own", tmp_path)
    touch(tmp_path / "own", ["a/1.tif"])
    assert "1 file of a kind that is not read (tif)" in fault("own", tmp_path)


def test_splits_are_found_in_whatever_case(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["Train/a/1.jpg", "Train/b/1.jpg", "QUERY/c/1.jpg", "Gallery/c/2.jpg", "Val/d/1.jpg"])
    domain = read("own", tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [[1, 2], [3], [3]]
    assert mentions(domain, "ignored beside them: Val")


@pytest.mark.parametrize("inner", ["cam1", "0001C1T0001"])
def test_images_one_folder_deeper_are_refused_with_an_example(inner: str, tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"{person}/{inner}/{n}.jpg" for person in ("0001", "0002") for n in (1, 2)])
    assert fault("own", tmp_path) == (
        f"{tmp_path}/own: the images lie one folder deeper than an identity's, as {tmp_path}/own/0001/{inner}/1.jpg; "
        f"move them up, as 0001/{inner}_1.jpg, or list them in a manifest.csv"
    )


def test_folder_around_the_identities_is_refused_with_what_to_give(tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"x/{person}/{n}.jpg" for person in ("0001", "0002") for n in (1, 2)])
    assert f"give {tmp_path}/own/x itself, move them up" in fault("own", tmp_path)


@pytest.mark.parametrize(("loose", "told"), [((), "with 2 images, read"), (("1.jpg",), "beside 1 loose image, read")])
def test_single_folder_is_refused_with_the_way_to_read_it_without_labels(
    loose: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    touch(tmp_path / "own", ["crops/a.jpg", "crops/b.jpg", *loose])
    message = fault("own", tmp_path)
    assert told in message
    assert message.endswith(f"put a file unlabelled.txt into {tmp_path}/own")
    (tmp_path / "own" / "unlabelled.txt").touch()
    assert len(read("own", tmp_path).train) == 2 + len(loose)


def test_names_that_begin_alike_in_every_folder_number_frames(tmp_path: Path) -> None:
    names_of = [f"{frame:04d}_c{cam}.jpg" for frame in (1, 2) for cam in (1, 2)]
    touch(tmp_path / "own", [f"{who}/{name}" for who in ("anna", "ben", "carl", "dan") for name in names_of])
    domain = read("own", tmp_path)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1] * 4 + [3] * 4, [1, 2] * 4)


@pytest.mark.parametrize(
    ("people", "images", "told"),
    [
        (("entrance", "exit"), 10, True),
        (("entrance", "exit"), 9, False),
        (("1", "2"), 10, False),
        ("abcde", 10, False),
    ],
)
def test_few_folders_of_many_images_may_be_places(
    people: tuple[str, ...], images: int, told: bool, tmp_path: Path
) -> None:
    touch(tmp_path / "own", [f"{who}/{n}.jpg" for who in people for n in range(images)])
    note = f"read as {len(people)} identities; if these are cameras or places, put a file unlabelled.txt there"
    assert (note in read("own", tmp_path).notes) == told


def test_codes_of_which_one_is_all_digits_are_names(tmp_path: Path) -> None:
    people = ("1a2b", "3c4d", "5678", "9e01")
    touch(tmp_path / "own", [f"{who}/c{n}_1.jpg" for who in people for n in (1, 2)])
    domain = read("own", tmp_path)
    assert len({*domain.train.pids.tolist(), *domain.query.pids.tolist()}) == 4
    touch(tmp_path / "own", ["05678/c1_1.jpg", "05678/c2_1.jpg"])
    with pytest.raises(DataError, match="write whole numbers for all, or names for all"):
        read("own", tmp_path)


def test_folders_of_cameras_with_numbers_and_letters_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"{cam}/{n}.jpg" for cam in ("cam1", "cam2", "cam_b") for n in (1, 2, 3)])
    touch(tmp_path / "own", ["unlabelled.txt"])
    domain = read("own", tmp_path)
    assert domain.train.cams is not None and domain.train.cams.tolist() == [1] * 3 + [2] * 3 + [3] * 3


def test_a_table_may_number_some_cameras_and_name_others(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    lines = ["path,identity,camera", "a.jpg,1,2", "b.jpg,1,entrance", "c.jpg,2,02", "d.jpg,2,entrance"]
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(lines))
    domain = read("own", tmp_path)
    assert domain.train.cams is not None and domain.train.cams.tolist() == [2, 3]
