"""Folders of runs and of source models: made, and held by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from uda_reid.errors import CheckpointError, DataError
from uda_reid.run import Reporter
from uda_reid.sharing import ALONE, Processes

SOURCE_MODEL, ADAPTED, STATE = "source.safetensors", "adapted.safetensors", "state"
"""The model in the folder of a source, and the one in the folder of a run."""


class Busy(CheckpointError):
    """Another process is working on the same run."""


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        DataError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from error


@contextmanager
def locked(
    folder: Path,
    *,
    work: str = "working on this very run",
    waiting: Reporter | None = None,
    processes: Processes = ALONE,
) -> Iterator[None]:
    """Hold the folder's lock, which is released with the process, however that ends.

    Args:
        folder: the folder.
        work: what another process that holds it is doing.
        processes: who works on it together; the main one holds the lock for all.
        waiting: says that another process is at work, and waits; without it that is an error.

    Raises:
        Busy: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    processes.main_only(lambda: _acquire(lock, folder, work, waiting))
    try:
        yield
    finally:
        lock.release()  # of the others, who do not hold it, that is nothing


def _acquire(lock: FileLock, folder: Path, work: str, waiting: Reporter | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        busy = f"{folder}: another process is {work}"
        if waiting is None:
            other = "--out or --seed" if work.endswith("run") else "--out"
            raise Busy(f"{busy}; wait for it, or choose another {other}") from error
        waiting.log(f"{busy}; waiting for it")
        lock.acquire()
