"""Files that are written whole or not at all, whatever happens on the way."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import operator
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from uda_reid.errors import CheckpointError


class Occupied(FileExistsError):
    """There is a file where a new one was to be."""


STALE = 3600
"""Seconds after which a temporary file has no writer any more."""
_ROOT = 0
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""The modes of what shows people: no other user of the machine may read it, whatever the umask allows."""


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put `data` at `path` in one step: the old file or the new one, never half of either, even after a power cut.

    Several processes and threads may do so at once; the last one's file stays.

    Args:
        path: the file.
        data: its content.
        private: its owner alone may read it, whatever the umask allows.

    Raises:
        CheckpointError: the disk is full or the place cannot be written; the old file is as it was.
    """
    with replacing(path, private=private) as file:
        file.write(data)


def private_folder(folder: Path) -> None:
    """Make a folder that its owner alone may enter; one of this user's that exists already is closed to all others.

    Parents that are missing are made as any folder.

    Raises:
        OSError: it cannot be made or closed, or it belongs to another user.
    """
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    looks = folder.lstat(), folder.stat()  # of a link, and of what it leads to
    if hasattr(os, "geteuid") and any(look.st_uid != os.geteuid() for look in looks):
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if looks[1].st_mode & 0o077:
        folder.chmod(PRIVATE_FOLDER)


def only_ours(look: os.stat_result) -> bool:
    """Return whether no other user can have written something: it is this user's or root's, and closed to others."""
    if not hasattr(os, "geteuid"):  # Windows, whose folders of a user are closed
        return True
    return look.st_uid in (os.geteuid(), _ROOT) and not look.st_mode & 0o022


def private_opener(path: str, flags: int) -> int:
    """Open a file as `open(..., opener=private_opener)` does: if it is new, its owner alone may read it."""
    return os.open(path, flags, PRIVATE_FILE)


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file of lines, such as a log; what UTF-8 does not know is spelled out.

    A link is not followed, and a pipe not waited for: the folder may be one that others may write to.

    Raises:
        OSError: the file cannot be written, or is a link or a pipe.
    """
    ways = ("O_WRONLY", "O_APPEND", "O_CREAT", "O_NONBLOCK", "O_NOFOLLOW", "O_BINARY")  # some systems lack the last
    descriptor = os.open(path, functools.reduce(operator.or_, (getattr(os, way, 0) for way in ways)), 0o666)
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe and no file", str(path))
        file.write(text)


def check_place(path: Path) -> None:
    """Refuse a place that `replacing` could not write to, before the work whose result is to go there.

    Raises:
        CheckpointError: the place cannot be written.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    probe = _beside(there / path.name)
    try:
        probe.open("xb").close()
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, fresh: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes `path` in one step at the end, as with `replace_file`.

    Where an error leaves the block, the new file is removed and the old one is as it was.

    Args:
        path: the file.
        fresh: refuse to replace a file that is there at the end: another process may have written it meanwhile.
        private: its owner alone may read it, whatever the umask allows.

    Raises:
        CheckpointError: the disk is full or the place cannot be written.
        Occupied: `fresh`, and there is a file.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb", opener=private_opener if private else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            _put_new(temporary, path)
        else:
            temporary.replace(path)
    except Occupied:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sweep(path)
    # Not every system lets a folder be synchronised; the file is whole either way.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep_aside(path: Path, other: Path) -> None:
    """Give a file a second name that outlasts its replacement, in one step; `path` has its file all the while.

    Raises:
        CheckpointError: the disk is full or the place cannot be written; both names are as they were.
    """
    second = _beside(other)
    try:
        try:
            second.hardlink_to(path)
        except OSError:  # not every file system has links
            shutil.copyfile(path, second)
        second.replace(other)
    except OSError as error:
        raise _unwritable(other, error) from error
    finally:
        with contextlib.suppress(OSError):
            second.unlink(missing_ok=True)


def _put_new(temporary: Path, path: Path) -> None:
    """Give a file its name unless another has it, in one step where the file system has links."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if path.exists():
            raise Occupied(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)  # not every file system has links


def _beside(path: Path) -> Path:
    """Return a new name; not from `tempfile`, whose files nobody else may read whatever the umask allows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written ({error.strerror or error}); make room or write elsewhere")


def _sweep(path: Path) -> None:
    """Remove what writers of `path` left that were killed; younger files may still be written to."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - STALE:
                left.unlink()
