"""The command line: one command per job; errors in one line; exit codes 0 (done), 1 (interrupted), 2 (bad input)."""

from __future__ import annotations

import io
import sys
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


# typer exports this one of its usage errors; its base class is that of all of them.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that no encoding knows
    try:
        raise SystemExit(app(standalone_mode=False))
    except UsageError as error:
        # Without any argument the help has been shown and there is no message.
        message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
        if message:
            command = error.ctx.command_path if error.ctx else "uda-reid"
            _complain(f"{message}; see {command} --help")
        raise SystemExit(2) from None
    except UdaReidError as error:
        _complain(str(error))
        raise SystemExit(1 if isinstance(error, Interrupted) else 2) from None
    except OSError as error:
        _complain(f"{error.filename or 'the output'}: {error.strerror or type(error).__name__}")
        raise SystemExit(2) from None


def _complain(message: str) -> None:
    screen.print(f"error: {visible(message)}", markup=False, soft_wrap=True)
