from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from uda_reid.data.images import (
    IMAGENET_MEAN,
    Photographs,
    decoding,
    images_of,
    photographs,
    sizes,
    target_order,
    unlabelled,
)
from uda_reid.errors import DataError
from uda_reid.types import Domain, Split

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "../shared/data/mini_market1501/bounding_box_train"


def folder_of(tmp_path: Path, count: int, *, suffix: str = "png", size: tuple[int, int] = (12, 20)) -> Split:
    noise = np.random.default_rng(0)
    paths = []
    for number in range(count):
        path = tmp_path / f"{number + 1:04d}_c1s1.{suffix}"
        Image.fromarray(noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return Split(tuple(paths), np.arange(count) + 100, np.arange(count) % 3 + 1)


def domain_of(train: Split) -> Domain:
    empty = Split((), np.empty(0, np.int64), None)
    return Domain("yard", Path("yard"), train, empty, empty)


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# ---- reading ------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_read_returns_pixels_in_row_order(tmp_path: Path, cache_bytes: int) -> None:
    split = folder_of(tmp_path, 5)
    images = images_of(split, cache_bytes=cache_bytes)
    rows = torch.tensor([3, 0, 3])
    for _ in range(2):  # the second time from the cache, where there is one
        found = images.read(rows, 20, 12)
        assert found.dtype == torch.uint8
        for slot, row in enumerate(rows.tolist()):
            expected = np.asarray(Image.open(split.paths[row]))
            np.testing.assert_array_equal(found[slot].permute(1, 2, 0).numpy(), expected)
    assert len(images) == 5


def test_read_shrinks_with_antialiasing_and_ignores_the_aspect_ratio(tmp_path: Path) -> None:
    stripes = np.zeros((40, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # without antialiasing these become stripes or one flat extreme
    Image.fromarray(stripes).save(tmp_path / "a.png")
    images = Photographs(Split((tmp_path / "a.png",), np.zeros(1, np.int64), None))
    found = images.read(torch.tensor([0]), 10, 4)
    assert found.shape == (1, 3, 10, 4)
    assert (found.float() - 127.5).abs().max() < 5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_read_converts_every_mode_to_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 6), (255, 255, 255)).convert(mode).save(path)
    found = Photographs(Split((path,), np.zeros(1, np.int64), None)).read(torch.tensor([0]), 6, 4)
    assert found.eq(255).all()


def read_one(path: Path, size: int = 2) -> list[list[int]]:
    """Return the RGB of the pixels of a small square image, row by row."""
    found = images_of(Split((path,), np.array([1]), None)).read(torch.tensor([0]), size, size)
    pixels: list[list[int]] = found[0].permute(1, 2, 0).reshape(-1, 3).tolist()
    return pixels


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_behind_transparent_pixels_is_the_mean_colour_and_not_what_they_hide(
    tmp_path: Path, suffix: str
) -> None:
    pixels = np.array([[[200, 0, 0, 255], [0, 200, 0, 0]], [[0, 0, 200, 0], [224, 16, 4, 128]]], dtype=np.uint8)
    exactly: dict[str, Any] = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **exactly)
    mean = [round(255 * value) for value in IMAGENET_MEAN]
    assert read_one(tmp_path / f"a.{suffix}") == [[200, 0, 0], mean, mean, [174, 66, 54]]


def test_image_whose_alpha_hides_nothing_has_the_pixels_of_one_without(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "b.png")
    assert read_one(tmp_path / "a.png", 16) == read_one(tmp_path / "b.png", 16)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_of_a_file_is_hidden_too(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (2, 2), 0)
    image.putpixel((1, 0), 255)
    image = image.convert(mode)
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else image.getpixel((0, 0)))
    mean = [round(255 * value) for value in IMAGENET_MEAN]
    assert read_one(tmp_path / "a.png") == [mean, [255, 255, 255], mean, mean]


def test_transparent_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes[0x0112] = 3  # upside down
    pixels = np.array([[[200, 0, 0, 255], [0, 0, 0, 0]]] * 2, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=notes)
    assert [pixel[0] for pixel in read_one(tmp_path / "a.png")] == [124, 200, 124, 200]


def test_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert read_one(tmp_path / "a.png") == [[255, 0, 0]] * 4


def test_read_decodes_a_file_once_while_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    original = decoding.decode

    def counting(path: Path, height: int, width: int) -> Any:
        decoded.append(path)
        return original(path, height, width)

    monkeypatch.setattr(photographs, "decode", counting)
    split = folder_of(tmp_path, 4)
    one_size = 4 * 3 * 20 * 12
    images = Photographs(split, cache_bytes=one_size)
    first = images.read(torch.tensor([0, 1, 1]), 20, 12)
    images.read(torch.tensor([1, 0, 2]), 20, 12)
    assert [path.name[:4] for path in decoded] == ["0001", "0002", "0003"]
    first.zero_()  # the caller owns what it got
    assert images.read(torch.tensor([0]), 20, 12).any()
    images.read(torch.tensor([3, 3]), 10, 6)  # a second size no longer fits
    images.read(torch.tensor([3]), 10, 6)
    assert len(decoded) == 6


def test_read_of_no_rows_is_empty(tmp_path: Path) -> None:
    found = Photographs(folder_of(tmp_path, 1)).read(torch.empty(0, dtype=torch.int64), 8, 4)
    assert found.shape == (0, 3, 8, 4)


def test_read_refuses_what_is_out_of_range(tmp_path: Path) -> None:
    images = Photographs(folder_of(tmp_path, 2))
    with pytest.raises(DataError, match=r"row 2 is out of range: there are 2 images"):
        images.read(torch.tensor([0, 2]), 8, 4)
    with pytest.raises(DataError, match=r"row -1 is out of range"):
        images.read(torch.tensor([-1]), 8, 4)
    with pytest.raises(DataError, match=r"rows must be a \(B,\) int64 tensor"):
        images.read(torch.tensor([0.0]), 8, 4)
    with pytest.raises(DataError, match=r"cannot be 0 x 4 pixels"):
        images.read(torch.tensor([0]), 0, 4)


@pytest.mark.parametrize("tolerant", [False, True])
def test_read_refuses_a_truncated_jpeg_even_where_pillow_was_told_to_tolerate_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tolerant: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    split = folder_of(tmp_path, 2, suffix="jpg", size=(64, 128))
    truncate(split.paths[1])
    images = Photographs(split)
    assert images.read(torch.tensor([0]), 128, 64).any()
    with pytest.raises(DataError, match=r"0002_c1s1\.jpg: cannot be decoded \(truncated\): remove or replace it$"):
        images.read(torch.tensor([1]), 128, 64)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize("content", [None, b"", b"no picture at all"])
def test_read_says_what_a_bad_file_is(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "0007_c1.jpg"
    if content is not None:
        path.write_bytes(content)
    reason = "no such file" if content is None else "not an image"
    with pytest.raises(DataError, match=rf"0007_c1\.jpg: cannot be decoded \({reason}\)"):
        Photographs(Split((path,), np.zeros(1, np.int64), None)).read(torch.tensor([0]), 8, 4)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_read_refuses_pixels_of_more_than_8_bits(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tiff"
    Image.new(mode, (4, 6), 300).save(path)
    with pytest.raises(DataError, match=r"deep\.tiff: 16-bit or float pixels; convert to 8 bits$"):
        Photographs(Split((path,), np.zeros(1, np.int64), None)).read(torch.tensor([0]), 6, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_read_turns_an_image_as_its_exif_says(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((40, 20, 3), dtype=np.uint8)
    upright[:20] = 255  # white above, black below
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying on its left side: turn it clockwise
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    found = Photographs(Split((path,), np.zeros(1, np.int64), None)).read(torch.tensor([0]), 40, 20)[0]
    assert found[:, :18].min() > 200
    assert found[:, 22:].max() < 50


def test_read_takes_an_image_with_damaged_exif_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.new("RGB", (4, 6), (10, 20, 30))
    picture.save(path, exif=b"Exif\x00\x00no exif at all")
    found = Photographs(Split((path,), np.zeros(1, np.int64), None)).read(torch.tensor([0]), 6, 4)
    assert found[0, :, 0, 0].tolist() == [10, 20, 30]


def test_read_says_what_the_system_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Photographs(folder_of(tmp_path, 1))
    system = [OSError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error")]

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fails)
    for error in system:
        with pytest.raises(
            DataError, match=rf"0001_c1s1\.png: cannot be read \({error.strerror}\); check its rights and the disk$"
        ):
            images.read(torch.tensor([0]), 8, 4)


def test_read_out_of_memory_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Photographs(folder_of(tmp_path, 1))

    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(MemoryError, match="no room"):
        images.read(torch.tensor([0]), 8, 4)


def test_read_lets_no_pillow_warning_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = folder_of(tmp_path, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # 240 pixels: above the limit, below its double
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(split.paths[0]).close()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Photographs(split).read(torch.arange(20), 20, 12)
    assert not seen
    with pytest.raises(DataError, match="decompression bomb"):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        Photographs(split).read(torch.arange(20), 20, 12)


# ---- preload ------------------------------------------------------------


def test_preload_fills_the_cache_and_shows_progress(tmp_path: Path) -> None:
    split = folder_of(tmp_path, 150)
    images = Photographs(split, name="yard")
    direct = Photographs(split, cache_bytes=0).read(torch.arange(150), 20, 12)
    calls: list[tuple[str, int | None, int]] = []

    def progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        done = list(items)
        calls.append((description, total, len(done)))
        return done

    images.read(torch.tensor([4]), 20, 12)
    images.preload(20, 12, progress)
    assert calls == [("decoding yard", 149, 149)]
    for path in split.paths:
        path.unlink()
    assert torch.equal(images.read(torch.arange(150), 20, 12), direct)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_preload_names_the_first_bad_file_and_counts_them(tmp_path: Path, cache_bytes: int) -> None:
    split = folder_of(tmp_path, 20, suffix="jpg", size=(32, 64))
    truncate(split.paths[7])
    with pytest.raises(
        DataError, match=r"0008_c1s1\.jpg: cannot be decoded \(truncated\): .*; 1 of 20 images is unreadable$"
    ):
        Photographs(split, cache_bytes=cache_bytes).preload(64, 32)
    split.paths[2].unlink()
    with pytest.raises(DataError, match=r"0003_c1s1\.jpg: .* \(no such file\).*; 2 of 20 images are unreadable$"):
        Photographs(split, cache_bytes=cache_bytes).preload(64, 32)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the Market-1501 fixture is not at ../shared/data")
def test_preload_reads_real_market_files() -> None:
    paths = tuple(sorted(PHOTOGRAPHS.glob("*.jpg")))
    images = Photographs(Split(paths, np.zeros(len(paths), np.int64), None))
    images.preload(64, 32)
    assert images.read(torch.arange(len(paths)), 64, 32).float().std() > 20


# ---- sizes ------------------------------------------------------------


def test_sizes_are_those_of_the_upright_images_and_errors_those_of_reading(tmp_path: Path) -> None:
    split = folder_of(tmp_path, 20, suffix="jpg", size=(12, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying
    Image.new("RGB", (40, 30)).save(split.paths[3], exif=exif)
    truncate(split.paths[7], 0.9)
    split.paths[9].unlink()
    calls: list[tuple[str, int | None]] = []

    def progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        calls.append((description, total))
        return items

    found = list(sizes(split, name="yard", progress=progress))
    assert calls == [("decoding yard", 20)]
    errors = {row: str(size) for row, size in enumerate(found) if isinstance(size, DataError)}
    assert set(errors) == {7, 9}
    for row, message in errors.items():
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            images_of(split).read(torch.tensor([row]), 20, 12)
    assert found[3] == (40, 30)
    assert {size for row, size in enumerate(found) if row not in (3, 7, 9)} == {(20, 12)}


# ---- unlabelled ------------------------------------------------------------


def test_unlabelled_hands_out_images_in_a_fixed_shuffle_and_cameras_only_on_request(tmp_path: Path) -> None:
    domain = domain_of(folder_of(tmp_path, 5))
    target = unlabelled(domain)
    assert target.name == "yard"
    assert target.cams is None
    assert len(target.images) == 5
    order = target_order(5)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4] != order.tolist()
    expected = images_of(domain.train).read(order, 20, 12)
    assert torch.equal(target.images.read(torch.arange(5), 20, 12), expected)
    cams = unlabelled(domain, cameras=True).cams
    assert cams is not None
    assert cams.dtype == torch.int64
    assert cams.tolist() == [[1, 2, 3, 1, 2][row] for row in order.tolist()]


def test_unlabelled_exposes_neither_identities_nor_files(tmp_path: Path) -> None:
    target = unlabelled(domain_of(folder_of(tmp_path, 3)), cameras=True)
    target.images.read(torch.arange(3), 20, 12)
    known = ("images", "cams", "__slotnames__")  # the last is what copying leaves on a class
    reachable = [getattr(each, name) for each in (target.images, target) for name in dir(each) if name not in known]
    assert not hasattr(target.images, "__dict__")
    for found in reachable:
        assert not isinstance(found, Split | Domain | Photographs | Path | np.ndarray | Tensor | list)
        assert "0001_c1s1" not in repr(found)
        assert not isinstance(getattr(found, "__self__", None), Photographs | Split)
    assert not any(hasattr(target.images, name) for name in ("pids", "paths", "split", "_paths", "_photographs"))


def test_unlabelled_images_that_have_gone_are_told_without_a_name(tmp_path: Path) -> None:
    domain = domain_of(folder_of(tmp_path, 3))
    images = unlabelled(domain, cache_bytes=0).images
    for path in domain.train.paths:
        path.unlink()
    with pytest.raises(DataError, match=r"^an image of the target cannot be read any more; `uda-reid data"):
        images.read(torch.tensor([1]), 20, 12)
    with pytest.raises(DataError, match="row 9 is out of range"):
        images.read(torch.tensor([9]), 20, 12)


def test_unlabelled_refuses_cameras_that_are_not_there(tmp_path: Path) -> None:
    train = folder_of(tmp_path, 2)
    domain = domain_of(Split(train.paths, train.pids, None))
    with pytest.raises(DataError, match=r"yard: the strategy needs camera numbers and this domain has none"):
        unlabelled(domain, cameras=True)
