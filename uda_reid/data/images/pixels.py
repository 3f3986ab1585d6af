"""Decoded images in a file: decoded once, then read by as many processes of one user as want them.

A file is known by what is in it: the contents of the image files, whatever they are called and in whatever order they
are asked for. So the training images of a source, the same ones shuffled as a target, and every process of a matrix
share one. Files lie in `UDA_REID_CACHE` or the user's cache folder and may be removed at any time.

What is in a file is not believed: each image has a checksum, which every process compares when it first reads the
image. A file that another user could have written is not read at all, as its checksums may be right and its images not.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import platformdirs
from filelock import FileLock, Timeout
from PIL import features
from torch import Tensor

from uda_reid.errors import CheckpointError
from uda_reid.reading import IMAGE_BYTES, open_file
from uda_reid.writing import only_ours, private_folder, replacing

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""How `Run.progress` is called: items, description, total; gives the items back."""

FORMAT = 2
"""Raised whenever other pixels, or the same in another order, would be written for the same images."""
SPARE = 2 << 30
"""Bytes of the disk that stay free: a file that would take of them is not written."""
_MAGIC = b"uda_reid pixels\n"
_HEADER = 4096  # bytes before the first image: a page, so that images of whole pages begin where pages do
_SUM = np.dtype("<u4")  # a CRC-32
_SEEKING = threading.Lock()
_POLL = 0.2  # seconds between two looks at a lock that another process holds

_DIGESTS: dict[Path, tuple[tuple[int, int, int], bytes]] = {}
"""The digests of files that this process has read, and what the files looked like then."""


def folder() -> Path:
    """Return the folder of all files; it need not be there."""
    return Path(os.environ.get("UDA_REID_CACHE") or platformdirs.user_cache_dir("uda_reid")) / "pixels"


def digest_of(path: Path) -> bytes:
    """Return the SHA-256 digest of a file, which is read in any case, or nothing where it cannot be read."""
    try:
        look = _look(path)
        with open_file(path, most=IMAGE_BYTES) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):  # ValueError: no file can have this name
        return b""
    _DIGESTS[path] = look, digest
    return digest


def digests_known(paths: Sequence[Path]) -> list[bytes]:
    """Return the digests that `digest_of` gave for these files in this process; none at all where any is missing.

    A file that looks changed since (size, times) counts as missing.
    """
    found = []
    for path in paths:
        look, digest = _DIGESTS.get(path, ((), b""))
        try:
            if look != _look(path):
                return []
        except OSError:
            return []
        found.append(digest)
    return found


def _look(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class PixelFile:
    """The pixels of images at one size, in a file that bears the digest of their contents.

    The file holds a header, (M, 3, height, width) uint8 RGB, one image for each of the M different contents, in the
    order of their digests, and (M,) uint32, the CRC-32 of each image. It is whole or not there: a file of another size
    or with another header is none, nor is one that another user could have written.

    It is read and not mapped into memory: where the end of a mapped file is cut off, or the disk fails, the system
    ends the process.

    Args:
        digests: SHA-256 digests of N image files, one per row, repeats allowed.
        height: pixels.
        width: pixels.
    """

    def __init__(self, digests: Sequence[bytes], height: int, width: int) -> None:
        self._digests = sorted(set(digests))
        places = {digest: place for place, digest in enumerate(self._digests)}
        self._places = np.array([places[digest] for digest in digests], dtype=np.int64)
        self._shape = (3, height, width)
        self._bytes = 3 * height * width
        self._file: io.BufferedReader | None = None
        self._sums = np.empty(0, dtype=_SUM)
        self._checked = np.zeros(len(places), dtype=np.bool_)
        # Another decoder may give other pixels: bit-identity is promised for equal versions of packages alone.
        decoder = f"pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        key = hashlib.sha256(f"format {FORMAT}, {decoder}, {height} x {width}\n".encode() + b"".join(places))
        self.path = folder() / f"{key.hexdigest()}.pixels"
        self._header = (_MAGIC + key.digest()).ljust(_HEADER, b"\0")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # a copy opens the file itself

    @property
    def size(self) -> int:
        """Bytes that the file takes."""
        return self._start(len(self._digests)) + _SUM.itemsize * len(self._digests)

    def firsts(self) -> list[int]:
        """Return the first row of each image, in the order in which the file holds them."""
        return [int(row) for row in np.unique(self._places, return_index=True)[1]]

    def rows_like(self, rows: Sequence[int]) -> list[int]:
        """Return all rows whose images have the contents of any of `rows`, ascending."""
        return [int(row) for row in np.flatnonzero(np.isin(self._places, self._places[list(rows)]))]

    def digest(self, row: int) -> bytes:
        """Return the digest of the image file in a row."""
        return self._digests[int(self._places[row])]

    def open(self) -> bool:
        """Open the file; return whether it is there, whole and nobody else's."""
        count = len(self._digests)
        try:
            file = open_file(self.path)
            weakref.finalize(self, file.close)
            status = os.fstat(file.fileno())
            if status.st_size != self.size or not only_ours(status) or file.read(_HEADER) != self._header:
                return False
            sums = np.empty(count, dtype=_SUM)
            if _read_at(file, self._start(count), sums) != sums.nbytes:  # cut off meanwhile
                return False
        except OSError:
            return False
        self._file, self._sums, self._checked = file, sums, np.zeros(count, dtype=np.bool_)
        return True

    def read(self, rows: Tensor) -> tuple[Pixels, list[int]]:
        """Return a copy of images, and which of them are damaged; `open` or `build` must have succeeded.

        Args:
            rows: (B,) int64 in [0, N), on the CPU.

        Returns:
            (B, 3, height, width) uint8; and the places in `rows` whose images could not be read, or have another
            checksum than when they were written: their pixels mean nothing.
        """
        places = self._places[rows.numpy()].tolist()
        images = np.empty((len(places), *self._shape), dtype=np.uint8)
        damaged = [number for number, place in enumerate(places) if not self._read_into(images[number], place)]
        return images, damaged

    def _read_into(self, image: Pixels, place: int) -> bool:
        """Read one image into memory; return whether it is what was written."""
        if self._file is None and not self.open():
            return False
        try:
            whole = self._file is not None and _read_at(self._file, self._start(place), image) == image.nbytes
        except OSError:  # the disk
            return False
        if whole and not self._checked[place]:
            self._checked[place] = zlib.crc32(image.data) == self._sums[place]
        return whole and bool(self._checked[place])

    def mend(self, row: int, image: Pixels) -> None:
        """Write one image anew, where that is possible; other processes may do so too, as they write the same bytes.

        Args:
            row: in [0, N).
            image: (3, height, width) uint8: its pixels.
        """
        place, content = int(self._places[row]), image.tobytes()
        total = np.array(zlib.crc32(content), dtype=_SUM)
        with suppress(OSError), self.path.open("r+b") as file:
            if self._file is None or not os.path.samestat(os.fstat(file.fileno()), os.fstat(self._file.fileno())):
                self.open()  # another process has written the file anew
                return
            for start, part in (
                (self._start(place), content),
                (self._start(len(self._digests)) + place * _SUM.itemsize, total.tobytes()),
            ):
                file.seek(start)
                file.write(part)
            self._sums[place] = total

    def build(self, images: Iterable[Pixels], *, name: str, progress: Progress) -> str:
        """Write the file and open it; where another process is writing it, wait for that one's.

        What builders left that were killed is removed first. An error that `images` raises passes, and leaves nothing.
        No other user may read the file or enter its folder.

        Args:
            images: (3, height, width) uint8 of the rows `firsts()`, in that order; asked for only if needed.
            name: what the images are called while waiting.
            progress: shows that another process is waited for, as `Run.progress` does.

        Returns:
            Why there is no file, in a few words; nothing where there is one.
        """
        try:
            private_folder(self.path.parent)
            with _locked(self.path.with_suffix(".lock"), f"waiting for another process to decode {name}", progress):
                if self.open():
                    return ""
                _sweep(self.path)
                free = shutil.disk_usage(self.path.parent).free
                if free < self.size + SPARE:
                    needed = f"{self.size / 1e9:.1f} GB and {SPARE / 1e9:.1f} GB to spare are needed"
                    return f"{self.path.parent}: {needed}, {free / 1e9:.1f} GB are free"
                self._write(images)
        except (OSError, NotImplementedError, CheckpointError) as error:  # NotImplementedError: a disk without locks
            cause = error.__cause__ if isinstance(error, CheckpointError) else error
            return f"{self.path.parent}: {getattr(cause, 'strerror', None) or cause}"
        return "" if self.open() else f"{self.path.parent}: what was written there cannot be read"

    def _write(self, images: Iterable[Pixels]) -> None:
        sums = np.zeros(len(self._digests), dtype=_SUM)
        with replacing(self.path, private=True) as file:
            file.write(self._header)
            for place, pixels in enumerate(images):
                content = pixels.tobytes()
                sums[place] = zlib.crc32(content)
                file.write(content)
            file.write(sums.tobytes())

    def _start(self, place: int) -> int:
        """Return where in the file an image begins."""
        return _HEADER + place * self._bytes


def _read_at(file: io.BufferedReader, start: int, array: npt.NDArray[Any]) -> int:
    """Fill an array from a place in a file; return how many bytes there were. Several threads may do so at once."""
    buffer = array.reshape(-1).view(np.uint8).data
    if hasattr(os, "preadv"):  # moves no position that a forked process would share
        return os.preadv(file.fileno(), [buffer], start)
    with _SEEKING:
        file.seek(start)
        return file.readinto(buffer)


@contextmanager
def _locked(path: Path, description: str, progress: Progress) -> Iterator[None]:
    """Hold a lock, which is released with the process, however that ends; progress shows while it is waited for."""
    lock = FileLock(path)

    def tries() -> Iterator[None]:
        while not lock.is_locked:
            with suppress(Timeout):
                lock.acquire(timeout=_POLL)
            yield

    with suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        for _ in progress(tries(), description, None):
            pass
    try:
        yield
    finally:
        lock.release()


def _sweep(path: Path) -> None:
    """Remove what builders left that were killed, of this file, whose lock is held, and of others that nobody holds."""
    for left in path.parent.glob(".*.pixels.*.tmp"):
        key = left.name.split(".")[1]
        with suppress(Timeout, OSError):
            if key == path.stem:
                left.unlink(missing_ok=True)
            else:
                with FileLock(path.with_name(f"{key}.lock"), timeout=0):
                    left.unlink(missing_ok=True)
