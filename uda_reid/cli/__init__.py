"""The command line: one command per job; errors in one line.

Exit codes: 0 done, 1 a part of a matrix failed, 2 bad input, 130 interrupted by Ctrl-C, 143 asked to end by SIGTERM.
"""

from __future__ import annotations

import io
import signal
import sys
import time
from types import FrameType
from typing import Annotated, Any

import typer

from uda_reid import __version__
from uda_reid.cli import data, features, matrix, names, runs
from uda_reid.cli.arguments import Interrupted, screen
from uda_reid.errors import UdaReidError
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


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


AT_ONCE = 2.0
"""Seconds in which another SIGTERM is the same one; later ones count, since Python loses some."""
CTRL_C = 128 + signal.SIGINT

# typer exports this one of its usage errors; its base class is that of all of them.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    asked_to_end: list[int] = []
    asked: list[float] = []

    def end(number: int, _: FrameType | None) -> None:
        """End as by Ctrl-C: what is written is written whole, and states of finished epochs are there."""
        now = time.monotonic()
        if asked and now - asked[-1] < AT_ONCE:
            return  # the first one is being followed
        asked.append(now)
        asked_to_end.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        _run(asked_to_end)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(asked_to_end: list[int]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that no encoding knows
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        # Without any argument the help has been shown and there is no message.
        message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
        if message:
            command = error.ctx.command_path if error.ctx else "uda-reid"
            _complain(f"{message}; see {command} --help")
        raise SystemExit(2) from None
    except UdaReidError as error:
        _complain(str(error))
        raise SystemExit(_stopped(asked_to_end) if isinstance(error, Interrupted) else 2) from None
    except OSError as error:
        _complain(f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}")
        raise SystemExit(2) from None
    if code == CTRL_C:  # what typer makes of an interruption outside of work that can say more
        _complain("interrupted")
        code = _stopped(asked_to_end)
    raise SystemExit(code)


def _stopped(asked_to_end: list[int]) -> int:
    """Return the exit code of the signal that stopped the work, as shells count: 128 and its number."""
    return 128 + asked_to_end[0] if asked_to_end else CTRL_C


def _complain(message: str) -> None:
    screen.print(f"error: {visible(message)}", markup=False, soft_wrap=True)
