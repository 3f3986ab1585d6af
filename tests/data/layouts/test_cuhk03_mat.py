from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.data.layouts.cuhk03_files import NAMES, pixels, write_mat
from uda_reid import writing
from uda_reid.data.layouts.cuhk03_mat import held_out, unpacked
from uda_reid.errors import DataError


def pictures(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!.]*.png"))


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_every_image_is_unpacked_upright_under_its_name(boxes: str, tmp_path: Path) -> None:
    folder = unpacked(write_mat(tmp_path / "cuhk-03.mat"), boxes)
    assert folder == tmp_path / f"images_{boxes}"
    assert pictures(folder) == NAMES
    for name in NAMES:
        pair, pid, _, shot = map(int, name.split("_"))
        with Image.open(folder / f"{name}.png") as image:
            assert (image.mode, image.size) == ("RGB", (3, 5))
            assert np.array_equal(np.asarray(image), pixels(boxes, pair, pid, shot))


def test_unpacking_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    folder = unpacked(mat, "detected")
    assert json.loads((folder / "unpacked.json").read_text()) == {"images": 17}
    mat.write_bytes(b"gone")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert unpacked(mat, "detected") == folder


def test_interrupted_unpacking_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    saves, save = [], Image.Image.save

    def full_disk(image: Image.Image, path: Path, **options: Any) -> None:
        saves.append(path)
        if len(saves) == 8:
            path.write_bytes(b"half a picture")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(DataError, match=r"^.*images_detected: cannot be written \(No space left.*is kept$"):
            unpacked(mat, "detected")
    folder = tmp_path / "images_detected"
    assert pictures(folder) == NAMES[:7]
    before = {name: (folder / f"{name}.png").stat().st_mtime_ns for name in NAMES[:7]}
    assert unpacked(mat, "detected") == folder
    assert pictures(folder) == NAMES
    assert {name: (folder / f"{name}.png").stat().st_mtime_ns for name in NAMES[:7]} == before
    with Image.open(folder / f"{NAMES[7]}.png") as image:
        assert np.array_equal(np.asarray(image), pixels("detected", 1, 3, 10))


@pytest.mark.parametrize("harm", ["gone", "empty"])
def test_image_that_has_gone_is_unpacked_again(harm: str, tmp_path: Path) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    lost = unpacked(mat, "detected") / "3_001_1_05.png"
    lost.unlink()
    if harm == "empty":
        lost.touch()
    unpacked(mat, "detected")
    with Image.open(lost) as image:
        assert np.array_equal(np.asarray(image), pixels("detected", 3, 1, 5))


def test_images_go_into_the_cache_where_the_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mat = write_mat(tmp_path / "data" / "cuhk-03.mat")
    (tmp_path / "data" / "images_detected").write_text("a file, so no folder can be made")
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "cache"))
    folder = unpacked(mat, "detected")
    assert folder.is_relative_to(tmp_path / "cache" / "cuhk03")
    assert pictures(folder) == NAMES
    other = write_mat(tmp_path / "other" / "cuhk-03.mat")
    (tmp_path / "other" / "images_detected").touch()
    assert unpacked(other, "detected") != folder
    (tmp_path / "full").touch()
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "full"))
    with pytest.raises(DataError, match=r"^.*cuhk-03.mat: cannot be unpacked into .* or .*; set UDA_REID_CACHE to a f"):
        unpacked(mat, "detected")


def test_without_h5py_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    monkeypatch.setitem(sys.modules, "h5py", None)
    line = re.escape(f'{mat}: is read by h5py, which is not installed: pip install "uda_reid[cuhk03]"')
    with pytest.raises(DataError, match=f"^{line}$"):
        unpacked(mat, "detected")
    with pytest.raises(DataError, match=f"^{line}$"):
        held_out(mat)
    assert [path.name for path in tmp_path.iterdir()] == ["cuhk-03.mat"]


def test_test_sets_are_pairs_and_identities(tmp_path: Path) -> None:
    sets = held_out(write_mat(tmp_path / "cuhk-03.mat"))
    assert len(sets) == 20
    assert (sets[0], sets[1], sets[3], sets[19]) == ({(1, 2), (5, 1)}, {(1, 1)}, {(2, 1)}, {(1, 1)})


def test_file_that_is_not_cuhk03_is_refused_in_one_line(tmp_path: Path) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    whole = mat.read_bytes()
    for damaged in (b"MATLAB 5.0 MAT-file", whole[: len(whole) // 2], b""):
        mat.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cuhk-03.mat: is not CUHK03's MATLAB 7.3 file, or only a part") as caught:
            unpacked(mat, "detected")
        assert "\n" not in str(caught.value)
    with h5py.File(mat, "w") as file:
        file["labeled"] = 1
    with pytest.raises(DataError, match=r"cuhk-03.mat: is not CUHK03's MATLAB 7.3 file.*detected"):
        unpacked(mat, "detected")


def modes(folder: Path) -> tuple[int, set[int]]:
    return stat.S_IMODE(folder.stat().st_mode), {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.png")}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_unpacked_images_are_for_their_user_alone(tmp_path: Path) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    folder = unpacked(mat, "detected")
    assert modes(folder) == (0o700, {0o600})
    folder.chmod(0o755)  # by a user who shares them
    (folder / "1_001_1_01.png").unlink()
    unpacked(mat, "detected")
    assert modes(folder) == (0o755, {0o600})


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_unpacked_images_in_the_cache_are_for_their_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(tmp_path / "cuhk-03.mat")
    (tmp_path / "images_detected").touch()
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "cache"))
    folder = unpacked(mat, "detected")
    assert modes(folder) == (0o700, {0o600})
    folder.chmod(0o777)  # so that others could have put images there: not taken as they are
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(writing, "_ROOT", -1)
    with pytest.raises(DataError, match=r"cannot be unpacked into .* or .*; set UDA_REID_CACHE to a folder$"):
        unpacked(mat, "detected")
    monkeypatch.undo()  # the remedy: a folder of this user
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path / "own"))
    assert pictures(unpacked(mat, "detected")) == NAMES
