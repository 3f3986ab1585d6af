"""Photographs by row number, their transforms, and the door through which a target passes without its labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import DataError, RecipeError
from uda_reid.run import QUIET
from uda_reid.types import Domain, Split, Target

AUGMENTATIONS = ("none", "ide", "reid")
"""What `augment` knows: nothing, METHODS' IDE baseline, and the usual set of re-identification toolkits."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean RGB of ImageNet; erased rectangles are filled with it, so that they carry no contrast after normalisation."""

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""How `Run.progress` is called: items, description, total; gives the items back."""

_CHUNK = 64  # rows decoded ahead of whoever consumes them


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Silence Pillow's warnings and refuse truncated files, whatever the surrounding program has set.

    Entered by the thread that starts the decoding threads: `catch_warnings` must not be entered by several at once.
    """
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if "truncated" in str(error).lower():
        return "truncated"
    return " ".join(str(error).split()) or type(error).__name__


def _decode(path: Path, height: int, width: int) -> Pixels | DataError:
    """Return one file as (3, height, width) uint8 RGB, or the error that says why it is not one."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        if rgb.size != (width, height):
            # Pillow widens the bilinear kernel when it shrinks, which is what other libraries call antialiasing.
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        return DataError(f"{path}: cannot be decoded ({_reason(error)}): remove or replace it")


class Photographs:
    """The crops of a split, decoded on demand and kept while memory allows; an `Images`.

    Args:
        split: which files, in which order; identities and cameras are not kept.
        name: what progress bars call them.
        cache_bytes: memory for decoded images, in bytes, over all sizes that are asked for; a size whose N images do
            not fit is decoded anew on every read.
    """

    def __init__(self, split: Split, *, name: str = "", cache_bytes: int = 4 << 30) -> None:
        self.name = name
        self._paths = split.paths
        self._cache_bytes = cache_bytes
        self._caches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Return images resized bilinearly to one size, whatever their aspect ratio.

        Args:
            rows: (B,) int64 in [0, N), repeats allowed.
            height: pixels, at least 1.
            width: pixels, at least 1.

        Returns:
            (B, 3, height, width) uint8 RGB on the CPU, in the order of `rows`; the caller owns it.

        Raises:
            DataError: a row is out of range, a size is not positive, or a file is missing, truncated or no image.
        """
        rows = self._checked(rows, height, width)
        cache = self._cache(height, width)
        if cache is None:
            images = torch.empty((len(rows), 3, height, width), dtype=torch.uint8)
            for slot, pixels in enumerate(self._decoded(rows.tolist(), height, width)):
                images.numpy()[slot] = _or_raise(pixels)
            return images
        kept, known = cache
        missing = rows[~known[rows]].unique().tolist()
        for row, pixels in zip(missing, self._decoded(missing, height, width), strict=True):
            kept.numpy()[row] = _or_raise(pixels)
            known[row] = True
        return kept[rows]

    def preload(self, height: int, width: int, progress: Progress = QUIET.progress) -> None:
        """Decode every file once, so that damaged ones are found before hours of training.

        Args:
            height: pixels.
            width: pixels.
            progress: shows how many have passed, as `Run.progress` does.

        Raises:
            DataError: at least one file cannot be decoded; the first is named, the others counted.
        """
        self._checked(torch.empty(0, dtype=torch.int64), height, width)
        cache = self._cache(height, width)
        rows = range(len(self)) if cache is None else torch.nonzero(~cache[1]).flatten().tolist()
        failures: list[DataError] = []
        decoded = progress(
            self._decoded(list(rows), height, width), f"decoding {self.name}".strip(), len(rows)
        )
        for row, pixels in zip(rows, decoded, strict=True):
            if isinstance(pixels, DataError):
                failures.append(pixels)
            elif cache is not None:
                cache[0].numpy()[row] = pixels
                cache[1][row] = True
        if failures:
            verb = "image is" if len(failures) == 1 else "images are"
            raise DataError(f"{failures[0]}; {len(failures):,} of {len(self):,} {verb} unreadable")

    def _checked(self, rows: Tensor, height: int, width: int) -> Tensor:
        if height < 1 or width < 1:
            raise DataError(
                f"images cannot be {height} x {width} pixels; height and width must be at least 1"
            )
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise DataError(f"rows must be a (B,) int64 tensor, not {tuple(rows.shape)} {rows.dtype}")
        rows = rows.cpu()
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise DataError(
                f"row {int(outside[0])} is out of range: there are {len(self):,} images, counted from 0"
            )
        return rows

    def _cache(self, height: int, width: int) -> tuple[Tensor, Tensor] | None:
        """Return the kept pixels of one size and which rows are filled in, or None where they do not fit."""
        if (height, width) not in self._caches:
            used = sum(pixels.numel() for pixels, _ in self._caches.values())
            if used + len(self) * 3 * height * width > self._cache_bytes:
                return None
            pixels = torch.empty((len(self), 3, height, width), dtype=torch.uint8)
            self._caches[height, width] = pixels, torch.zeros(len(self), dtype=torch.bool)
        return self._caches[height, width]

    def _decoded(self, rows: list[int], height: int, width: int) -> Iterator[Pixels | DataError]:
        """Yield each row's pixels or its error, in order; a few threads work ahead (Pillow releases the GIL)."""
        decode = partial(_decode, height=height, width=width)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            spread = pool.map if len(rows) >= 16 else map  # for a few files, starting threads takes longer
            for start in range(0, len(rows), _CHUNK):
                paths = [self._paths[row] for row in rows[start : start + _CHUNK]]
                with _strict_pillow():
                    decoded = list(spread(decode, paths))
                yield from decoded


def _or_raise(pixels: Pixels | DataError) -> Pixels:
    if isinstance(pixels, DataError):
        raise pixels
    return pixels


def images_of(split: Split, *, name: str = "", cache_bytes: int = 4 << 30) -> Photographs:
    """Return a split's crops by row number.

    Args:
        split: which files, in which order.
        name: what progress bars call them.
        cache_bytes: memory for decoded images, in bytes.

    Returns:
        N images.
    """
    return Photographs(split, name=name, cache_bytes=cache_bytes)


class _Sealed:
    """Images without a way back to their files: the photographs live in closures, not in attributes."""

    __slots__ = ("_length", "_preload", "_read")

    def __init__(self, photographs: Photographs) -> None:
        def read(rows: Tensor, height: int, width: int) -> Tensor:
            return photographs.read(rows, height, width)

        def preload(height: int, width: int, progress: Progress) -> None:
            photographs.preload(height, width, progress)

        self._length = len(photographs)
        self._read = read
        self._preload = preload

    def __len__(self) -> int:
        return self._length

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Return images as `Photographs.read` does."""
        return self._read(rows, height, width)

    def preload(self, height: int, width: int, progress: Progress = QUIET.progress) -> None:
        """Decode every file once, as `Photographs.preload` does."""
        self._preload(height, width, progress)


def unlabelled(domain: Domain, *, cameras: bool = False, cache_bytes: int = 4 << 30) -> Target:
    """Return a domain's training images without identities and file names: all that a strategy may see.

    Args:
        domain: the domain to adapt to.
        cameras: hand out the camera numbers too; only for a strategy that declares that it needs them.
        cache_bytes: memory for decoded images, in bytes.

    Returns:
        The images in the order of `domain.train`; `cams` (N,) int64 where asked for, else None. The images also have
        `preload(height, width, progress)`.

    Raises:
        DataError: cameras are asked for and the domain has none.
    """
    cams = None
    if cameras:
        if domain.train.cams is None:
            raise DataError(
                f"{domain.name}: the strategy needs camera numbers and this domain has none; "
                "give them in its manifest or choose a strategy that does without"
            )
        cams = torch.from_numpy(domain.train.cams.astype(np.int64))
    return Target(
        domain.name, _Sealed(Photographs(domain.train, name=domain.name, cache_bytes=cache_bytes)), cams
    )


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return randomly changed copies of a batch, each image changed in its own way.

    Args:
        images: (B, 3, H, W), uint8 or floating in [0, 1], on any device.
        kind: `none`; `ide`: rotation within 20 degrees and shifts within 0.2 of the size, borders repeated, no flip;
            `reid`: flip, pad and crop, mild colour jitter, random erasing.
        generator: a CPU generator; every random number is drawn from it, equally many for every batch of B images.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on the device of `images`.

    Raises:
        RecipeError: `kind` is none of `AUGMENTATIONS`.
        DataError: `images` is no batch of RGB images.

    Source:
        `ide`: baseline/train.py of hehefan/Unsupervised-Person-Re-identification-Clustering-and-Fine-tuning.
        `reid`: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", section 3;
        the colour jitter is this package's addition.
    """
    if kind not in AUGMENTATIONS:
        raise RecipeError(f"augmentation {kind!r} is unknown; use one of {', '.join(AUGMENTATIONS)}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise DataError(f"a batch of images must be (B, 3, H, W), not {tuple(images.shape)}")
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if kind == "ide":
        draws = [_uniform(low, -low, len(images), generator, images) for low in (-20.0, -0.2, -0.2)]
        return rotate_and_shift(images, degrees=draws[0], down=draws[1], right=draws[2])
    if kind == "reid":
        images = flip_and_crop(images, generator)
        images = jitter_colours(images, generator)
        return erase_rectangles(images, generator)
    return images


def _uniform(
    low: float, high: float, shape: int | tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    # Drawn on the CPU and then moved, so that every device sees the same numbers.
    shape = (shape,) if isinstance(shape, int) else shape
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(like.device)


def rotate_and_shift(images: Tensor, *, degrees: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Rotate each image about its centre and shift it; what enters from outside repeats the border.

    The pixel at output position o, counted from the centre, is read at R(degrees) (o + shift), bilinearly: the order
    in which Keras' ImageDataGenerator composes the two. The rotation turns pixels, so shapes keep their proportions
    in images that are not square.

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


def flip_and_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every second image on average, pad all with black and cut the old size out at a random place.

    The padding is 10/256 of the height, the usual 10 pixels of 256 x 128 crops, and at least 2 pixels.

    Args:
        images: (B, C, H, W).
        generator: a CPU generator.

    Returns:
        (B, C, H, W).

    Source:
        Luo et al. 2019, section 3.
    """
    count, _, height, width = images.shape
    mirrored = _uniform(0, 1, (count, 1, 1, 1), generator, images) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    margin = max(2, round(height * 10 / 256))
    places = torch.randint(0, 2 * margin + 1, (2, count), generator=generator).to(images.device)
    windows = F.pad(images, (margin, margin, margin, margin)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, places[0], places[1]]


def jitter_colours(images: Tensor, generator: torch.Generator, *, strength: float = 0.2) -> Tensor:
    """Change each image's brightness, contrast and saturation by factors in [1 - strength, 1 + strength].

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        generator: a CPU generator.
        strength: in [0, 1].

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    factors = _uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1), generator, images)
    brightness, contrast, saturation = factors
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    images = images * brightness
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = (images * luma).sum(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp_(0, 1)


def erase_rectangles(images: Tensor, generator: torch.Generator, *, probability: float = 0.5) -> Tensor:
    """Cover a random rectangle of some images with the mean colour of ImageNet.

    The area is uniform in 2 to 40 % of the image, height / width uniform in 0.3 to 1/0.3; of ten rectangles the first
    that fits is taken, and an image that none fits stays whole.

    Args:
        images: (B, 3, H, W) float32.
        generator: a CPU generator.
        probability: share of images that are erased, in [0, 1].

    Returns:
        (B, 3, H, W) float32.

    Source:
        Zhong et al. 2017, "Random Erasing Data Augmentation", algorithm 1; ranges and colour of Luo et al. 2019.
    """
    count, _, height, width = images.shape
    chosen = _uniform(0, 1, count, generator, images) < probability
    area = _uniform(0.02, 0.4, (count, 10), generator, images) * (height * width)
    aspect = _uniform(0.3, 1 / 0.3, (count, 10), generator, images)
    place = _uniform(0, 1, (2, count), generator, images)
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall >= 1) & (wide >= 1) & (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first), wide.gather(1, first)
    top = (place[0][:, None] * (height - tall + 1)).floor()
    left = (place[1][:, None] * (width - wide + 1)).floor()
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]
    inside &= (chosen & fits.any(1))[:, None, None]
    colour = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    return torch.where(inside[:, None], colour, images)
