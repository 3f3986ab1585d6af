from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.layouts.folders import cams, fault, mentions, names, touch, tracklets
from uda_reid.data.layouts import Counts, describe, read
from uda_reid.errors import DataError

TRAIN = (
    "0001C1T0001F001.jpg",
    "0001C1T0001F002.jpg",
    "0001C6T0002F001.jpg",
    "0003C2T0001F001.jpg",
)
TEST = (
    "00-1C2T0001F001.jpg",
    "00-1C2T0001F002.jpg",
    "0000C1T0001F001.jpg",
    "0002C1T0001F001.jpg",
    "0002C1T0001F002.jpg",
    "0002C1T0002F001.jpg",
    "0002C3T0001F001.jpg",
    "0002C3T0001F002.jpg",
)
TRAIN_TRACKS = ([1, 2, 1, 1], [3, 3, 1, 6], [4, 4, 3, 2])  # first and last image from 1, identity, camera
TEST_TRACKS = ([1, 2, -1, 2], [3, 3, 0, 1], [4, 5, 2, 1], [6, 6, 2, 1], [7, 8, 2, 3])
QUERIES = ([4, 5],)


def mars(folder: Path, *, info: bool = True) -> Path:
    touch(folder / "bbox_train", [f"{name[:4]}/{name}" for name in TRAIN])
    touch(folder / "bbox_test", [f"{name[:4]}/{name}" for name in TEST])
    if info:
        tables(folder / "info")
    return folder


def tables(
    folder: Path,
    *,
    train: Sequence[object] = TRAIN_TRACKS,
    test: Sequence[object] = TEST_TRACKS,
    queries: Sequence[object] = QUERIES,
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "train_name.txt").write_text("\n".join(TRAIN) + "\n", encoding="utf-8")
    (folder / "test_name.txt").write_text("\r\n".join(TEST), encoding="utf-8")
    savemat(folder / "tracks_train_info.mat", {"track_train_info": np.array(train, dtype=np.float64)})
    savemat(folder / "tracks_test_info.mat", {"track_test_info": np.array(test, dtype=np.int32)})
    savemat(folder / "query_IDX.mat", {"query_IDX": np.array(queries, dtype=np.uint16)})


@pytest.mark.parametrize("place", ["mars", "MARS", "mars/MARS-v160809", "MARS-v160809"])
@pytest.mark.parametrize("typed", ["mars", "MARS"])
def test_mars_is_read_in_each_place_by_its_tables(place: str, typed: str, tmp_path: Path) -> None:
    folder = mars(tmp_path / place)
    domain = read(typed, tmp_path)
    assert domain.root.samefile(folder)
    assert (domain.name, domain.layout) == ("mars", "MARS' tracklets")
    assert names(domain.train) == list(TRAIN)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1, 1, 1, 3], [1, 1, 6, 2])
    assert tracklets(domain.train) == [0, 0, 1, 2]
    assert names(domain.query) == ["0002C1T0002F001.jpg", "0002C3T0001F001.jpg"]
    assert (domain.query.pids.tolist(), cams(domain.query), tracklets(domain.query)) == ([2, 2], [1, 3], [6, 7])
    assert names(domain.gallery) == ["00-1C2T0001F001.jpg", "0000C1T0001F001.jpg", "0002C1T0001F001.jpg"]
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([-1, 0, 2], [2, 1, 1])
    assert tracklets(domain.gallery) == [3, 4, 5]
    assert domain.notes == (
        "train has 4 images of 2 identities, MARS was published with 509,914 of 625",
        "query has 2 images of 1 identity, MARS was published with 1,980 of 626",
        "gallery has 2 images of 1 identity, MARS was published with 9,330 of 620",
        "in query and gallery each tracklet stands by its first image, so their counts are in tracklets",
        "a tracklet that is a query is not in the gallery; the owners' own evaluation searches all test tracklets, "
        "queries too, and leaves out those of the query's identity and camera",
    )


def test_mars_without_tables_is_divided_by_a_rule(tmp_path: Path) -> None:
    touch(mars(tmp_path / "mars", info=False) / "bbox_test", ["0002/cover.jpg"])
    domain = read("mars", tmp_path)
    assert (domain.train.pids.tolist(), cams(domain.train), tracklets(domain.train)) == (
        [1, 1, 1, 3],
        [1, 1, 6, 2],
        [0, 0, 1, 2],
    )
    # The tracklet of camera 3 would leave the query of camera 1 without a match.
    assert names(domain.query) == ["0002C1T0001F001.jpg"]
    assert (domain.query.pids.tolist(), cams(domain.query), tracklets(domain.query)) == ([2], [1], [5])
    assert names(domain.gallery) == [
        "00-1C2T0001F001.jpg",
        "0000C1T0001F001.jpg",
        "0002C1T0002F001.jpg",
        "0002C3T0001F001.jpg",
    ]
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([-1, 0, 2, 2], [2, 1, 1, 3])
    assert mentions(domain, "there is no folder info, so this is not the published division of the test")
    assert mentions(domain, "1 of 13 images (7.7%) not named by identity and camera and so left out, first")
    assert describe(domain)[2] == Counts("gallery", images=4, identities=1, cameras=3, distractors=1, junk=1)


def test_mars_in_a_folder_of_any_name_is_recognised(tmp_path: Path) -> None:
    mars(tmp_path / "film", info=False)
    domain = read("film", tmp_path)
    assert (domain.name, domain.layout, len(domain.train)) == ("film", "MARS' tracklets", 4)


def test_missing_table_is_named(tmp_path: Path) -> None:
    folder = mars(tmp_path / "mars")
    (folder / "info" / "query_IDX.mat").unlink()
    message = fault("mars", tmp_path)
    assert message.startswith(f"{folder / 'info'}: query_IDX.mat is missing; give all of train_name.txt, ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": ([1, 5, 1, 1],)},
            "tracks_train_info.mat, row 1: images 1 to 5 are not in train_name.txt, which lists 4",
        ),
        (
            {"test": ([1, 2, -1],)},
            "track_test_info has the shape (1, 3); it has to hold rows of first, last, pid, camera",
        ),
        ({"queries": ([6],)}, "query_IDX.mat: its queries are no rows of tracks_test_info.mat, which has 5"),
        ({"queries": ([0],)}, "query_IDX.mat: its queries are no rows of tracks_test_info.mat, which has 5"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changed: dict[str, Sequence[object]], message: str, tmp_path: Path) -> None:
    tables(mars(tmp_path / "mars") / "info", **changed)
    with pytest.raises(DataError, match=re.escape(message)):
        read("mars", tmp_path)


def test_absent_image_of_a_table_is_named(tmp_path: Path) -> None:
    folder = mars(tmp_path / "mars")
    (folder / "bbox_test" / "0002" / TEST[4]).unlink()
    with pytest.raises(DataError, match=rf"test_info.mat, row 3: there is no image \S*{TEST[4]}; is MARS unpacked"):
        read("mars", tmp_path)


def test_table_that_is_no_matlab_file_is_refused(tmp_path: Path) -> None:
    folder = mars(tmp_path / "mars")
    savemat(folder / "info" / "query_IDX.mat", {"other": [1]})
    assert "query_IDX.mat: no matrix query_IDX can be read from it" in fault("mars", tmp_path)
    for content in (b"", b"no table", b"x" * 500):
        (folder / "info" / "query_IDX.mat").write_bytes(content)
        assert "query_IDX.mat: no matrix query_IDX can be read from it" in fault("mars", tmp_path)
    (folder / "info" / "test_name.txt").write_bytes(b"\xff\xfe\x00")
    assert "test_name.txt: the list of images cannot be read" in fault("mars", tmp_path)


def test_folders_without_named_images_are_refused(tmp_path: Path) -> None:
    folder = mars(tmp_path / "mars", info=False)
    for path in (folder / "bbox_test").rglob("*.jpg"):
        path.rename(path.with_name(f"x{path.name}"))
    assert f"{folder / 'bbox_test'}: no image in the folders in it is named like" in fault("mars", tmp_path)
