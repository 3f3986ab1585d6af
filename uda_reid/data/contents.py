"""What files hold, by digests of their bytes: names, sizes and times stay the same where pictures change."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uda_reid.errors import DataError, UnreadableError
from uda_reid.reading import IMAGE_BYTES, IrregularError, open_file

_SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a file shows in its times, on disks that count them in steps of up to 2 s."""
_THREADS = 4
_BLOCK = 64  # files per task of a thread: one by one, handing them out takes longer than reading them

_Look = tuple[int, int, int, int]
_KNOWN: dict[Path, tuple[_Look, bytes]] = {}
"""The digests of files that this process has read, and what the files looked like then: a matrix asks for the same
files once for every run."""


def digests(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 digest of every file's bytes; a file that looks as it did before is not read again.

    Args:
        paths: N files, repeats allowed.

    Returns:
        N digests of 32 bytes, in the order of the paths.

    Raises:
        UnreadableError: files have gone, cannot be read, or are no regular files; the first is named, the others are
            counted, `rows` lists all.
    """
    blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
    if len(blocks) < 2:
        found = [_digest(path) for path in paths]
    else:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:  # a disk far away answers several at once
            read = pool.map(lambda block: [_digest(path) for path in block], blocks)
            found = [digest for block in read for digest in block]
    failed = {row: digest for row, digest in enumerate(found) if isinstance(digest, DataError)}
    if failed:
        more = f"; {len(failed):,} of {len(paths):,} images are unreadable" if len(failed) > 1 else ""
        raise UnreadableError(f"{next(iter(failed.values()))}{more}", failed)
    return [digest for digest in found if isinstance(digest, bytes)]


def _digest(path: Path) -> bytes | DataError:
    """Return the digest of a file, or why it cannot be read."""
    try:
        status = path.stat()
        look = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        before, digest = _KNOWN.get(path, (None, b""))
        if before == look:
            return digest
        with open_file(path, most=IMAGE_BYTES) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except IrregularError as error:
        return DataError(f"{path}: {error.strerror}; remove it, or put the image in its place")
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = getattr(error, "strerror", None) or error
        return DataError(f"{path}: the image cannot be read ({reason}); was the data set moved?")
    # A file written a moment ago may change again within one step of its times.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED:
        _KNOWN[path] = look, digest
    return digest
