from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.io

from tests.data.layouts.cuhk03_files import (
    GALLERY,
    NAMES,
    QUERY,
    TRAIN,
    write_images,
    write_mat,
    write_new_folders,
    write_protocol,
)
from tests.data.layouts.folders import cams, fault, mentions, names, touch
from uda_reid.data.layouts import DATASETS, read
from uda_reid.data.layouts.cuhk03 import PEOPLE
from uda_reid.types import Split

BOXES = {"cuhk03": "detected", "cuhk03-labelled": "labeled"}

# Pair 1 has 843 identities, so the first of pair 2 is the 844th; 844 + 440 = 1,284 and so on. Pair 1 has the cameras
# 1 and 2, pair 5 has 9 and 10.
TRAINED = [(1, 1), (1, 1), (1, 2), (844, 3), (844, 4), (1420, 9)]
SEARCHED = [(2, 1), (2, 2), (1361, 7)]
FOUND = [(2, 2), (1361, 8)]


def labels(split: Split) -> list[tuple[int, int]]:
    return list(zip(split.pids.tolist(), cams(split), strict=True))


def release(folder: Path, boxes: str) -> None:
    """Write the owners' archive, unpacked, and the new protocol's files beside it, as most toolkits ask for."""
    write_mat(folder / "cuhk03_release" / "cuhk-03.mat")
    write_protocol(folder, boxes)


def flat_release(folder: Path, boxes: str) -> None:
    write_mat(folder / "cuhk-03.mat")
    write_protocol(folder, boxes)


def prepared(folder: Path, boxes: str) -> None:
    """Write what toolkits have made of the release: no cuhk-03.mat is needed any more."""
    write_images(folder / f"images_{boxes}")
    write_protocol(folder, boxes)


def new_folders(folder: Path, boxes: str) -> None:
    write_new_folders(folder / boxes)


def new_folders_capital(folder: Path, boxes: str) -> None:
    write_new_folders(folder / {"detected": "Detected", "labeled": "Labelled"}[boxes])


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("place", ["cuhk03", "CUHK03", "cuhk03-np", "CUHK03-NP", "cuhk03_np", "cuhk03/cuhk03-np"])
@pytest.mark.parametrize("write", [release, flat_release, prepared, new_folders, new_folders_capital])
def test_new_protocol_is_found_in_each_place_and_layout_with_the_same_labels(
    write: Callable[[Path, str], None], place: str, name: str, tmp_path: Path
) -> None:
    write(tmp_path / place, BOXES[name])
    domain = read(name, tmp_path)
    assert (domain.name, domain.root) == (name, tmp_path / place)
    assert BOXES[name] in domain.layout
    assert [labels(split) for split in (domain.train, domain.query, domain.gallery)] == [TRAINED, SEARCHED, FOUND]
    if "NP" not in domain.layout:
        stems = [[path.stem for path in split.paths] for split in (domain.train, domain.query, domain.gallery)]
        assert stems == [list(TRAIN), list(QUERY), list(GALLERY)]
        assert domain.train.paths[0].parent.name == f"images_{BOXES[name]}"


def test_archive_alone_in_the_data_folder_is_found(tmp_path: Path) -> None:
    write_mat(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    assert "cuhk03_new_protocol_config_detected.mat is missing, which says who trains" in fault("cuhk03", tmp_path)
    write_protocol(tmp_path, "detected")
    domain = read("cuhk03", tmp_path)
    assert (domain.name, domain.root, labels(domain.query)) == ("cuhk03", tmp_path / "cuhk03_release", SEARCHED)
    assert read(str(tmp_path / "cuhk03_release"), tmp_path).name == "cuhk03"


def test_boxes_are_kept_apart(tmp_path: Path) -> None:
    write_new_folders(tmp_path / "cuhk03-np" / "labeled")
    assert "cuhk03 (CUHK03-NP detected) is not in" in fault("cuhk03", tmp_path)
    write_new_folders(tmp_path / "cuhk03-np" / "detected")
    assert read("cuhk03", tmp_path).train.paths[0].parent.parent.name == "detected"
    assert read("cuhk03-labeled", tmp_path).train.paths[0].parent.parent.name == "labeled"


def test_new_folders_without_a_folder_for_the_boxes_are_read(tmp_path: Path) -> None:
    write_new_folders(tmp_path / "cuhk03")
    assert labels(read("cuhk03", tmp_path).train) == TRAINED
    write_new_folders(tmp_path / "cuhk03-labelled")
    assert read("cuhk03-labelled", tmp_path).name == "cuhk03-labelled"


def test_new_folders_with_other_identities_keep_their_cameras(tmp_path: Path) -> None:
    write_new_folders(tmp_path / "cuhk03")
    touch(tmp_path / "cuhk03" / "query", ["1468_c1_1.png"])
    domain = read("cuhk03", tmp_path)
    assert (cams(domain.train), cams(domain.gallery)) == ([1, 1, 2, 1, 2, 1], [2, 2])


def test_unpacked_folder_that_is_somebodys_own_is_left_as_it_is(tmp_path: Path) -> None:
    release(tmp_path / "cuhk03", "detected")
    write_images(tmp_path / "cuhk03" / "images_detected", ".jpg")
    domain = read("cuhk03", tmp_path)
    assert {path.parent for path in domain.train.paths} == {tmp_path / "cuhk03" / "images_detected"}
    assert names(domain.query) == [f"{name}.jpg" for name in QUERY]
    assert not (tmp_path / "cuhk03" / "cuhk03_release" / "images_detected").exists()


def test_missing_and_foreign_images_are_noted(tmp_path: Path) -> None:
    prepared(tmp_path / "cuhk03", "detected")
    folder = tmp_path / "cuhk03" / "images_detected"
    (folder / "1_002_2_07.png").unlink()
    touch(folder, ["cover.png", "5_050_1_01.png", "6_001_1_01.png"])
    domain = read("cuhk03", tmp_path)
    assert [len(split) for split in (domain.train, domain.query, domain.gallery)] == [6, 3, 1]
    assert domain.notes == (
        "train has 6 images of 3 identities, CUHK03-NP detected was published with 7,365 of 767",
        "query has 3 images of 2 identities, CUHK03-NP detected was published with 1,400 of 700",
        "gallery has 1 image of 1 identity, CUHK03-NP detected was published with 5,332 of 700",
        f"3 of 19 images in {folder} are not named like 1_001_1_01.png",
        f"{folder} holds 16 images, CUHK03 was published with 14,097 detected ones",
        "1 image of the protocol missing and left out, first 1_002_2_07",
        "the gallery shows one identity, so every answer is right and scores say nothing",
    )


def test_damaged_protocol_is_refused_in_one_line(tmp_path: Path) -> None:
    prepared(tmp_path / "cuhk03", "detected")
    config = tmp_path / "cuhk03" / "cuhk03_new_protocol_config_detected.mat"
    told = f"{config}: is not the file of CUHK03's new protocol"
    table = {name: values for name, values in scipy.io.loadmat(config).items() if name[0] != "_"}
    whole = config.read_bytes()
    for damaged in (b"", b"no MATLAB file at all", whole[: len(whole) // 2]):
        config.write_bytes(damaged)
        assert told in fault("cuhk03", tmp_path)
    scipy.io.savemat(config, {"filelist": table["filelist"]})
    assert told in fault("cuhk03", tmp_path)
    scipy.io.savemat(config, {**table, "query_idx": [[len(NAMES) + 1]]})
    assert "an index is out of range" in fault("cuhk03", tmp_path)


@pytest.mark.parametrize(("name", "boxes"), [("cuhk03-classic", "detected"), ("cuhk03-labelled-classic", "labeled")])
@pytest.mark.parametrize("place", ["cuhk03", "CUHK03", "cuhk03_release"])
def test_classic_test_set_is_query_and_gallery(place: str, name: str, boxes: str, tmp_path: Path) -> None:
    write_mat(tmp_path / place / "cuhk-03.mat")
    domain = read(name, tmp_path)
    assert (domain.name, domain.root) == (name, tmp_path / place)
    assert domain.train.paths[0].parent.name == f"images_{boxes}"
    tested = [(2, 1), (2, 2), (2, 2), (1419, 9), (1419, 10)]
    assert labels(domain.query) == labels(domain.gallery) == tested
    assert labels(domain.train) == [
        *((1, 1), (1, 1), (1, 2), (3, 1), (3, 2), (844, 3), (844, 4)),
        *((1284, 5), (1284, 6), (1361, 7), (1361, 8), (1420, 9)),
    ]
    assert mentions(domain, "scored by single-gallery-shot CMC (--protocol single-gallery-shot)")
    assert mentions(domain, "train has 12 images of 6 identities")
    assert mentions(domain, "was published with 1,367 identities")


def test_classic_test_sets_are_chosen_by_number(tmp_path: Path) -> None:
    release(tmp_path / "cuhk03", "detected")
    domain = read("cuhk03-classic:3", tmp_path)
    assert domain.name == "cuhk03-classic-split3"
    assert labels(domain.query) == [(844, 3), (844, 4)]
    assert mentions(domain, "this is test set 3 of 0 to 19")
    assert labels(read("cuhk03-classic:19", tmp_path).gallery) == [(1, 1), (1, 1), (1, 2)]
    assert "cuhk03-classic has no split '20'; its splits are 0 to 19" in fault("cuhk03-classic:20", tmp_path)
    assert "cuhk03 has no split '1'; its splits are 0 only" in fault("cuhk03:1", tmp_path)


def test_classic_protocol_needs_the_owners_file(tmp_path: Path) -> None:
    prepared(tmp_path / "cuhk03", "detected")
    assert "cuhk-03.mat is missing, which holds the classic test sets; put it beside" in fault(
        "cuhk03-classic", tmp_path
    )
    write_mat(tmp_path / "cuhk03" / "cuhk03_release" / "cuhk-03.mat", test_sets=19)
    assert "holds 19 test sets, CUHK03 was published with 20" in fault("cuhk03-classic", tmp_path)


def test_pairs_have_the_published_identities() -> None:
    assert (sum(PEOPLE), len(PEOPLE)) == (767 + 700, 5)
    for name, known in DATASETS.items():
        if name.startswith("cuhk03"):
            assert known.published["train"].identities + known.published["query"].identities == sum(PEOPLE)


def test_subset_with_a_manifest_is_read_through_it(tmp_path: Path) -> None:
    touch(tmp_path / "cuhk03", ["images/0001_00.jpg", "images/0002_00.jpg", "images/0002_05.jpg"])
    (tmp_path / "cuhk03" / "manifest.csv").write_text(
        "path,identity,camera,split\n"
        "images/0001_00.jpg,1,0,train\nimages/0002_00.jpg,2,0,query\nimages/0002_05.jpg,2,1,gallery\n"
    )
    domain = read("cuhk03", tmp_path)
    assert (domain.name, labels(domain.query), labels(domain.gallery)) == ("cuhk03", [(2, 1)], [(2, 2)])
    assert mentions(domain, "train has 1 image of 1 identity, CUHK03-NP detected was published with 7,365 of 767")
