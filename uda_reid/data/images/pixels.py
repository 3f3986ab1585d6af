"""Decoded images in a file: decoded once, then mapped into memory by as many processes as want them.

A file is known by what is in it: the contents of the image files, whatever they are called and in whatever order they
are asked for. So the training images of a source, the same ones shuffled as a target, and every process of a matrix
share one. Files lie in `UDA_REID_CACHE` or the user's cache folder and may be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import platformdirs
import torch
from filelock import FileLock, Timeout
from PIL import features
from torch import Tensor

from uda_reid.errors import CheckpointError
from uda_reid.reading import IMAGE_BYTES, open_file
from uda_reid.writing import replacing

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""How `Run.progress` is called: items, description, total; gives the items back."""

FORMAT = 1
"""Raised whenever other pixels, or the same in another order, would be written for the same images."""
SPARE = 2 << 30
"""Bytes of the disk that stay free: a file that would take of them is not written."""
_MAGIC = b"uda_reid pixels\n"
_HEADER = 4096  # bytes before the first image: a page, so that images of whole pages begin where pages do
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

    The file holds a header and (M, 3, height, width) uint8 RGB, one image for each of the M different contents, in
    the order of their digests. It is whole or not there: a file of another size or with another header is none.

    Args:
        digests: SHA-256 digests of N image files, one per row, repeats allowed.
        height: pixels.
        width: pixels.
    """

    def __init__(self, digests: Sequence[bytes], height: int, width: int) -> None:
        places = {digest: place for place, digest in enumerate(sorted(set(digests)))}
        self._places = np.array([places[digest] for digest in digests], dtype=np.int64)
        self._shape = (len(places), 3, height, width)
        self._pixels: Pixels = np.empty((0, 3, height, width), dtype=np.uint8)
        # Another decoder may give other pixels: bit-identity is promised for equal versions of packages alone.
        decoder = f"pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        key = hashlib.sha256(f"format {FORMAT}, {decoder}, {height} x {width}\n".encode() + b"".join(places))
        self.path = folder() / f"{key.hexdigest()}.pixels"
        self._header = (_MAGIC + key.digest()).ljust(_HEADER, b"\0")

    @property
    def size(self) -> int:
        """Bytes that the file takes."""
        return _HEADER + int(np.prod(self._shape, dtype=np.int64))

    def firsts(self) -> list[int]:
        """Return the first row of each image, in the order in which the file holds them."""
        return [int(row) for row in np.unique(self._places, return_index=True)[1]]

    def rows_like(self, rows: Sequence[int]) -> list[int]:
        """Return all rows whose images have the contents of any of `rows`, ascending."""
        return [int(row) for row in np.flatnonzero(np.isin(self._places, self._places[list(rows)]))]

    def open(self) -> bool:
        """Map the file into memory; return whether it is there and whole."""
        try:
            with open_file(self.path) as file:
                whole = os.fstat(file.fileno()).st_size == self.size and file.read(_HEADER) == self._header
                if whole:
                    self._pixels = np.asarray(np.memmap(file, np.uint8, "r", _HEADER, self._shape))
        except OSError:
            return False
        return whole

    def read(self, rows: Tensor) -> Tensor:
        """Return a copy of images; `open` or `build` must have succeeded.

        Args:
            rows: (B,) int64 in [0, N), on the CPU.

        Returns:
            (B, 3, height, width) uint8.
        """
        return torch.from_numpy(self._pixels.take(self._places[rows.numpy()], axis=0))

    def build(self, images: Iterable[Pixels], *, name: str, progress: Progress) -> str:
        """Write the file and open it; where another process is writing it, wait for that one's.

        What builders left that were killed is removed first. An error that `images` raises passes, and leaves nothing.

        Args:
            images: (3, height, width) uint8 of the rows `firsts()`, in that order; asked for only if needed.
            name: what the images are called while waiting.
            progress: shows that another process is waited for, as `Run.progress` does.

        Returns:
            Why there is no file, in a few words; nothing where there is one.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock"), f"waiting for another process to decode {name}", progress):
                if self.open():
                    return ""
                _sweep(self.path)
                free = shutil.disk_usage(self.path.parent).free
                if free < self.size + SPARE:
                    needed = f"{self.size / 1e9:.1f} GB and {SPARE / 1e9:.1f} GB to spare are needed"
                    return f"{self.path.parent}: {needed}, {free / 1e9:.1f} GB are free"
                with replacing(self.path) as file:
                    file.write(self._header)
                    for pixels in images:
                        file.write(pixels.tobytes())
        except (OSError, NotImplementedError, CheckpointError) as error:  # NotImplementedError: a disk without locks
            cause = error.__cause__ if isinstance(error, CheckpointError) else error
            return f"{self.path.parent}: {getattr(cause, 'strerror', None) or cause}"
        return "" if self.open() else f"{self.path.parent}: what was written there cannot be read"


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
