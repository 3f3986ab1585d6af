"""Random changes of image batches, as tensor operations on the device where the batch lies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.noise import uniform
from uda_reid.ops.transfer import moved

AUGMENTATIONS = ("none", "ide", "reid")
"""What `augment` knows: nothing, the IDE baseline's, and the usual set of re-identification toolkits."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean RGB of ImageNet; erased rectangles are filled with it: zero after the usual normalisation."""


def augment(images: Tensor, kind: str, keys: Tensor | None = None) -> Tensor:
    """Return randomly changed copies of a batch, each image changed in a way that follows from its key alone.

    Args:
        images: (B, 3, H, W), uint8 or floating in [0, 1], on any device.
        kind: `none`; `ide`: rotation within 20 degrees and shifts within 0.2 of the size, borders repeated,
            no flip; `reid`: flip, pad and crop, mild colour jitter, random erasing.
        keys: (B,) int64, on the CPU (`ops.noise.keys`); `none` needs none.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on the device of `images`.

    Raises:
        RecipeError: `kind` is none of `AUGMENTATIONS`.
        DataError: `images` is no batch of RGB images.

    Source:
        `ide`: baseline/train.py of hehefan/Unsupervised-Person-Re-identification-Clustering-and-Fine-tuning.
        `reid`: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification",
        section 3; the colour jitter is this package's addition.
    """
    if kind not in AUGMENTATIONS:
        raise RecipeError(f"augmentation {kind!r} is unknown; use one of {', '.join(AUGMENTATIONS)}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise DataError(f"a batch of images must be (B, 3, H, W), not {tuple(images.shape)}")
    if kind == "none" or not len(images):  # grids of no image cannot be made
        return _floating(images)
    if keys is None or keys.shape != (len(images),):
        raise DataError(f"{len(images)} images need as many keys, not {None if keys is None else len(keys)}")
    # Drawn on the CPU and then moved: every device sees the same ones.
    draws = moved(uniform(keys, 3 if kind == "ide" else 29), images.device)
    if kind == "ide":
        images = _floating(images)
        degrees, down, right = (2 * draws - 1).to(images.dtype).unbind(1)
        return rotate_and_shift(images, degrees=20 * degrees, down=0.2 * down, right=0.2 * right)
    images = _floating(flip_and_crop(images, draws[:, :3]))  # a byte is moved in a quarter of the time of a float
    return erase_rectangles(jitter_colours(images, draws[:, 3:6]), draws[:, 6:])


def _floating(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def rotate_and_shift(images: Tensor, *, degrees: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Rotate each image about its centre and shift it; what enters from outside repeats the border.

    The pixel at output position o, counted from the centre, is read at R(degrees) (o + shift), bilinearly:
    the order in which Keras' ImageDataGenerator composes the two. The rotation turns pixels, so shapes keep
    their proportions in images that are not square.

    Args:
        images: (B, C, H, W) float32.
        degrees: (B,) angle.
        down: (B,) vertical shift of the reading position, as a fraction of H.
        right: (B,) horizontal shift of the reading position, as a fraction of W.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    # affine_grid works in coordinates that run from -1 to 1 along both sides: pixels / (size / 2).
    tall, wide = height / width, width / height
    x = torch.stack([cos, -sin * tall, 2 * (cos * right - sin * down * tall)], dim=1)
    y = torch.stack([sin * wide, cos, 2 * (sin * right * wide + cos * down)], dim=1)
    grid = F.affine_grid(torch.stack([x, y], dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.clamp_(0, 1)  # interpolation weights may add up to a hair above 1


def flip_and_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror every second image on average, pad all with black and cut the old size out at a random place.

    The padding is 10/256 of the height, the usual 10 pixels of 256 x 128 crops, and at least 2 pixels.

    Args:
        images: (B, C, H, W).
        draws: (B, 3) in [0, 1): for the mirror, for the height and for the side of the place.

    Returns:
        (B, C, H, W).

    Source:
        Luo et al. 2019, section 3.
    """
    count, _, height, width = images.shape
    margin = max(2, round(height * 10 / 256))
    mirrored, places = draws[:, 0] < 0.5, (draws[:, 1:] * (2 * margin + 1)).long().unbind(1)
    either = F.pad(torch.cat([images, images.flip(-1)]), (margin, margin, margin, margin))
    windows = either.unfold(2, height, 1).unfold(3, width, 1)
    cropped: Tensor = windows[torch.arange(count, device=images.device) + count * mirrored, :, places[0], places[1]]
    return cropped


def jitter_colours(images: Tensor, draws: Tensor, *, strength: float = 0.2) -> Tensor:
    """Change each image's brightness, contrast and saturation by factors in [1 - strength, 1 + strength].

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        draws: (B, 3) in [0, 1), one for each of the three.
        strength: in [0, 1].

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    brightness, contrast, saturation = (1 + strength * (2 * draws - 1))[:, :, None, None, None].unbind(1)
    luma = moved(torch.tensor([0.299, 0.587, 0.114]), images.device).view(1, 3, 1, 1)
    images = images * brightness
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images.sub_(mean).mul_(contrast).add_(mean)
    grey = (images * luma).sum(1, keepdim=True)
    return images.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 1)


def erase_rectangles(images: Tensor, draws: Tensor, *, probability: float = 0.5) -> Tensor:
    """Cover a random rectangle of some images with the mean colour of ImageNet.

    The area is uniform in 2 to 40 % of the image, height / width uniform in 0.3 to 1/0.3; of ten rectangles
    the first that fits is taken, and an image that none fits stays whole.

    Args:
        images: (B, 3, H, W) float32.
        draws: (B, 23) in [0, 1): whether, ten areas, ten proportions, the height and the side of the place.
        probability: share of images that are erased, in [0, 1].

    Returns:
        (B, 3, H, W) float32.

    Source:
        Zhong et al. 2017, "Random Erasing Data Augmentation", algorithm 1; ranges and colour of Luo et al.
    """
    height, width = images.shape[-2:]
    chosen = draws[:, 0] < probability
    area = (0.02 + 0.38 * draws[:, 1:11]) * (height * width)
    aspect = 0.3 + (1 / 0.3 - 0.3) * draws[:, 11:21]
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall >= 1) & (wide >= 1) & (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first), wide.gather(1, first)
    top = (draws[:, 21:22] * (height - tall + 1)).floor()
    left = (draws[:, 22:23] * (width - wide + 1)).floor()
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]
    inside &= (chosen & fits.any(1))[:, None, None]
    colour = moved(torch.tensor(IMAGENET_MEAN), images.device).view(1, 3, 1, 1)
    return torch.where(inside[:, None], colour, images)
