"""Files that others have made: they are read where they are files, and not where they are pipes or devices.

A pipe that nobody writes to waits for ever, and a device such as /dev/zero has no end. A link may lead to either.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import TextIO

IMAGE_BYTES = 256 << 20
"""More than any image file of a person has."""
TEXT_BYTES = 1 << 30
"""More than any table, list or record has: one of a million lines has a tenth."""
MODEL_BYTES = 64 << 30
"""More than any model or state has; where the machine has less memory, what that holds is the limit."""


class IrregularError(OSError):
    """What has the name of a file is a pipe, a socket, a device or a folder, or has more bytes than it can have."""

    def __str__(self) -> str:  # without a number, and without the path, which messages begin with
        return str(self.strerror)


def open_file(path: str | Path, *, most: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading.

    Args:
        path: the file, or a link to it.
        most: the most bytes it may have; None for any number.

    Raises:
        IrregularError: it is no regular file, or has more bytes.
        OSError: it is missing or cannot be opened.

    >>> open_file("/dev/null")
    Traceback (most recent call last):
    uda_reid.reading.IrregularError: it is a pipe, a socket or a device and no file
    """
    _check(Path(path).stat(), path, most)  # opening a device may already do something to it
    # What has taken the file's place since then must not be waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(descriptor)
        _check(facts, path, most)
        if not facts.st_size and os.read(descriptor, io.DEFAULT_BUFFER_SIZE):
            # Some of these have no end, or wait: /proc/self/pagemap is a quarter of a terabyte.
            raise IrregularError(errno.EINVAL, "it is no file on a disk: the system states no size for it", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(
    path: str | Path, *, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None
) -> TextIO:
    """Open a regular file of at most `TEXT_BYTES` as text; errors as of `open_file`."""
    return io.TextIOWrapper(open_file(path, most=TEXT_BYTES), encoding=encoding, errors=errors, newline=newline)


def read_text(path: str | Path, *, encoding: str = "utf-8") -> str:
    """Return the text of a regular file of at most `TEXT_BYTES`; errors as of `open_file`."""
    with open_text(path, encoding=encoding) as file:
        return file.read()


def check_regular(path: str | Path, *, most: int | None = None) -> None:
    """Raise as `open_file` does, before another library opens the file by its name."""
    open_file(path, most=most).close()


def check_archive(path: str | Path) -> None:
    """Refuse an archive that unpacks to more bytes than it has; `torch.save` makes archives and compresses nothing.

    Raises:
        IrregularError: it unpacks to more: a file of a megabyte can fill the memory.
        OSError: as of `open_file`.
    """
    with open_file(path) as file, contextlib.suppress(zipfile.BadZipFile):  # which whoever reads it says
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > os.fstat(file.fileno()).st_size:
                what = f"it is compressed, and unpacks to {unpacked:,} bytes; save it anew with torch.save"
                raise IrregularError(errno.EFBIG, what, str(path))


def model_bytes() -> int:
    """Return how many bytes a file may have that is read whole, as models are."""
    try:
        return min(MODEL_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system tells
        return MODEL_BYTES


def _check(facts: os.stat_result, path: str | Path, most: int | None) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IrregularError(errno.EISDIR, "it is a folder and no file", str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise IrregularError(errno.EINVAL, "it is a pipe, a socket or a device and no file", str(path))
    if most is not None and facts.st_size > most:
        what = f"it has {facts.st_size:,} bytes, and what it should be has at most {most:,}"
        raise IrregularError(errno.EFBIG, what, str(path))
