"""Image files to pixels: upright, RGB, of one size, in threads; what cannot be decoded says why."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from uda_reid.data.images.pixels import Pixels, Progress
from uda_reid.errors import DataError
from uda_reid.reading import IMAGE_BYTES, IrregularError, open_file
from uda_reid.run import QUIET
from uda_reid.types import Split

T = TypeVar("T")

GROUND = (124, 116, 104)
"""RGB of what lies behind transparent pixels: ImageNet's mean, zero to an encoder after the usual normalisation."""
_CHUNK = 64  # rows decoded ahead of whoever consumes them


_STRICT = threading.RLock()


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Silence Pillow's warnings and refuse truncated files, whatever the surrounding program has set.

    Entered by the thread that starts the decoding threads, because several at once would mix up the filters.
    """
    with _STRICT:
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
    if isinstance(error, IrregularError):
        return f"cannot be decoded ({error.strerror}): remove or replace it"
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


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image with transparency as RGB, upright, on `GROUND`: a cut-out's hidden background stays hidden."""
    seen = _upright(image.convert("RGBA"))
    return Image.alpha_composite(Image.new("RGBA", seen.size, (*GROUND, 255)), seen).convert("RGB")


def _unchanged(file: BinaryIO, digest: bytes) -> BytesIO:
    content = file.read()
    if hashlib.sha256(content).digest() != digest:
        raise DataError("changed while it was being read; start again when nothing writes to it")
    return BytesIO(content)


def opened(path: Path, use: Callable[[Image.Image], T], digest: bytes = b"") -> T | DataError:
    """Return what `use` makes of one file as an upright RGB image, or the error that says why it is not one.

    With a digest, a file of any other content is an error too.
    """
    try:
        with (
            open_file(path, most=IMAGE_BYTES) as file,
            Image.open(_unchanged(file, digest) if digest else file) as image,
        ):
            if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to white
                return DataError(f"{path}: 16-bit or float pixels; convert to 8 bits")
            return use(_opaque(image) if image.has_transparency_data else _upright(image.convert("RGB")))
    except MemoryError:  # says nothing about the file
        raise
    except DataError as error:
        return DataError(f"{path}: {error}")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        return DataError(f"{path}: {_reason(error)}")


def decode(path: Path, height: int, width: int) -> Pixels | DataError:
    """Return one file as (3, height, width) uint8 RGB, or the error that says why it is not one."""
    return opened(path, partial(resized, height=height, width=width))


def resized(rgb: Image.Image, height: int, width: int) -> Pixels:
    """Return an RGB image as (3, height, width) uint8."""
    if rgb.size != (width, height):
        # Pillow widens the bilinear kernel when it shrinks: what other libraries call antialiasing.
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)


def in_threads(work: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
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
    measured = in_threads(partial(opened, use=lambda rgb: (rgb.height, rgb.width)), split.paths)
    yield from progress(measured, f"decoding {name}".strip(), len(split))
