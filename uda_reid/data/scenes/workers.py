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
from pathlib import Path
from queue import SimpleQueue

from uda_reid.data.scenes.depict import draw_items
from uda_reid.data.scenes.plan import Drawing, Item

Rows = list[dict[str, object]]
_CHUNK = 32
_PROGRAM = "from uda_reid.data.scenes.workers import serve; serve()"


def serve() -> None:
    """Draw what standard input asks for, one JSON line per chunk, and answer with one line of annotations each."""
    for line in sys.stdin:
        name, options, folder, items = json.loads(line)
        rows = draw_items(name, Drawing(**options), Path(folder), [Item(*item) for item in items])
        sys.stdout.write(json.dumps(rows) + "\n")
        sys.stdout.flush()


def _start() -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    command = [sys.executable, "-P", "-c", _PROGRAM]
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
        idle: SimpleQueue[subprocess.Popen[str] | None] = SimpleQueue()
        for _ in range(processes):
            worker = None
            with suppress(OSError):
                worker = _start()
                stack.callback(_stop, worker)
            idle.put(worker)

        def one(chunk: list[Item]) -> Rows | None:
            worker = idle.get()
            try:
                return None if worker is None else _ask(worker, name, options, folder, chunk)
            finally:
                idle.put(worker)

        threads = ThreadPoolExecutor(processes)
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        for chunk, rows in zip(chunks, threads.map(one, chunks), strict=True):
            yield draw_items(name, options, folder, chunk) if rows is None else rows


def _stop(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()
