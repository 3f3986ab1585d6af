"""Photographs by row number, and the door through which a target passes without its labels."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from uda_reid.data.images.pixels import PixelFile, Pixels, Progress, digest_of, digests_known
from uda_reid.errors import DataError, UnreadableError
from uda_reid.run import QUIET
from uda_reid.types import JUNK, Domain, Split, Target

T = TypeVar("T")

MAPPED_ABOVE = 256 << 20
"""Bytes of decoded images that stay in memory; more of them go to a file. They are 2,730 images of 256 x 128: the
built-in scenes and small data sets never touch the disk, Market-1501 does."""

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


def _unchanged(path: Path, digest: bytes) -> BytesIO:
    content = path.read_bytes()
    if hashlib.sha256(content).digest() != digest:
        raise DataError("changed while it was being read; start again when nothing writes to it")
    return BytesIO(content)


def _opened(path: Path, use: Callable[[Image.Image], T], digest: bytes = b"") -> T | DataError:
    """Return what `use` makes of one file as an upright RGB image, or the error that says why it is not one.

    With a digest, a file of any other content is an error too.
    """
    try:
        with Image.open(_unchanged(path, digest) if digest else path) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these to white
                return DataError(f"{path}: 16-bit or float pixels; convert to 8 bits")
            return use(_upright(image.convert("RGB")))
    except MemoryError:  # says nothing about the file
        raise
    except DataError as error:
        return DataError(f"{path}: {error}")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        return DataError(f"{path}: {_reason(error)}")


def _decode(path: Path, height: int, width: int) -> Pixels | DataError:
    """Return one file as (3, height, width) uint8 RGB, or the error that says why it is not one."""
    return _opened(path, partial(_resized, height=height, width=width))


def _resized(rgb: Image.Image, height: int, width: int) -> Pixels:
    if rgb.size != (width, height):
        # Pillow widens the bilinear kernel when it shrinks: what other libraries call antialiasing.
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)


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
    """The crops of a split, decoded on demand and kept while memory allows, or in a file; an `Images`.

    Many images go to a file that all processes share (see `pixels`). Only `preload` makes one, because it takes
    minutes; `read` finds what a `preload` of the same files in this process has made or found, whatever their order.

    Args:
        split: which files, in which order; identities and cameras are not kept.
        name: what progress bars call them.
        cache_bytes: memory for decoded images, in bytes, over all sizes that are asked for; a size whose N
            images do not fit, and are in no file, is decoded anew on every read.
        mapped_above: a size whose N images take more bytes than this goes to a file.
    """

    def __init__(
        self, split: Split, *, name: str = "", cache_bytes: int = 4 << 30, mapped_above: int = MAPPED_ABOVE
    ) -> None:
        self.name = name
        self._paths = split.paths
        self._cache_bytes = cache_bytes
        self._mapped_above = mapped_above
        # Arrays and no tensors: what torch makes in its inference mode cannot be filled in outside of it.
        self._caches: dict[tuple[int, int], tuple[Pixels, npt.NDArray[np.bool_]]] = {}
        self._files: dict[tuple[int, int], PixelFile | None] = {}  # None: looked for and not found

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
            UnreadableError: files are missing or damaged; the first is named, `rows` lists all that were asked for.
            DataError: a row is out of range, or a size is not positive.
        """
        rows = self._checked(rows, height, width)
        file = self._file(height, width)
        if file is not None:
            return file.read(rows)
        cache = self._cache(height, width)
        if cache is None:
            images = np.empty((len(rows), 3, height, width), dtype=np.uint8)
            failures = self._fill(images, range(len(rows)), rows.tolist())
        else:
            kept, known = cache
            missing = [row for row in np.unique(rows.numpy()).tolist() if not known[row]]
            failures = self._fill(kept, missing, missing)
            known[[row for row in missing if row not in failures]] = True
        if failures:
            raise UnreadableError(str(next(iter(failures.values()))), failures)
        return torch.from_numpy(images if cache is None else cache[0].take(rows.numpy(), axis=0))

    def preload(
        self,
        height: int,
        width: int,
        progress: Progress = QUIET.progress,
        log: Callable[[str], None] = QUIET.log,
    ) -> None:
        """Decode every file once, so that damaged ones are found before hours of training.

        Many images go to a file, or are found in one and not decoded again. Where there can be no file and the images
        do not fit into the cache either, they are only checked.

        Args:
            height: pixels.
            width: pixels.
            progress: shows how many have passed, as `Run.progress` does.
            log: is told in one line why many images do not go to a file, as `Run.log` is.

        Raises:
            UnreadableError: at least one file cannot be decoded; the first is named, the others counted, `rows` lists
                them all.
        """
        self._checked(torch.empty(0, dtype=torch.int64), height, width)
        if self._preload_file(height, width, progress, log):
            return
        cache = self._cache(height, width)
        rows = range(len(self)) if cache is None else np.flatnonzero(~cache[1]).tolist()
        failures: dict[int, DataError] = {}
        decoded = progress(self._decoded(rows, height, width), f"decoding {self.name}".strip(), len(rows))
        for row, pixels in zip(rows, decoded, strict=True):
            if isinstance(pixels, DataError):
                failures[row] = pixels
            elif cache is not None:
                cache[0][row] = pixels
                cache[1][row] = True
        if failures:
            raise self._unreadable(next(iter(failures.values())), list(failures))

    def _preload_file(self, height: int, width: int, progress: Progress, log: Callable[[str], None]) -> bool:
        """Return whether all images are in a file, which is written first where there is none."""
        if self._files.get((height, width)) is not None:
            return True
        if not self._is_large(height, width):
            return False
        read = progress(_ahead(digest_of, self._paths), f"reading {self.name}".strip(), len(self))
        digests: list[bytes] = list(read)
        if not all(digests):  # files that cannot be read: decoding names the first and counts the others
            return False
        file = PixelFile(digests, height, width)
        if not file.open():
            images = self._in_file_order(file, digests, height, width, progress)
            why = file.build(images, name=self.name or "the same images", progress=progress)
            if why:
                named = f"{self.name}: " if self.name else ""
                log(f"{named}decoded images are not kept on disk ({why}); set UDA_REID_CACHE to a folder with room")
                return False
        self._files[height, width] = file
        self._caches.pop((height, width), None)  # what `read` has kept before
        return True

    def _in_file_order(
        self, file: PixelFile, digests: Sequence[bytes], height: int, width: int, progress: Progress
    ) -> Iterator[Pixels]:
        """Yield the images that a file holds, up to the first that cannot be decoded; the others are only checked."""
        rows, use = file.firsts(), partial(_resized, height=height, width=width)
        known = dict(zip(self._paths, digests, strict=True))
        decoded = _ahead(lambda path: _opened(path, use, known[path]), [self._paths[row] for row in rows])
        failures: dict[int, DataError] = {}
        for row, pixels in zip(rows, progress(decoded, f"decoding {self.name}".strip(), len(rows)), strict=True):
            if isinstance(pixels, DataError):
                failures[row] = pixels
            elif not failures:
                yield pixels
        if failures:
            raise self._unreadable(failures[min(failures)], file.rows_like(list(failures)))

    def _unreadable(self, first: DataError, rows: Sequence[int]) -> UnreadableError:
        verb = "is" if len(rows) == 1 else "are"
        return UnreadableError(f"{first}; {len(rows):,} of {len(self):,} images {verb} unreadable", rows)

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

    def _is_large(self, height: int, width: int) -> bool:
        return len(self) * 3 * height * width > self._mapped_above

    def _file(self, height: int, width: int) -> PixelFile | None:
        """Return the file that holds all images at one size, or None where there is none, or it is not known yet."""
        if (height, width) not in self._files and self._is_large(height, width):
            digests = digests_known(self._paths)  # of files that `preload` has read: to read them here takes too long
            file = PixelFile(digests, height, width) if digests else None
            self._files[height, width] = file if file is not None and file.open() else None
        return self._files.get((height, width))

    def _cache(self, height: int, width: int) -> tuple[Pixels, npt.NDArray[np.bool_]] | None:
        """Return the kept pixels of one size and which rows are filled in, or None where they do not fit."""
        if (height, width) not in self._caches:
            used = sum(pixels.size for pixels, _ in self._caches.values())
            if used + len(self) * 3 * height * width > self._cache_bytes:
                return None
            # From torch: NumPy asks for pages so large that a few rows would take the memory of many.
            pixels: Pixels = torch.empty((len(self), 3, height, width), dtype=torch.uint8).numpy()
            self._caches[height, width] = pixels, np.zeros(len(self), dtype=np.bool_)
        return self._caches[height, width]

    def _fill(self, images: Pixels, places: Sequence[int], rows: Sequence[int]) -> dict[int, DataError]:
        """Decode rows into their places in `images`; return what is wrong with those that cannot be, by row."""
        failures: dict[int, DataError] = {}
        height, width = images.shape[2:]
        for place, row, pixels in zip(places, rows, self._decoded(rows, height, width), strict=True):
            if isinstance(pixels, DataError):
                failures[row] = pixels
            else:
                images[place] = pixels
        return failures

    def _decoded(self, rows: Iterable[int], height: int, width: int) -> Iterator[Pixels | DataError]:
        """Yield each row's pixels or its error, in order."""
        return _ahead(partial(_decode, height=height, width=width), [self._paths[row] for row in rows])


def images_of(
    split: Split, *, name: str = "", cache_bytes: int = 4 << 30, mapped_above: int = MAPPED_ABOVE
) -> Photographs:
    """Return a split's crops by row number.

    Args:
        split: which files, in which order.
        name: what progress bars call them.
        cache_bytes: memory for decoded images, in bytes.
        mapped_above: more bytes of decoded images than this go to a file.

    Returns:
        N images.
    """
    return Photographs(split, name=name, cache_bytes=cache_bytes, mapped_above=mapped_above)


_UNNAMED = "an image of the target cannot be read any more; `uda-reid data check` names it"

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
        except UnreadableError as error:
            unreadable = error.rows
        except Exception as error:
            unreadable = ()
            told = (
                str(error)
                if isinstance(error, DataError)
                else f"images cannot be read ({type(error).__name__}: {error})"
            )
        # New ones, outside: the frames of the old one hold the file names.
        if unreadable:
            raise UnreadableError(_UNNAMED, unreadable)
        raise DataError(_UNNAMED if any(str(path) in told for path in _FILES[id(self)]._paths) else told)

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


def unlabelled(
    domain: Domain, *, cameras: bool = False, cache_bytes: int = 4 << 30, mapped_above: int = MAPPED_ABOVE
) -> Target:
    """Return a domain's training images without identities and file names: all that a strategy may see.

    Args:
        domain: the domain to adapt to.
        cameras: hand out the camera numbers too; only for a strategy that declares that it needs them.
        cache_bytes: memory for decoded images, in bytes.
        mapped_above: more bytes of decoded images than this are read from the file that a `preload` of the domain's
            training images has made, where there was one in this process.

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
    photographs = Photographs(shuffled, name=domain.name, cache_bytes=cache_bytes, mapped_above=mapped_above)
    return Target(domain.name, _Sealed(photographs), cams)


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
