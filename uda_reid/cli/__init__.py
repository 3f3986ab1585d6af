"""The command line: one command per job; errors in one line.

Where a launcher has started several processes, the first one prints; an error is told by the first that has it.

Exit codes: 0 done, 1 a part of a matrix failed, 2 bad input, 130 interrupted by Ctrl-C, 143 asked to end by SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from uda_reid import __version__
from uda_reid.cli import data, ending, features, matrix, names, runs
from uda_reid.cli.arguments import Interrupted, output, screen
from uda_reid.errors import RecipeError, UdaReidError, UnreadableError
from uda_reid.launch import first, launched

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
        output().say(__version__)
        raise typer.Exit
    if launched() > 1 and context.invoked_subcommand not in TOGETHER:
        raise RecipeError(
            f"{context.invoked_subcommand} is work for one process, and the launcher started {launched()}; "
            f"start it without one (together go {', '.join(TOGETHER)})"
        )


# typer exports this one of its usage errors; its base class is that of all of them.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    with _printing_once(), ending.followed() as asked_to_end:
        _run(asked_to_end)


@contextlib.contextmanager
def _printing_once() -> Iterator[None]:
    """Inside, the first of several processes prints, and no other."""
    if first():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _run(asked_to_end: list[int]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that no encoding knows
    code = _command(asked_to_end)
    if launched() > 1:
        if code:
            ending.leave(code)
        ending.part()
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
        remedy = "; --skip-damaged leaves such images out" if isinstance(error, UnreadableError) else ""
        _complain(f"{error}{remedy}", error)
        if isinstance(error, Interrupted) and error.asked:  # perhaps another process was, and told this one
            asked_to_end.append(signal.SIGTERM)
        # Who was asked to end and loses the others, which were asked too, has ended as asked.
        return _stopped(asked_to_end) if asked_to_end or isinstance(error, Interrupted) else 2
    except OSError as error:
        _complain(f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}")
        return 2
    except Exception:
        for line in traceback.format_exc().rstrip("\n").split("\n"):
            screen.say(line)
        return 1
    if code == ending.CTRL_C:  # what typer makes of an interruption outside of work that can say more
        _complain("interrupted", Interrupted())
        return _stopped(asked_to_end)
    return code


def _stopped(asked_to_end: list[int]) -> int:
    """Return the exit code of the signal that stopped the work, as shells count: 128 and its number."""
    return 128 + asked_to_end[0] if asked_to_end else ending.CTRL_C


def _complain(message: str, error: UdaReidError | None = None) -> None:
    if launched() > 1:
        from uda_reid.training.processes import speaks

        if not speaks(error):
            return
    kind = "" if isinstance(error, Interrupted) else "error: "
    with contextlib.suppress(SystemExit):  # rich's, where nobody reads: the exit code says it all the same
        screen.say(f"{kind}{message}")
