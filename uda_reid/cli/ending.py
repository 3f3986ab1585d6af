"""How a command ends before its work is done: by SIGTERM, by Ctrl-C, and where it cannot follow them."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from uda_reid.cli.arguments import screen, stop
from uda_reid.launch import first, launched

AT_ONCE = 2.0
"""Seconds in which another signal is the same one; later ones count, since Python loses some."""
GRACE = 20.0
"""Seconds in which training has to notice a SIGTERM; schedulers kill after 30."""
LAST = 25.0
"""Seconds after which one of several processes that was sent SIGTERM or Ctrl-C ends, whatever it is at."""
CTRL_C = 128 + signal.SIGINT


@contextmanager
def followed() -> Iterator[list[int]]:
    """Inside, SIGTERM lets training end after its step, which it keeps, and ends other work as Ctrl-C does.

    Yields:
        The signals but Ctrl-C that asked for an end.
    """
    asked_to_end: list[int] = []
    stop.asked = False

    def end(number: int) -> None:
        asked_to_end.append(number)
        if stop.noticing and not stop.asked:
            stop.asked = True
            _remind(GRACE)
            return
        raise KeyboardInterrupt

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    acts: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: _once(end)}
    if launched() > 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        acts[signal.SIGINT] = _once(interrupt)  # comes from the terminal, and again from the launcher
    if hasattr(signal, "SIGALRM"):  # not on Windows, where nobody sends SIGTERM either
        acts[signal.SIGALRM] = lambda number, _: interrupt(number)
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    try:
        with _ended_anyway():
            yield asked_to_end
    finally:
        _remind(0)
        for number, act in before.items():
            signal.signal(number, act)


def _once(act: Callable[[int], None]) -> Callable[[int, FrameType | None], None]:
    """Return a signal's handler that passes over the same one coming twice: the first is being followed."""
    asked: list[float] = []

    def handle(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not asked or now - asked[-1] >= AT_ONCE:
            asked.append(now)
            act(number)

    return handle


@contextmanager
def _ended_anyway() -> Iterator[None]:
    """Inside, one of several processes does not outlive SIGTERM or Ctrl-C by more than `LAST` seconds.

    A second signal, some seconds later, leaves it two. Python follows a signal between two of its own instructions, and
    waiting for another process is one. That a signal has come is read by a thread here.
    """
    if launched() < 2:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # the thread reads the end
        watcher.join()
        reader.close()


def _watch(reader: socket.socket) -> None:
    """End this process if it has not ended in time, by the numbers of the signals that come to it."""
    began, end, number = 0.0, math.inf, 0
    while True:
        reader.settimeout(None if math.isinf(end) else max(end - time.monotonic(), 0.001))
        try:
            came = reader.recv(1)
        except TimeoutError:
            break
        if not came:  # the work is over
            return
        if came[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        now = time.monotonic()
        if not number:
            began, end, number = now, now + LAST, came[0]
        elif now - began > AT_ONCE:  # somebody has lost patience
            end = min(end, now + AT_ONCE)
    with suppress(Exception, SystemExit):  # nobody may be there any more to read it
        screen.show_cursor()
        if first():  # who else may speak is known by asking the others, who may not answer
            told = "interrupted, and ended before it had come to a point to end at; what is saved stays"
            screen.say(told)
    leave(128 + number)


def _remind(seconds: float) -> None:
    """Send this process SIGALRM after some seconds; 0: not any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def part() -> None:
    """Take leave of the other processes, as nccl wants it."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def leave(code: int) -> None:
    """End this process at once: others may be waiting for it, and its threads for them."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(code)
