"""The command line: one command per job; errors in one line.

Where a launcher has started several processes, the first one prints; an error is told by the first that has it.

Exit codes: 0 done, 1 a part of a matrix failed, 2 bad input, 130 interrupted by Ctrl-C, 143 asked to end by SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from uda_reid import __version__
from uda_reid.cli import data, features, matrix, names, runs
from uda_reid.cli.arguments import Interrupted, screen, stop
from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.launch import first, launched
from uda_reid.terminal import visible

app = typer.Typer(
    name="uda-reid",
    help="Carry a person re-identification model to cameras that nobody labelled, and say honestly how far it got.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs.app)
app.add_typer(matrix.app)
app.add_typer(features.app)
app.add_typer(data.app)
app.add_typer(names.app)


TOGETHER = ("adapt", "pretrain", "evaluate")
"""Commands whose work several processes share."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if launched() > 1 and context.invoked_subcommand not in TOGETHER:
        raise RecipeError(
            f"{context.invoked_subcommand} is work for one process, and the launcher started {launched()}; "
            f"start it without one (together go {', '.join(TOGETHER)})"
        )


AT_ONCE = 2.0
"""Seconds in which another SIGTERM is the same one; later ones count, since Python loses some."""
GRACE = 20.0
"""Seconds in which training has to notice a SIGTERM; schedulers kill after 30."""
LAST = 25.0
"""Seconds after which one of several processes that was sent SIGTERM or Ctrl-C ends, whatever it is at."""
CTRL_C = 128 + signal.SIGINT

# typer exports this one of its usage errors; its base class is that of all of them.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    asked_to_end: list[int] = []
    asked: list[float] = []
    stop.asked = False

    def end(number: int, _: FrameType | None) -> None:
        """Let training end after its step, which it keeps; end other work as by Ctrl-C: what is written is whole."""
        now = time.monotonic()
        if asked and now - asked[-1] < AT_ONCE:
            return  # the first one is being followed
        asked.append(now)
        asked_to_end.append(number)
        if stop.noticing and not stop.asked:
            stop.asked = True
            _remind(GRACE)
            return
        raise KeyboardInterrupt

    def give_up(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if hasattr(signal, "SIGALRM"):  # not on Windows, where nobody sends SIGTERM either
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, give_up)
    try:
        with _printing_once(), _ended_while_waiting():
            _run(asked_to_end)
    finally:
        _remind(0)
        for number, act in before.items():
            signal.signal(number, act)


@contextlib.contextmanager
def _printing_once() -> Iterator[None]:
    """Inside, the first of several processes prints, and no other."""
    if first():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _ended_while_waiting() -> Iterator[None]:
    """Inside, one of several processes does not outlive SIGTERM or Ctrl-C by more than `LAST` seconds.

    A second signal, some seconds later, leaves it two.

    Python follows a signal between two of its own instructions, and waiting for another process is one. That a signal
    has come is read by a thread here.
    """
    if launched() < 2:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        began, end, number = 0.0, math.inf, 0
        while True:
            now = time.monotonic()
            reader.settimeout(None if math.isinf(end) else max(end - now, 0.001))
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
        screen.show_cursor()
        if first():  # who else may speak is known by asking the others, who may not answer
            told = "interrupted, and ended before it had come to a point to end at; what is saved stays"
            screen.print(told, soft_wrap=True)
        _leave(128 + number)

    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # the thread reads the end
        watcher.join()
        reader.close()


def _remind(seconds: float) -> None:
    """Send this process SIGALRM after some seconds; 0: not any more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _run(asked_to_end: list[int]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that no encoding knows
    code = _command(asked_to_end)
    if launched() > 1:
        if code:
            _leave(code)
        _part()
    raise SystemExit(code)


def _command(asked_to_end: list[int]) -> int:
    """Run the command and return the exit code; errors of ours are told."""
    try:
        code = int(app(standalone_mode=False) or 0)
    except UsageError as error:
        # Without any argument the help has been shown and there is no message.
        message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
        if message:
            command = error.ctx.command_path if error.ctx else "uda-reid"
            _complain(f"{message}; see {command} --help")
        return 2
    except UdaReidError as error:
        _complain(str(error), error)
        # Who was asked to end and loses the others, which were asked too, has ended as asked.
        if isinstance(error, Interrupted) and error.asked:  # another process was, and told this one
            asked_to_end.append(signal.SIGTERM)
        return _stopped(asked_to_end) if asked_to_end or isinstance(error, Interrupted) else 2
    except OSError as error:
        _complain(f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}")
        return 2
    except Exception:
        if launched() < 2:
            raise
        traceback.print_exc()
        return 1
    if code == CTRL_C:  # what typer makes of an interruption outside of work that can say more
        _complain("interrupted", Interrupted())
        return _stopped(asked_to_end)
    return code


def _part() -> None:
    """Take leave of the other processes, as nccl wants it."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _leave(code: int) -> None:
    """End this process at once: others may be waiting for it, and its threads for them."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _stopped(asked_to_end: list[int]) -> int:
    """Return the exit code of the signal that stopped the work, as shells count: 128 and its number."""
    return 128 + asked_to_end[0] if asked_to_end else CTRL_C


def _complain(message: str, error: UdaReidError | None = None) -> None:
    if launched() > 1:
        from uda_reid.training.processes import speaks

        if not speaks(error):
            return
    kind = "" if isinstance(error, Interrupted) else "error: "
    screen.print(f"{kind}{visible(message)}", markup=False, soft_wrap=True)
