"""Processes that make the runs of a matrix, several at a time, on this machine."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol

from uda_reid.errors import UdaReidError
from uda_reid.job import Job
from uda_reid.matrix.left import choose, seconds_left
from uda_reid.matrix.plan import Cell
from uda_reid.pipeline import Busy, one
from uda_reid.report import Record
from uda_reid.terminal import visible
from uda_reid.writing import append_text

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What the libraries read on import, once: how many threads they may start."""
FAILURES = "failures.log"
"""Beside the runs: what went wrong, for those who mend it."""
PATIENCE = 5.0
"""Seconds until a run that another command is making is asked for again."""


class Answer(NamedTuple):
    """What came of a run: its record, and whether it was found finished; or what went wrong.

    `busy`: another command is making it right now.
    """

    record: Record | None
    found: bool = False
    failure: str = ""
    busy: bool = False


class Began(NamedTuple):
    """A run has been handed to a worker, numbered from 1."""

    cell: Cell
    worker: int


class Postponed(NamedTuple):
    """Another command is making this run; it is asked for again later."""

    cell: Cell


class Ended(NamedTuple):
    """A run has ended after some seconds; the others will take about `left` more, 0 where nothing is known."""

    cell: Cell
    answer: Answer
    seconds: float
    left: float


def serve(pipe: Connection) -> None:
    """Make the runs that come through a pipe, until nobody is at its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one ends the others
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(answer_to(job))
        except BrokenPipeError:
            return


def answer_to(job: Job) -> Answer:
    """Make one run, and return what came of it, whatever that is."""
    try:
        record, _, found = one(job)
    except Busy as error:
        return Answer(None, failure=str(error), busy=True)
    except Exception as error:
        lines = (f"{time.strftime('%Y-%m-%d %H:%M:%S')} {job.command}", *traceback.format_exc().split("\n"))
        with suppress(OSError):
            append_text(job.out / FAILURES, "".join(f"{visible(line)}\n" for line in lines))
        kind = "" if isinstance(error, UdaReidError) else f"{type(error).__name__}: "
        return Answer(None, failure=" ".join(f"{kind}{error}".split()))
    return Answer(record, found)


def answer_in(folder: str, job: Job) -> Answer:
    """Make one run from a folder, which relative paths of the job begin in."""
    os.chdir(folder)
    return answer_to(job)


class Worker:
    """A process that makes one run after another; libraries and their threads begin anew in it."""

    def __init__(self, threads: int = 1) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        before = dict(os.environ)
        os.environ.update(dict.fromkeys(POOLS, str(threads)))  # read by the libraries of the new process
        # `python -c`, which starts it, would look for modules in the working folder before it gets our own path.
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def answer(self) -> Answer:
        """Return what came of the run; a process that was killed has failed."""
        try:
            found: Answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Answer(None, failure=f"its process ended with code {self.process.exitcode}; start again to go on")
        return found


class Pool(Protocol):
    """Somewhere to make several runs at a time: slots, numbered from 1, each of which makes one run after another."""

    size: int

    def begin(self, slot: int, job: Job) -> None:
        """Hand a run to a free slot."""

    def wait(self, slots: Sequence[int], seconds: float | None) -> list[int]:
        """Return which of these slots, all at work, have ended; after so many seconds, none may have."""

    def answer(self, slot: int) -> Answer:
        """Return what came of the run that a slot has ended."""

    def close(self) -> None:
        """End everything; what runs have finished is kept."""


class Processes:
    """Processes of this machine.

    Args:
        size: how many.
        threads: CPU threads that the libraries of each may start.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads = size, threads
        self.workers = {slot: Worker(threads) for slot in range(1, size + 1)}

    def begin(self, slot: int, job: Job) -> None:
        """Hand a run to a process; to a new one, where somebody has killed it."""
        try:
            self.workers[slot].pipe.send(job)
        except OSError:
            self.workers[slot] = Worker(self.threads)
            self.workers[slot].pipe.send(job)

    def wait(self, slots: Sequence[int], seconds: float | None) -> list[int]:
        """Return which processes have answered, or ended."""
        ready = wait([self.workers[slot].pipe for slot in slots], seconds)
        return [slot for slot in slots if self.workers[slot].pipe in ready]

    def answer(self, slot: int) -> Answer:
        """Return what came of the run; the place of a process that has ended is taken by a new one."""
        found = self.workers[slot].answer()
        if not self.workers[slot].process.is_alive():
            self.workers[slot] = Worker(self.threads)
        return found

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers.values():
            worker.process.terminate()


def make(job_of: Mapping[Cell, Job], pool: Pool) -> Iterator[Began | Postponed | Ended]:
    """Make all runs, as many at a time as the pool has slots, and yield each as it begins and as it ends.

    A run that another command is making is asked for again, after the others, until it is there. Whoever stops
    listening closes the pool; what has finished is kept.
    """
    took: dict[str, list[float]] = {}
    trained: set[str] = set()
    waiting, running, began = list(job_of), dict[Cell, int](), dict[Cell, float]()
    asked: dict[Cell, float] = {}
    try:
        while waiting or running:
            now = time.monotonic()
            ready = [cell for cell in waiting if now >= asked.get(cell, 0.0)]
            idle = [slot for slot in range(1, pool.size + 1) if slot not in running.values()]
            for slot in idle[: len(ready)]:
                cell = choose(ready, running, trained)
                ready.remove(cell)
                waiting.remove(cell)
                running[cell], began[cell] = slot, time.monotonic()
                pool.begin(slot, job_of[cell])
                yield Began(cell, slot)
            # With a slot to spare, all that waits is somebody else's run.
            spare = waiting and len(running) < pool.size
            pause = max(0.0, min(asked[cell] for cell in waiting) - time.monotonic()) if spare else None
            ended = pool.wait(list(running.values()), pause)
            for cell, slot in [pair for pair in running.items() if pair[1] in ended]:
                answer, seconds = pool.answer(slot), time.monotonic() - began[cell]
                del running[cell]
                if answer.busy:
                    waiting.append(cell)
                    asked[cell] = time.monotonic() + PATIENCE
                    yield Postponed(cell)
                    continue
                if answer.record:
                    trained |= cell.models
                if answer.record and not answer.found:
                    took.setdefault(cell.recipe, []).append(seconds)
                left = seconds_left([*waiting, *running], took, pool.size) if took else 0.0
                yield Ended(cell, answer, seconds, left)
    finally:
        pool.close()
