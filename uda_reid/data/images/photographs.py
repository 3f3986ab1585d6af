"""Photographs by row number, and the door through which a target passes without its labels."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.run import QUIET
from uda_reid.types import JUNK, Domain, Split, Target

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""How `Run.progress` is called: items, description, total; gives the items back."""

_CHUNK = 64  # rows decoded ahead of whoever consumes them


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Silence Pillow's warnings and refuse truncated files, whatever the surrounding program has set.

    Entered by the thread that starts the decoding threads, because several at once would mix up the filters.
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
    """Return what is wrong with a file and what to do about it."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # the system's; Pillow's have no number
        return f"cannot be read ({error.strerror}); check its rights and the disk"
    return f"cannot be decoded ({_damage(error)}): remove or replace it"


def _damage(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if "truncated" in str(error).lower():
        return "truncated"
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its camera noted; notes that cannot be read turn nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # SyntaxError, struct.error and more: damaged notes do not make a damaged image
        return image


def _opened(path: Path, use: Callable[[Image.Image], T]) -> T | DataError:
    """Return what `use` makes of one file as an upright RGB image, or the error that says why it is not one."""
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to white
                return DataError(f"{path}: 16-bit or float pixels; convert to 8 bits")
            return use(_upright(image.convert("RGB")))
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        return DataError(f"{path}: {_reason(error)}")


def _decode(path: Path, height: int, width: int) -> Pixels | DataError:
    """Return one file as (3, height, width) uint8 RGB, or the error that says why it is not one."""

    def resized(rgb: Image.Image) -> Pixels:
        if rgb.size != (width, height):
            # Pillow widens the bilinear kernel when it shrinks: what other libraries call antialiasing.
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)

    return _opened(path, resized)


def _ahead(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """Yield what `work` makes of each file, in order; threads work ahead (Pillow releases the GIL)."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        spread = pool.map if len(paths) >= 16 else map  # for a few files, starting threads takes longer
        for start in range(0, len(paths), _CHUNK):
            with _strict_pillow():
                done = list(spread(work, paths[start : start + _CHUNK]))
            yield from done


def sizes(
    split: Split, *, name: str = "", progress: Progress = QUIET.progress
) -> Iterator[tuple[int, int] | DataError]:
    """Yield the height and width of every crop, decoded in full and not kept, or why a run would refuse it.

    Args:
        split: which files, in which order.
        name: what the progress bar calls them.
        progress: shows how many have passed, as `Run.progress` does.
    """
    measured = _ahead(partial(_opened, use=lambda rgb: (rgb.height, rgb.width)), split.paths)
    yield from progress(measured, f"decoding {name}".strip(), len(split))


class Photographs:
    """The crops of a split, decoded on demand and kept while memory allows; an `Images`.

    Args:
        split: which files, in which order; identities and cameras are not kept.
        name: what progress bars call them.
        cache_bytes: memory for decoded images, in bytes, over all sizes that are asked for; a size whose N
            images do not fit is decoded anew on every read.
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
            DataError: a row is out of range, a size is not positive, or a file is missing or damaged.
        """
        rows = self._checked(rows, height, width)
        cache = self._cache(height, width)
        if cache is None:
            images = torch.empty((len(rows), 3, height, width), dtype=torch.uint8)
            for slot, pixels in enumerate(self._decoded(rows.tolist(), height, width)):
                images.numpy()[slot] = _or_raise(pixels)
            return images
        kept, known = cache
        missing = torch.unique(rows[~known[rows]]).tolist()
        for row, pixels in zip(missing, self._decoded(missing, height, width), strict=True):
            kept.numpy()[row] = _or_raise(pixels)
            known[row] = True
        return kept[rows]

    def preload(self, height: int, width: int, progress: Progress = QUIET.progress) -> None:
        """Decode every file once, so that damaged ones are found before hours of training.

        Where the images do not fit into the cache, they are only checked.

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
        decoded = progress(self._decoded(rows, height, width), f"decoding {self.name}".strip(), len(rows))
        for row, pixels in zip(rows, decoded, strict=True):
            if isinstance(pixels, DataError):
                failures.append(pixels)
            elif cache is not None:
                cache[0].numpy()[row] = pixels
                cache[1][row] = True
        if failures:
            verb = "is" if len(failures) == 1 else "are"
            raise DataError(f"{failures[0]}; {len(failures):,} of {len(self):,} images {verb} unreadable")

    def _checked(self, rows: Tensor, height: int, width: int) -> Tensor:
        if height < 1 or width < 1:
            raise DataError(f"images cannot be {height} x {width} pixels; height and width must be at least 1")
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise DataError(f"rows must be a (B,) int64 tensor, not {tuple(rows.shape)} {rows.dtype}")
        rows = rows.cpu()
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise DataError(f"row {int(outside[0])} is out of range: there are {len(self):,} images, counted from 0")
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

    def _decoded(self, rows: Iterable[int], height: int, width: int) -> Iterator[Pixels | DataError]:
        """Yield each row's pixels or its error, in order."""
        return _ahead(partial(_decode, height=height, width=width), [self._paths[row] for row in rows])


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


_FILES: dict[int, Photographs] = {}
"""What the sealed objects read, by their ids. In the module and not in them: nothing that a strategy is handed, no
attribute, closure or weak reference, leads from the images to their file names, which tell identities."""


class _Sealed:
    """Images without a way back to their files."""

    __slots__ = ("_length",)

    def __init__(self, photographs: Photographs) -> None:
        self._length = len(photographs)
        _FILES[id(self)] = photographs

    def __len__(self) -> int:
        return self._length

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        """Return images as `Photographs.read` does; errors name no files, nor do their frames."""
        try:
            return _FILES[id(self)].read(rows, height, width)
        except Exception as error:
            told = (
                str(error)
                if isinstance(error, DataError)
                else f"images cannot be read ({type(error).__name__}: {error})"
            )
        if any(str(path) in told for path in _FILES[id(self)]._paths):
            told = "an image of the target cannot be read any more; `uda-reid data check` names it"
        raise DataError(told)  # a new one, outside: the frames of the old one hold the file names

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self  # the images do not change, and a copy would have none

    def __reduce__(self) -> str:
        raise TypeError("a target's images stay in their process: their file names are not to leave it")

    def __del__(self) -> None:
        files = globals().get("_FILES")  # may be gone when the interpreter ends
        if files:
            files.pop(id(self), None)


def unlabelled(domain: Domain, *, cameras: bool = False, cache_bytes: int = 4 << 30) -> Target:
    """Return a domain's training images without identities and file names: all that a strategy may see.

    Args:
        domain: the domain to adapt to.
        cameras: hand out the camera numbers too; only for a strategy that declares that it needs them.
        cache_bytes: memory for decoded images, in bytes.

    Returns:
        The images in the order that `target_order` gives; `cams` (N,) int64 where asked for, else None.

    Raises:
        DataError: cameras are asked for and the domain has none.
    """
    train, order = domain.train, target_order(len(domain.train))
    cams = None
    if cameras:
        if train.cams is None:
            raise DataError(
                f"{domain.name}: the strategy needs camera numbers and this domain has none; "
                "give them in its manifest or choose a strategy that does without"
            )
        cams = torch.from_numpy(train.cams.astype(np.int64))[order]
    unknown = np.full(len(train), JUNK)
    shuffled = Split(tuple(train.paths[row] for row in order.tolist()), unknown, None)
    return Target(domain.name, _Sealed(Photographs(shuffled, name=domain.name, cache_bytes=cache_bytes)), cams)


def target_order(count: int) -> Tensor:
    """Return which row of `domain.train` stands at each row of its target: a fixed shuffle of `count` rows.

    Files are mostly sorted by identity, so in their own order neighbouring rows would give identities away. An auditor
    needs this order to compare pseudo-labels with identities; a strategy has no use for it.

    Args:
        count: number of training images.

    Returns:
        (count,) int64, the same for every call.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))
