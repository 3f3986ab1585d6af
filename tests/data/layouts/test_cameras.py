from __future__ import annotations

from pathlib import Path

import pytest

from uda_reid.data.layouts.cameras import camera_in, camera_of, settled
from uda_reid.data.layouts.labels import Row


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("0001_c2_f0046182", "2"),
        ("c3_0001", "3"),
        ("x-cam12-7", "12"),
        ("Camera_4_x", "4"),
        ("0001_C6_F0099", "6"),
        ("abc3_1", ""),
        ("c0012", ""),
        ("webcam5", ""),
        ("17", ""),
    ],
)
def test_camera_is_found_at_token_boundaries_only(name: str, camera: str) -> None:
    assert camera_in(name) == camera


@pytest.mark.parametrize(
    ("folder", "camera"),
    [
        ("cam1", "1"),
        ("Cam-02", "02"),
        ("camera_12", "12"),
        ("CAMERA 3", "3"),
        ("c3", "3"),
        ("cam_a", "a"),
        ("Camera-B", "b"),
        ("c3_night", ""),
        ("cami", ""),
        ("cam", ""),
        ("0003", ""),
        ("person_c3", ""),
    ],
)
def test_folder_is_called_after_a_camera_as_a_whole_only(folder: str, camera: str) -> None:
    assert camera_of(folder) == camera


def rows(*names: str) -> list[Row]:
    return [Row(Path(name), "1", camera_in(name), "train", name) for name in names]


def test_cameras_are_kept_when_every_name_holds_one_only() -> None:
    kept, note = settled(rows("a_c1.jpg", "b_c01.jpg", "d_c2.jpg"))
    assert [row.camera for row in kept] == ["1", "01", "2"]
    assert note == "2 cameras read from the file names, as in a_c1.jpg; give a manifest.csv if that is wrong"
    kept, note = settled(rows("a.jpg", "d_c2.jpg"))
    assert [row.camera for row in kept] == ["", ""]
    assert note.startswith("only 1 of 2 file names hold a camera, so cameras count as unknown, as in d_c2.jpg; ")
    assert settled(rows("a.jpg"))[1].startswith("no file name holds a camera")
