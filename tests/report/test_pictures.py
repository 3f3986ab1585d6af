from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uda_reid.report.pictures import Picture, album, changed, picture_of, thumbnails
from uda_reid.types import Split


def decoded(address: str) -> Image.Image:
    head, _, data = address.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_thumbnails_are_small_jpegs_that_look_like_their_files(tmp_path: Path) -> None:
    Image.new("RGB", (200, 300), (200, 40, 90)).save(tmp_path / "a.png")
    (address,) = thumbnails(tmp_path, ["a.png", "a.png"]).values()
    image = decoded(address)
    assert (image.size, image.mode) == ((64, 128), "RGB")
    assert np.asarray(image).mean(axis=(0, 1)) == pytest.approx([200, 40, 90], abs=3)


def test_thumbnails_leave_out_gone_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert thumbnails(tmp_path, ["gone.jpg", "broken.jpg"]) == {}


def test_thumbnails_carry_no_notes_of_the_file_and_repeat(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes[0x010E] = "taken at a secret place"
    Image.new("RGB", (64, 128), "green").save(tmp_path / "a.jpg", exif=notes, comment=b"secret")
    assert b"secret" in (tmp_path / "a.jpg").read_bytes()
    first, again = thumbnails(tmp_path, ["a.jpg"]), thumbnails(tmp_path, ["a.jpg"])
    assert first == again
    assert b"secret" not in base64.b64decode(first["a.jpg"].partition(",")[2])
    assert not decoded(first["a.jpg"]).getexif()


def test_thumbnails_are_made_of_files_below_the_folder_alone(tmp_path: Path) -> None:
    Image.new("RGB", (64, 128), "green").save(tmp_path / "a.jpg")
    (tmp_path / "inner").mkdir()
    for path in (str(tmp_path / "a.jpg"), "../a.jpg", "x/../../a.jpg"):
        assert not thumbnails(tmp_path / "inner", [path])
    assert thumbnails(tmp_path, ["a.jpg"]).keys() == {"a.jpg"}


def test_picture_that_has_changed_since_it_was_ranked_is_not_shown(tmp_path: Path) -> None:
    for name in ("a.bmp", "b.bmp"):
        Image.new("RGB", (32, 64), "green").save(tmp_path / name)
    split = Split((tmp_path / "a.bmp", tmp_path / "b.bmp"), np.array([1, 2]), None)
    pictures = [picture_of(split, row, tmp_path) for row in (0, 1)]
    assert album(tmp_path, pictures).keys() == {"a.bmp", "b.bmp"}
    Image.new("RGB", (32, 64), "red").save(tmp_path / "b.bmp")  # of the same size in bytes
    assert album(tmp_path, pictures).keys() == {"a.bmp"}
    assert changed(tmp_path, pictures) == {"b.bmp"}
    (tmp_path / "b.bmp").unlink()
    assert changed(tmp_path, pictures) == frozenset()


def test_picture_without_a_digest_is_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (32, 64), "green").save(tmp_path / "a.bmp")
    assert not album(tmp_path, [Picture("a.bmp", 1)]), "whoever wrote its name need not have seen it"
