"""Photographs by row number, decoded on demand and kept in memory or in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.data.images.decoding import decode, in_threads, opened, resized
from uda_reid.data.images.pixels import PixelFile, Pixels, Progress, digest_of, digests_known
from uda_reid.errors import DataError, UnreadableError
from uda_reid.run import QUIET
from uda_reid.types import Split

MAPPED_ABOVE = 256 << 20
"""Bytes of decoded images that stay in memory; more of them go to a file. They are 2,730 images of 256 x 128: the
built-in scenes and small data sets never touch the disk, Market-1501 does."""


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
        log: is told in one line that a file is damaged, as `Run.log` is; `preload` may name another.
    """

    def __init__(
        self,
        split: Split,
        *,
        name: str = "",
        cache_bytes: int = 4 << 30,
        mapped_above: int = MAPPED_ABOVE,
        log: Callable[[str], None] = QUIET.log,
    ) -> None:
        self.name = name
        self._log = log
        self._paths = split.paths
        self._cache_bytes = cache_bytes
        self._mapped_above = mapped_above
        # Arrays and no tensors: what torch makes in its inference mode cannot be filled in outside of it.
        self._caches: dict[tuple[int, int], tuple[Pixels, npt.NDArray[np.bool_]]] = {}
        self._files: dict[tuple[int, int], PixelFile | None] = {}  # None: looked for and not found
        self._damaged: list[PixelFile] = []  # said already

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
            return torch.from_numpy(self._read_file(file, rows))
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
            log: is told in one line why many images do not go to a file, and that a file is damaged, as `Run.log` is.

        Raises:
            UnreadableError: at least one file cannot be decoded; the first is named, the others counted, `rows` lists
                them all.
        """
        self._checked(torch.empty(0, dtype=torch.int64), height, width)
        self._log = log
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
        read = progress(in_threads(digest_of, self._paths), f"reading {self.name}".strip(), len(self))
        digests: list[bytes] = list(read)
        if not all(digests):  # files that cannot be read: decoding names the first and counts the others
            return False
        file = PixelFile(digests, height, width)
        if not file.open():
            images = self._in_file_order(file, height, width, progress)
            why = file.build(images, name=self.name or "the same images", progress=progress)
            if why:
                remedy = "set UDA_REID_CACHE to a folder with room"
                log(f"{self._named()}decoded images are not kept on disk ({why}); {remedy}")
                return False
        self._files[height, width] = file
        self._caches.pop((height, width), None)  # what `read` has kept before
        return True

    def _read_file(self, file: PixelFile, rows: Tensor) -> Pixels:
        """Return images out of a file; those that are damaged there are decoded again, and mended there."""
        images, damaged = file.read(rows)
        if not damaged:
            return images
        if file not in self._damaged:
            self._damaged.append(file)
            self._log(
                f"warning: {self._named()}the file of decoded images is damaged ({file.path}); "
                "images whose checksum is wrong are decoded again and replaced in it"
            )
        asked = [int(rows[number]) for number in damaged]
        failures: dict[int, DataError] = {}
        height, width = images.shape[2:]
        for number, row, pixels in zip(damaged, asked, self._decoded_for(file, asked, height, width), strict=True):
            if isinstance(pixels, DataError):
                failures[row] = pixels
            else:
                images[number] = pixels
                file.mend(row, pixels)
        if failures:
            raise UnreadableError(str(next(iter(failures.values()))), failures)
        return images

    def _decoded_for(
        self, file: PixelFile, rows: Sequence[int], height: int, width: int
    ) -> Iterator[Pixels | DataError]:
        """Yield the pixels that a file should hold of each row; image files that have changed since are errors."""
        use, known = partial(resized, height=height, width=width), {self._paths[row]: file.digest(row) for row in rows}
        return in_threads(lambda path: opened(path, use, known[path]), [self._paths[row] for row in rows])

    def _named(self) -> str:
        return f"{self.name}: " if self.name else ""

    def _in_file_order(self, file: PixelFile, height: int, width: int, progress: Progress) -> Iterator[Pixels]:
        """Yield the images that a file holds, up to the first that cannot be decoded; the others are only checked."""
        rows = file.firsts()
        decoded = self._decoded_for(file, rows, height, width)
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
        return in_threads(partial(decode, height=height, width=width), [self._paths[row] for row in rows])


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
