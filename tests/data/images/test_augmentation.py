from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from uda_reid.data.images import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    augment,
    erase_rectangles,
    flip_and_crop,
    jitter_colours,
    rotate_and_shift,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.noise import keys, uniform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(count: int, seed: int = 0) -> Tensor:
    """Keys of a batch."""
    return keys(seed, torch.arange(count))


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_augment_returns_float_images_in_range_by_the_keys_alone(kind: str, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (7, 3, 24, 12), generator=generator(), dtype=torch.uint8)
    given = images if dtype == torch.uint8 else images.to(dtype) / 255
    before = given.clone()
    state = torch.get_rng_state()
    found = augment(given, kind, of(7, 1))
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, augment(given, kind, of(7, 1)))
    assert torch.equal(found, augment(given, kind, of(7, 2))) is (kind == "none")
    assert torch.equal(given, before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("sizes", [[3, 4], [1] * 7, [0, 5, 0, 2]])
def test_an_image_is_changed_the_same_in_whatever_company(kind: str, sizes: list[int]) -> None:
    images = torch.randint(0, 256, (7, 3, 64, 32), generator=generator(), dtype=torch.uint8)
    whole, order = augment(images, kind, of(7)), torch.tensor([4, 0, 6, 2, 1, 5, 3])
    parts = zip(torch.split(images[order], sizes), torch.split(of(7)[order], sizes), strict=True)
    assert torch.equal(torch.cat([augment(part, kind, mine) for part, mine in parts]), whole[order])


def test_the_stages_take_numbers_of_their_own() -> None:
    """None is used twice: with all others fixed, each stage changes by its own columns only."""
    images = torch.rand((50, 3, 64, 32), generator=generator())
    draws = uniform(of(50), 29)
    cropped = flip_and_crop(images, draws[:, :3])
    expected = erase_rectangles(jitter_colours(cropped, draws[:, 3:6]), draws[:, 6:29])
    assert torch.equal(augment(images, "reid", of(50)), expected)


def test_augment_refuses_what_it_does_not_know() -> None:
    with pytest.raises(RecipeError, match=r"augmentation 'idee' is unknown; use one of none, ide, reid"):
        augment(torch.zeros(1, 3, 8, 4), "idee", of(1))
    with pytest.raises(DataError, match=r"must be \(B, 3, H, W\), not \(1, 1, 8, 4\)"):
        augment(torch.zeros(1, 1, 8, 4), "ide", of(1))
    for missing, many in ((None, "None"), (of(3), "3")):
        with pytest.raises(DataError, match=f"^2 images need as many keys, not {many}$"):
            augment(torch.zeros(2, 3, 8, 4), "reid", missing)


def keras_affine(image: npt.NDArray[np.float32], degrees: float, down: float, right: float) -> Tensor:
    """Rotation times shift about the centre, in (row, column) pixels."""
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
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
    moved = rotate_and_shift(image, degrees=torch.zeros(1), down=torch.tensor([0.2]), right=torch.tensor([-0.2]))
    rows = (torch.arange(10) + 2).clamp(max=9)
    columns = (torch.arange(5) - 1).clamp(min=0)
    torch.testing.assert_close(moved, image[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_augment_ide_turns_within_20_degrees_and_shifts_within_a_fifth_without_flips() -> None:
    height, width, count = 40, 20, 300
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([x / width, y / height, torch.zeros(height, width)])
    found = augment(image.expand(count, 3, height, width), "ide", of(count)).double()
    positions = torch.stack([x.flatten() - width / 2, y.flatten() - height / 2, torch.ones(height * width)], 1).double()
    angles, shifts = [], []
    for turned in found:
        read = torch.stack([turned[0].flatten() * width - width / 2, turned[1].flatten() * height - height / 2], 1)
        inner = ((turned[:2] > 0.06) & (turned[:2] < 0.94)).all(0).flatten()  # untouched by the border
        solved = torch.linalg.lstsq(positions[inner], read[inner]).solution  # (3, 2): rotation, then offset
        rotation = solved[:2].T
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(2, dtype=torch.float64), atol=1e-3, rtol=0)
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
    found = flip_and_crop(image.expand(200, 3, height, width), uniform(of(200, 1), 3))
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
    found = flip_and_crop(torch.ones(200, 1, 256, 32), uniform(of(200), 3))
    black_rows = (found[:, 0].amax(2) == 0).sum(1)
    assert black_rows.max() == 10


def test_jitter_colours_keeps_grey_grey_and_stays_within_its_strength() -> None:
    grey = torch.full((200, 3, 4, 4), 0.5)
    found = jitter_colours(grey, uniform(of(200), 3))
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-6, rtol=0)
    levels = found[:, 0, 0, 0]
    assert levels.min() >= 0.4 - 1e-6
    assert levels.max() <= 0.6 + 1e-6
    assert levels.std() > 0.03
    colourful = torch.rand((2, 3, 8, 4), generator=generator())
    torch.testing.assert_close(jitter_colours(colourful, uniform(of(2), 3), strength=0.0), colourful, atol=1e-6, rtol=0)


def test_jitter_colours_equals_the_three_changes_one_after_the_other() -> None:
    image = torch.rand((1, 3, 8, 4), generator=generator()) * 0.4 + 0.3  # far from clipping
    brightness, contrast, saturation = (uniform(of(1), 3)[0] * 0.4 + 0.8).tolist()
    expected = image[0].numpy().astype(np.float64) * brightness
    weights = np.array([0.299, 0.587, 0.114])
    mean = np.einsum("c,chw->hw", weights, expected).mean()
    expected = contrast * expected + (1 - contrast) * mean
    expected = saturation * expected + (1 - saturation) * np.einsum("c,chw->hw", weights, expected)
    found = jitter_colours(image, uniform(of(1), 3))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_erase_rectangles_covers_one_rectangle_of_the_stated_area_and_shape() -> None:
    images = torch.rand((600, 3, 64, 32), generator=generator())
    found = erase_rectangles(images, uniform(of(600, 1), 23))
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
    assert torch.equal(erase_rectangles(images, uniform(of(600, 1), 23), probability=0.0), images)
    everywhere = (erase_rectangles(images, uniform(of(600, 2), 23), probability=1.0) != images).any(1).any(0)
    assert everywhere.float().mean() > 0.98
    assert everywhere[0].any() and everywhere[-1].any() and everywhere[:, 0].any() and everywhere[:, -1].any()
