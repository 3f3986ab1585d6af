"""Draws with several processes.

The workers are plain interpreters that read chunks of the plan from their standard input. Unlike a pool of the standard
library they never import the caller's main module, so a script without a `__main__` guard, a notebook and a program
with threads can all use them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from uda_reid.data.scenes.depict import draw_items
from uda_reid.data.scenes.plan import Drawing, Item

Rows = list[dict[str, object]]
_CHUNK = 32
# The package's folder goes last: what else lies in it must not hide the interpreter's own libraries.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from uda_reid.data.scenes.workers import serve; serve()"


def serve() -> None:
    """Draw what standard input asks for, one JSON line per chunk, and answer with one line of annotations each."""
    for line in sys.stdin:
        name, options, folder, items = json.loads(line)
        rows = draw_items(name, Drawing(**options), Path(folder), [Item(*item) for item in items])
        sys.stdout.write(json.dumps(rows) + "\n")
        sys.stdout.flush()


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    command = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).resolve().parents[3])]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, env=environment)


def _ask(worker: subprocess.Popen[str], name: str, options: Drawing, folder: Path, items: list[Item]) -> Rows | None:
    """Return a worker's annotations, or None where it failed."""
    if worker.stdin is None or worker.stdout is None:
        return None
    try:
        worker.stdin.write(json.dumps([name, asdict(options), str(folder), items]) + "\n")
        worker.stdin.flush()
        rows: Rows = json.loads(worker.stdout.readline())
    except (OSError, ValueError):
        return None
    return rows


class _Crew:
    """Workers that take turns; one that failed once is never asked again."""

    def __init__(self, workers: list[subprocess.Popen[str]]) -> None:
        self._left = list(workers)
        self._idle: SimpleQueue[subprocess.Popen[str] | None] = SimpleQueue()
        for worker in workers:
            self._idle.put(worker)
        if not workers:
            self._idle.put(None)

    def draw(self, name: str, options: Drawing, folder: Path, items: list[Item]) -> Rows | None:
        """Return the annotations by the first worker that is free, or None where it failed or none is left."""
        worker, rows = self._idle.get(), None
        try:
            rows = None if worker is None else _ask(worker, name, options, folder, items)
        finally:
            if worker is not None and rows is None:
                self._left.remove(worker)
            if rows is not None:
                self._idle.put(worker)
            elif not self._left:
                self._idle.put(None)  # wakes whoever waits for a worker, one after the other
        return rows


def draw_all(
    name: str, options: Drawing, folder: Path, items: list[Item], *, processes: int
) -> Generator[Rows, None, None]:
    """Draw pictures into the splits of a folder and yield their annotations in order.

    Args:
        name: the world's name.
        options: what is drawn.
        folder: where the splits are.
        items: the pictures.
        processes: how many processes draw. What a worker fails to draw, this process draws itself: where no process
            can be started the result is the same, only later, and an error of the disk shows itself here.
    """
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    processes = min(processes, len(chunks))
    if processes < 2:
        yield from (draw_items(name, options, folder, chunk) for chunk in chunks)
        return
    with ExitStack() as stack:
        workers = []
        for _ in range(processes):
            with suppress(OSError):
                workers.append(_start())
                stack.callback(_stop, workers[-1])
        crew = _Crew(workers)
        threads = ThreadPoolExecutor(processes)
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        for chunk, rows in zip(chunks, threads.map(partial(crew.draw, name, options, folder), chunks), strict=True):
            yield draw_items(name, options, folder, chunk) if rows is None else rows


def _stop(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()
