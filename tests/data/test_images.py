from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageFile
from scipy import ndimage
from torch import Tensor

from uda_reid.data import images as module
from uda_reid.data.images import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    Photographs,
    augment,
    erase_rectangles,
    flip_and_crop,
    images_of,
    jitter_colours,
    rotate_and_shift,
    unlabelled,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.types import Domain, Split

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "../shared/data/mini_market1501/bounding_box_train"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


# ---- reading -----------------------------------------------------------------------------------------------------


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


def test_read_decodes_a_file_once_while_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    original = module._decode

    def counting(path: Path, height: int, width: int) -> Any:
        decoded.append(path)
        return original(path, height, width)

    monkeypatch.setattr(module, "_decode", counting)
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
    with pytest.raises(
        DataError, match=r"0002_c1s1\.jpg: cannot be decoded \(truncated\): remove or replace it$"
    ):
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


# ---- preload -----------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        DataError, match=r"0003_c1s1\.jpg: .* \(no such file\).*; 2 of 20 images are unreadable$"
    ):
        Photographs(split, cache_bytes=cache_bytes).preload(64, 32)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the Market-1501 fixture is not at ../shared/data")
def test_preload_reads_real_market_files() -> None:
    paths = tuple(sorted(PHOTOGRAPHS.glob("*.jpg")))
    images = Photographs(Split(paths, np.zeros(len(paths), np.int64), None))
    images.preload(64, 32)
    assert images.read(torch.arange(len(paths)), 64, 32).float().std() > 20


# ---- unlabelled --------------------------------------------------------------------------------------------------


def test_unlabelled_hands_out_images_in_order_and_cameras_only_on_request(tmp_path: Path) -> None:
    domain = domain_of(folder_of(tmp_path, 5))
    target = unlabelled(domain)
    assert target.name == "yard"
    assert target.cams is None
    assert len(target.images) == 5
    expected = images_of(domain.train).read(torch.arange(5), 20, 12)
    assert torch.equal(target.images.read(torch.arange(5), 20, 12), expected)
    cams = unlabelled(domain, cameras=True).cams
    assert cams is not None
    assert cams.dtype == torch.int64
    assert cams.tolist() == [1, 2, 3, 1, 2]


def test_unlabelled_exposes_neither_identities_nor_files(tmp_path: Path) -> None:
    target = unlabelled(domain_of(folder_of(tmp_path, 3)), cameras=True)
    target.images.read(torch.arange(3), 20, 12)
    reachable = [getattr(target.images, name) for name in dir(target.images)]
    reachable += [getattr(target, name) for name in dir(target) if name not in ("images", "cams")]
    assert not hasattr(target.images, "__dict__")
    for found in reachable:
        assert not isinstance(found, Split | Domain | Photographs | Path | np.ndarray | Tensor | list)
        assert "0001_c1s1" not in repr(found)
        assert not isinstance(getattr(found, "__self__", None), Photographs | Split)
    assert not any(
        hasattr(target.images, name) for name in ("pids", "paths", "split", "_paths", "_photographs")
    )


def test_unlabelled_images_can_be_preloaded(tmp_path: Path) -> None:
    domain = domain_of(folder_of(tmp_path, 3))
    images: Any = unlabelled(domain).images
    images.preload(20, 12)
    domain.train.paths[1].unlink()
    images.read(torch.tensor([1]), 20, 12)
    with pytest.raises(DataError, match=r"1 of 3 images is unreadable"):
        images.preload(10, 6)


def test_unlabelled_refuses_cameras_that_are_not_there(tmp_path: Path) -> None:
    train = folder_of(tmp_path, 2)
    domain = domain_of(Split(train.paths, train.pids, None))
    with pytest.raises(DataError, match=r"yard: the strategy needs camera numbers and this domain has none"):
        unlabelled(domain, cameras=True)


# ---- augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_augment_returns_float_images_in_range_by_the_generator_alone(kind: str, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (7, 3, 24, 12), generator=generator(), dtype=torch.uint8)
    given = images if dtype == torch.uint8 else images.to(dtype) / 255
    before = given.clone()
    state = torch.get_rng_state()
    found = augment(given, kind, generator(1))
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, augment(given, kind, generator(1)))
    assert torch.equal(found, augment(given, kind, generator(2))) is (kind == "none")
    assert torch.equal(given, before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augment_draws_equally_many_numbers_whatever_the_images(kind: str) -> None:
    first, second = generator(5), generator(5)
    augment(torch.zeros(4, 3, 16, 8), kind, first)
    augment(torch.rand(4, 3, 32, 20), kind, second)
    if kind != "reid":  # the range of the crop depends on the size, its count of draws does not
        assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))
    assert augment(torch.empty(0, 3, 16, 8), kind, first).shape == (0, 3, 16, 8)


def test_augment_refuses_what_it_does_not_know() -> None:
    with pytest.raises(RecipeError, match=r"augmentation 'idee' is unknown; use one of none, ide, reid"):
        augment(torch.zeros(1, 3, 8, 4), "idee", generator())
    with pytest.raises(DataError, match=r"must be \(B, 3, H, W\), not \(1, 1, 8, 4\)"):
        augment(torch.zeros(1, 1, 8, 4), "ide", generator())


def keras_affine(image: npt.NDArray[np.float32], degrees: float, down: float, right: float) -> Tensor:
    """Rotation times shift about the centre, in (row, column) pixels, as Keras' ImageDataGenerator writes it."""
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).T
    height, width = image.shape[1:]
    centre = (np.array([height, width]) - 1) / 2
    offset = centre - rotation @ centre + rotation @ np.array([down * height, right * width])
    return torch.from_numpy(
        np.stack([ndimage.affine_transform(c, rotation, offset, order=1, mode="nearest") for c in image])
    )


@pytest.mark.parametrize("size", [(24, 24), (32, 16), (15, 40)])
def test_rotate_and_shift_equals_scipys_affine_transform_in_pixel_space(size: tuple[int, int]) -> None:
    images = torch.rand((4, 3, *size), generator=generator())
    degrees, down, right = (
        torch.tensor(v) for v in ([20.0, -13.0, 0.0, 7.0], [0, 0.2, -0.1, 0.15], [0, -0.2, 0.07, 0])
    )
    found = rotate_and_shift(images, degrees=degrees, down=down, right=right)
    for row in range(4):
        expected = keras_affine(images[row].numpy(), float(degrees[row]), float(down[row]), float(right[row]))
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=0)


def test_rotate_and_shift_keeps_the_length_of_a_bar_in_a_tall_image() -> None:
    image = torch.zeros(1, 3, 64, 32)
    image[:, :, 31:33, 8:24] = 1  # 16 pixels wide, 2 high
    turned = rotate_and_shift(image, degrees=torch.tensor([90.0]), down=torch.zeros(1), right=torch.zeros(1))
    expected = torch.zeros_like(image)
    expected[:, :, 24:40, 15:17] = 1
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_rotate_and_shift_by_whole_pixels_repeats_the_border() -> None:
    image = torch.rand((1, 3, 10, 5), generator=generator())
    moved = rotate_and_shift(
        image, degrees=torch.zeros(1), down=torch.tensor([0.2]), right=torch.tensor([-0.2])
    )
    rows = (torch.arange(10) + 2).clamp(max=9)
    columns = (torch.arange(5) - 1).clamp(min=0)
    torch.testing.assert_close(moved, image[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_augment_ide_turns_within_20_degrees_and_shifts_within_a_fifth_without_flips() -> None:
    height, width, count = 40, 20, 300
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([x / width, y / height, torch.zeros(height, width)])
    found = augment(image.expand(count, 3, height, width), "ide", generator()).double()
    positions = torch.stack(
        [x.flatten() - width / 2, y.flatten() - height / 2, torch.ones(height * width)], 1
    ).double()
    angles, shifts = [], []
    for turned in found:
        read = torch.stack(
            [turned[0].flatten() * width - width / 2, turned[1].flatten() * height - height / 2], 1
        )
        inner = ((turned[:2] > 0.06) & (turned[:2] < 0.94)).all(0).flatten()  # untouched by the border
        solved = torch.linalg.lstsq(positions[inner], read[inner]).solution  # (3, 2): rotation, then offset
        rotation = solved[:2].T
        torch.testing.assert_close(
            rotation @ rotation.T, torch.eye(2, dtype=torch.float64), atol=1e-3, rtol=0
        )
        assert torch.linalg.det(rotation) > 0.99
        angles.append(math.degrees(math.atan2(float(rotation[1, 0]), float(rotation[0, 0]))))
        shifts.append(rotation.T @ solved[2] / torch.tensor([width, height]))
    turns, moves = np.array(angles), torch.stack(shifts).abs()
    assert np.abs(turns).max() < 20.1
    assert turns.max() > 18
    assert turns.min() < -18
    assert (moves.amax(0) < 0.201).all()
    assert (moves.amax(0) > 0.18).all()


def test_flip_and_crop_shows_a_window_of_the_padded_image_or_of_its_mirror() -> None:
    height, width, margin = 64, 6, 2
    image = torch.rand((3, height, width), generator=generator()) + 0.1
    found = flip_and_crop(image.expand(200, 3, height, width), generator(1))
    windows = []
    for version in (image, image.flip(-1)):
        padded = torch.zeros(3, height + 2 * margin, width + 2 * margin)
        padded[:, margin:-margin, margin:-margin] = version
        for top in range(2 * margin + 1):
            for left in range(2 * margin + 1):
                windows.append(padded[:, top : top + height, left : left + width])
    matches = (found[:, None] == torch.stack(windows)).flatten(2).all(2)
    assert matches.any(1).all()
    assert matches.any(0).float().mean() > 0.9  # nearly all of the 50 windows occur
    assert 0.4 < matches[:, 25:].any(1).float().mean() < 0.6


def test_flip_and_crop_pads_10_pixels_at_256() -> None:
    found = flip_and_crop(torch.ones(300, 1, 256, 4), generator())
    black_rows = (found[:, 0].amax(2) == 0).sum(1)
    assert black_rows.max() == 10


def test_jitter_colours_keeps_grey_grey_and_stays_within_its_strength() -> None:
    grey = torch.full((200, 3, 4, 4), 0.5)
    found = jitter_colours(grey, generator())
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-6, rtol=0)
    levels = found[:, 0, 0, 0]
    assert levels.min() >= 0.4 - 1e-6
    assert levels.max() <= 0.6 + 1e-6
    assert levels.std() > 0.03
    colourful = torch.rand((2, 3, 8, 4), generator=generator())
    torch.testing.assert_close(
        jitter_colours(colourful, generator(), strength=0.0), colourful, atol=1e-6, rtol=0
    )


def test_jitter_colours_equals_the_three_changes_one_after_the_other() -> None:
    image = torch.rand((1, 3, 8, 4), generator=generator()) * 0.4 + 0.3  # far from clipping
    brightness, contrast, saturation = (torch.rand(3, generator=generator(3)) * 0.4 + 0.8).tolist()
    expected = image[0].numpy().astype(np.float64) * brightness
    weights = np.array([0.299, 0.587, 0.114])
    mean = np.einsum("c,chw->hw", weights, expected).mean()
    expected = contrast * expected + (1 - contrast) * mean
    expected = saturation * expected + (1 - saturation) * np.einsum("c,chw->hw", weights, expected)
    found = jitter_colours(image, generator(3))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_erase_rectangles_covers_one_rectangle_of_the_stated_area_and_shape() -> None:
    images = torch.rand((600, 3, 64, 32), generator=generator())
    found = erase_rectangles(images, generator(1))
    changed = (found != images).any(1)
    hit = changed.flatten(1).any(1)
    assert 0.42 < hit.float().mean() < 0.56
    shares = []
    for mask, image in zip(changed[hit], found[hit], strict=True):
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns  # a full rectangle
        assert torch.equal(image[:, mask], torch.tensor(IMAGENET_MEAN)[:, None].expand(3, int(mask.sum())))
        shares.append(float(mask.float().mean()))
        assert 0.25 < rows / columns < 3.8  # rounding widens 0.3 to 3.33
    assert 0.015 < min(shares) < 0.06
    assert 0.3 < max(shares) < 0.42
    assert torch.equal(erase_rectangles(images, generator(1), probability=0.0), images)
    everywhere = (erase_rectangles(images, generator(2), probability=1.0) != images).any(1).any(0)
    assert everywhere.all()
