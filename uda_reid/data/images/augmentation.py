"""Random changes of image batches, as tensor operations on the device where the batch lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.transfer import moved

AUGMENTATIONS = ("none", "ide", "reid")
"""What `augment` knows: nothing, the IDE baseline's, and the usual set of re-identification toolkits."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean RGB of ImageNet; erased rectangles are filled with it: zero after the usual normalisation."""


class Share(NamedTuple):
    """The random numbers of some images of a batch: those that they would get if the whole batch were here.

    Args:
        generator: a CPU generator, from which the numbers of the whole batch are drawn.
        first: the place of the first image in the batch.
        total: images in the whole batch.
    """

    generator: torch.Generator
    first: int
    total: int


def augment(images: Tensor, kind: str, generator: torch.Generator | Share) -> Tensor:
    """Return randomly changed copies of a batch, each image changed in its own way.

    Args:
        images: (B, 3, H, W), uint8 or floating in [0, 1], on any device.
        kind: `none`; `ide`: rotation within 20 degrees and shifts within 0.2 of the size, borders repeated,
            no flip; `reid`: flip, pad and crop, mild colour jitter, random erasing.
        generator: a CPU generator, from which all random numbers come; how many depends on the size of the batch alone.

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
    if kind == "reid" and len(images):
        images = flip_and_crop(images, generator)  # first: a byte is moved in a quarter of the time of a float
    images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    if len(images) == 0:  # grids of no image cannot be made
        return images
    if kind == "ide":
        draws = [_uniform(low, -low, images, generator) for low in (-20.0, -0.2, -0.2)]
        return rotate_and_shift(images, degrees=draws[0], down=draws[1], right=draws[2])
    if kind == "reid":
        images = jitter_colours(images, generator)
        return erase_rectangles(images, generator)
    return images


def _uniform(
    low: float,
    high: float,
    images: Tensor,
    generator: torch.Generator | Share,
    *,
    before: tuple[int, ...] = (),
    behind: tuple[int, ...] = (),
) -> Tensor:
    """Return numbers (*before, B, *behind), drawn on the CPU and then moved: every device sees the same ones."""
    share = _share(generator, images)
    drawn = torch.rand((*before, share.total, *behind), generator=share.generator) * (high - low) + low
    return moved(drawn.narrow(len(before), share.first, len(images)), images.device)


def _share(generator: torch.Generator | Share, images: Tensor) -> Share:
    return generator if isinstance(generator, Share) else Share(generator, 0, len(images))


def skip(kind: str, total: int, generator: torch.Generator) -> None:
    """Draw what `augment` draws for a batch of `total` images, and drop it."""
    if total:
        augment(torch.zeros(1, 3, 8, 8), kind, Share(generator, 0, total))


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


def flip_and_crop(images: Tensor, generator: torch.Generator | Share) -> Tensor:
    """Mirror every second image on average, pad all with black and cut the old size out at a random place.

    The padding is 10/256 of the height, the usual 10 pixels of 256 x 128 crops, and at least 2 pixels.

    Args:
        images: (B, C, H, W).
        generator: a CPU generator, or a share of a batch.

    Returns:
        (B, C, H, W).

    Source:
        Luo et al. 2019, section 3.
    """
    count, _, height, width = images.shape
    mirrored = _uniform(0, 1, images, generator) < 0.5
    margin = max(2, round(height * 10 / 256))
    share = _share(generator, images)
    places = torch.randint(0, 2 * margin + 1, (2, share.total), generator=share.generator)
    places = moved(places[:, share.first : share.first + count], images.device)
    either = F.pad(torch.cat([images, images.flip(-1)]), (margin, margin, margin, margin))
    windows = either.unfold(2, height, 1).unfold(3, width, 1)
    cropped: Tensor = windows[torch.arange(count, device=images.device) + count * mirrored, :, places[0], places[1]]
    return cropped


def jitter_colours(images: Tensor, generator: torch.Generator | Share, *, strength: float = 0.2) -> Tensor:
    """Change each image's brightness, contrast and saturation by factors in [1 - strength, 1 + strength].

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        generator: a CPU generator, or a share of a batch.
        strength: in [0, 1].

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    factors = _uniform(1 - strength, 1 + strength, images, generator, before=(3,), behind=(1, 1, 1))
    brightness, contrast, saturation = factors
    luma = moved(torch.tensor([0.299, 0.587, 0.114]), images.device).view(1, 3, 1, 1)
    images = images * brightness
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images.sub_(mean).mul_(contrast).add_(mean)
    grey = (images * luma).sum(1, keepdim=True)
    return images.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 1)


def erase_rectangles(images: Tensor, generator: torch.Generator | Share, *, probability: float = 0.5) -> Tensor:
    """Cover a random rectangle of some images with the mean colour of ImageNet.

    The area is uniform in 2 to 40 % of the image, height / width uniform in 0.3 to 1/0.3; of ten rectangles
    the first that fits is taken, and an image that none fits stays whole.

    Args:
        images: (B, 3, H, W) float32.
        generator: a CPU generator, or a share of a batch.
        probability: share of images that are erased, in [0, 1].

    Returns:
        (B, 3, H, W) float32.

    Source:
        Zhong et al. 2017, "Random Erasing Data Augmentation", algorithm 1; ranges and colour of Luo et al.
    """
    height, width = images.shape[-2:]
    chosen = _uniform(0, 1, images, generator) < probability
    area = _uniform(0.02, 0.4, images, generator, behind=(10,)) * (height * width)
    aspect = _uniform(0.3, 1 / 0.3, images, generator, behind=(10,))
    place = _uniform(0, 1, images, generator, before=(2,))
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall >= 1) & (wide >= 1) & (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first), wide.gather(1, first)
    top = (place[0][:, None] * (height - tall + 1)).floor()
    left = (place[1][:, None] * (width - wide + 1)).floor()
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]
    inside &= (chosen & fits.any(1))[:, None, None]
    colour = moved(torch.tensor(IMAGENET_MEAN), images.device).view(1, 3, 1, 1)
    return torch.where(inside[:, None], colour, images)
