from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, market, mentions, names, touch
from uda_reid.data.layouts import read
from uda_reid.errors import DataError
from uda_reid.types import Domain

TRAIN = ("0000/0000_000_01_0303morning_0015_0.jpg", "0001/0001_001_15_0303noon_0020_1_ex.jpg")
VAL = ("0000/0000_002_04_0303afternoon_0301_0.jpg",)
QUERY = ("0000/0000_010_02_0303morning_0015_0.jpg", "0002/0002_003_14_0303noon_0005_2.jpg")
GALLERY = ("0000/0000_011_03_0303morning_0015_0.jpg", "0002/0002_004_07_0303noon_0005_2.jpg")


def lists(folder: Path, training: str = "train", testing: str = "test") -> Path:
    """Write MSMT17 as published: identities count from 0 in train and from 0 again in the test."""
    parts = {
        "train": (TRAIN, training),
        "val": (VAL, training),
        "query": (QUERY, testing),
        "gallery": (GALLERY, testing),
    }
    for part, (images, inner) in parts.items():
        touch(folder / inner, images)
        lines = [f"{image} {int(image[:4])}\n" for image in images]
        (folder / f"list_{part}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def copied(folder: Path) -> Path:
    """Write what Person_reID_baseline_pytorch's prepare_MSMT.py makes of it."""
    parts = {"train_all": (*TRAIN, *VAL), "train": TRAIN, "val": VAL, "query": QUERY, "gallery": GALLERY}
    for part, images in parts.items():
        touch(folder / "pytorch" / part, images)
    return folder


def columns(domain: Domain) -> list[tuple[list[int], list[int]]]:
    return [(split.pids.tolist(), cams(split)) for split in (domain.train, domain.query, domain.gallery)]


BOTH = [([1, 1, 2], [1, 4, 15]), ([3, 5], [2, 14]), ([3, 5], [3, 7])]
ALONE = [([1, 2], [1, 15]), ([3, 5], [2, 14]), ([3, 5], [3, 7])]


@pytest.mark.parametrize(
    ("place", "training", "testing"),
    [
        ("msmt17/MSMT17_V1", "train", "test"),
        ("msmt17/MSMT17_V2", "mask_train_v2", "mask_test_v2"),
        ("MSMT17/MSMT17_V2", "mask_train_V2", "mask_test_V2"),
        ("MSMT17_V1", "train", "test"),
        ("MSMT17_V2", "mask_train_v2", "mask_test_v2"),
        ("msmt17v1/MSMT17_V1", "train", "test"),
        ("msmt17", "train", "test"),
    ],
)
def test_lists_are_read_in_each_place_with_test_identities_apart(
    place: str, training: str, testing: str, tmp_path: Path
) -> None:
    folder = lists(tmp_path / place, training, testing)
    domain = read("msmt17", tmp_path)
    assert columns(domain) == BOTH
    assert domain.root.samefile(folder)
    assert domain.train.paths[2] == domain.root / training / TRAIN[1]
    assert (domain.name, domain.layout) == ("msmt17", "MSMT17's lists")
    assert mentions(domain, "train is list_train and list_val together; msmt17-train is list_train alone")
    assert not mentions(domain, "distractor")
    alone = read("msmt17-train", tmp_path)
    assert columns(alone) == ALONE
    assert mentions(alone, "train is list_train alone; msmt17 is list_train and list_val together")
    assert mentions(alone, "train has 2 images of 2 identities, MSMT17 list_train was published with 30,248 of 1,041")


@pytest.mark.parametrize("typed", ["MSMT17", "msmt17_v1", "MSMT17V1"])
def test_aliases_mean_train_and_val_together(typed: str, tmp_path: Path) -> None:
    lists(tmp_path / "msmt17" / "MSMT17_V1")
    assert columns(read(typed, tmp_path)) == BOTH
    assert columns(read(str(tmp_path / "msmt17" / "MSMT17_V1"), tmp_path)) == BOTH


@pytest.mark.parametrize("place", ["MSMT17_V1", "msmt17", "msmt17/MSMT17_V1"])
def test_market_folders_are_read_with_identity_zero_as_a_person(place: str, tmp_path: Path) -> None:
    market(
        tmp_path / place,
        train=("0000_c1_0001.jpg", "0000_c4_0002.jpg", "0001_c15_0003.jpg"),
        query=("0000_c2_0000.jpg", "0002_c14_0001.jpg"),
        gallery=("0000_c3_0000.jpg", "0002_c7_0001.jpg", "-1_c7_0001.jpg"),
    )
    domain = read("msmt17", tmp_path)
    assert columns(domain) == [([1, 1, 2], [1, 4, 15]), ([3, 5], [2, 14]), ([-1, 3, 5], [7, 3, 7])]
    assert domain.layout == "MSMT17 in Market-1501's folders"
    assert "msmt17-train (MSMT17 list_train) is not in" in fault("msmt17-train", tmp_path)


def test_market_folders_with_short_numbers_are_read(tmp_path: Path) -> None:
    market(tmp_path / "msmt17", train=("0_c1_1.jpg", "1_c2_2.jpg"), query=("0_c3_0.jpg",), gallery=("0_c4_0.jpg",))
    assert columns(read("msmt17", tmp_path)) == [([1, 2], [1, 2]), ([3], [3]), ([3], [4])]


def test_folders_per_identity_hold_both_choices_of_training_images(tmp_path: Path) -> None:
    copied(tmp_path / "MSMT17_V1")
    assert columns(read("msmt17", tmp_path)) == BOTH
    domain = read("msmt17-train", tmp_path)
    assert columns(domain) == ALONE
    assert mentions(domain, "train is list_train alone")
    assert columns(read(str(tmp_path / "MSMT17_V1" / "pytorch"), tmp_path)) == BOTH


def test_lists_go_before_other_forms_beside_them(tmp_path: Path) -> None:
    folder = copied(lists(tmp_path / "MSMT17_V1"))
    assert read("msmt17", tmp_path).train.paths[0].is_relative_to(folder / "train")


def test_lists_in_a_folder_of_any_name_are_recognised(tmp_path: Path) -> None:
    domain = read("mine", lists(tmp_path / "mine").parent)
    assert (domain.name, columns(domain)) == ("mine", BOTH)


def test_labels_come_from_the_list_and_the_file_name_whatever_the_folders_are_called(tmp_path: Path) -> None:
    folder = lists(tmp_path / "exp_1_2_c3" / "mine")
    (folder / "list_train.txt").write_text(f"{TRAIN[0]} 7\r\n\r\n{TRAIN[1]}\t9\n", encoding="utf-8")
    (folder / "list_val.txt").write_text("", encoding="utf-8")
    domain = read(str(folder), tmp_path)
    assert columns(domain) == [([8, 10], [1, 15]), ([11, 13], [2, 14]), ([11, 13], [3, 7])]
    assert names(domain.train) == [Path(image).name for image in TRAIN]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("list_val.txt", None, r"list_val.txt: the list cannot be read \(.*No such file"),
        ("list_query.txt", "0000/x.jpg 0\n", r"list_query.txt:1: '0000/x.jpg 0' is not like '0000/0000_000_01_"),
        ("list_query.txt", f"\n{QUERY[0]}\n", r"list_query.txt:2: '0000/0000_010_02_\S*' is not like"),
        ("list_gallery.txt", f"{TRAIN[1]} 1\n", r"list_gallery.txt:1: there is no file \S*test/0001/0001_001_15"),
    ],
)
def test_faults_in_lists_name_file_and_line(file: str, text: str | None, message: str, tmp_path: Path) -> None:
    folder = lists(tmp_path / "msmt17")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read("msmt17", tmp_path)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def test_lists_without_images_are_refused(tmp_path: Path) -> None:
    folder = lists(tmp_path / "msmt17")
    shutil.rmtree(folder / "test")
    message = f"{folder}: holds MSMT17's lists but not its images; it has to hold the folders train and test or mask"
    with pytest.raises(DataError, match=re.escape(message)):
        read("msmt17", tmp_path)


@pytest.mark.parametrize(
    ("places", "typed", "chosen"),
    [
        (("msmt17/MSMT17_V1", "msmt17/MSMT17_V2"), "msmt17", 0),
        (("msmt17/MSMT17_V1", "msmt17/MSMT17_V2"), "msmt17_v2", 1),
        (("MSMT17_V1", "MSMT17_V2"), "msmt17v2", 1),
        (("msmt17/MSMT17_V2", "MSMT17_V1"), "MSMT17_V1", 1),
        (("msmt17/MSMT17_V2", "MSMT17_V1"), "msmt17v2", 0),
    ],
)
def test_edition_that_was_typed_is_read_and_another_is_noted(
    places: tuple[str, str], typed: str, chosen: int, tmp_path: Path
) -> None:
    for place in places:
        lists(tmp_path / place)
    domain = read(typed, tmp_path)
    assert domain.root == tmp_path / places[chosen]
    told, other = places[chosen][-2:], places[1 - chosen][-2:]
    note = f"read in the edition {told}, from {domain.root}; for {other} give the path {tmp_path / places[1 - chosen]}"
    assert note in domain.notes


def test_edition_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = lists(tmp_path / "msmt17" / "MSMT17_V1")
    assert fault("msmt17_v2", tmp_path) == (f"msmt17_v2: {folder} holds MSMT17 V1 and not V2; type msmt17 to read it")
    assert read("msmt17_v1", tmp_path).root == folder
    masked = lists(tmp_path / "other" / "msmt17", "mask_train_v2", "mask_test_v2")
    assert "holds MSMT17 V2 and not V1" in fault("msmt17_v1", masked.parent)
    lists(tmp_path / "plain" / "msmt17")
    for typed in ("msmt17_v1", "msmt17_v2"):
        assert read(typed, tmp_path / "plain").name == "msmt17"


def test_lists_that_were_saved_on_windows_are_read(tmp_path: Path) -> None:
    lists(tmp_path / "a" / "msmt17")
    other = lists(tmp_path / "b" / "msmt17")
    for file in other.glob("list_*.txt"):
        text = file.read_text(encoding="utf-8").replace("/", "\\").replace("\n", "\r\n")
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    one, two = read("msmt17", tmp_path / "a"), read("msmt17", tmp_path / "b")
    assert columns(one) == columns(two) and names(one.train) == names(two.train)
