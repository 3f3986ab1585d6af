"""Processes that make the runs of a matrix, several at a time, on this machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from uda_reid.errors import UdaReidError
from uda_reid.job import Job
from uda_reid.matrix.plan import Cell, choose, seconds_left
from uda_reid.pipeline import Busy, one
from uda_reid.report import Record

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What the libraries read on import, once: how many threads they may start."""
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
        kind = "" if isinstance(error, UdaReidError) else f"{type(error).__name__}: "
        return Answer(None, failure=" ".join(f"{kind}{error}".split()))
    return Answer(record, found)


class Worker:
    """A process that makes one run after another; libraries and their threads begin anew in it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.began = time.monotonic()

    def begin(self, job: Job) -> None:
        """Hand a run over."""
        self.began = time.monotonic()
        self.pipe.send(job)

    def answer(self) -> Answer:
        """Return what came of the run; a process that was killed has failed."""
        try:
            found: Answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Answer(None, failure=f"its process ended with code {self.process.exitcode}; start again to go on")
        return found


def make(job_of: Mapping[Cell, Job], *, jobs: int, threads: int) -> Iterator[Began | Ended]:
    """Make all runs, `jobs` at a time, and yield each as it begins and as it ends.

    A run that another command is making is asked for again, after the others, until it is there. Whoever stops
    listening ends the processes; what they had finished is kept.
    """
    os.environ.update(dict.fromkeys(POOLS, str(threads)))  # for the processes to come; this one does not count
    took: dict[str, list[float]] = {}
    trained: set[str] = set()
    waiting, running, asked = list(job_of), dict[Cell, int](), dict[Cell, float]()
    workers = {number: Worker() for number in range(1, min(jobs, len(job_of)) + 1)}
    try:
        while waiting or running:
            now = time.monotonic()
            ready = [cell for cell in waiting if now >= asked.get(cell, 0.0)]
            idle = [number for number in workers if number not in running.values()]
            for number in idle[: len(ready)]:
                cell = choose(ready, running, trained)
                ready.remove(cell)
                waiting.remove(cell)
                if not workers[number].process.is_alive():  # somebody has killed it
                    workers[number] = Worker()
                running[cell] = number
                workers[number].begin(job_of[cell])
                yield Began(cell, number)
            # With a worker to spare, all that waits is somebody else's run.
            spare = waiting and len(running) < len(workers)
            pause = max(0.0, min(asked[cell] for cell in waiting) - time.monotonic()) if spare else None
            answering = wait([workers[number].pipe for number in running.values()], pause)
            for cell, number in [pair for pair in running.items() if workers[pair[1]].pipe in answering]:
                answer, seconds = workers[number].answer(), time.monotonic() - workers[number].began
                del running[cell]
                if answer.busy:
                    waiting.append(cell)
                    asked[cell] = time.monotonic() + PATIENCE
                    continue
                if answer.record:
                    trained |= cell.models
                if answer.record and not answer.found:
                    took.setdefault(cell.recipe, []).append(seconds)
                left = seconds_left([*waiting, *running], took, jobs) if took else 0.0
                yield Ended(cell, answer, seconds, left)
    finally:
        for worker in workers.values():
            worker.process.terminate()
