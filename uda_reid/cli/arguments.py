"""What the commands share: their options, the screen, and how an interruption or a full disk is told."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, cast

import typer

from uda_reid.errors import UdaReidError
from uda_reid.launch import Stop
from uda_reid.terminal import Screen

screen = Screen(stderr=True)
stop = Stop()
"""Set by SIGTERM while a model is trained."""


class _Trimmed(io.TextIOBase):
    """The output stream without the spaces that tables end their lines with."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What the output stream can hold: tables are drawn by it."""
        return sys.stdout.encoding

    def write(self, text: str) -> int:
        """Write text, which may not end within such spaces."""
        return sys.stdout.write(re.sub(" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        """Write what waits."""
        sys.stdout.flush()


def output() -> Screen:
    """Return what results are printed on; into a file or a pipe lines are wide, so that a name stays on its line."""
    console = Screen()
    if not console.is_terminal:
        console.file = cast(IO[str], _Trimmed())
        if "COLUMNS" not in os.environ:
            console.width = 160
    return console


def path(text: str) -> Path:
    """Return a path; `~` is the home folder even where no shell has put it in (`--data=~/x`)."""
    if not text:
        raise typer.BadParameter("is empty; give a path, `.` for the current folder")
    return Path(text).expanduser()


def data_folder(words: Sequence[str]) -> list[str]:
    """Return the words that name the data folder, where a command line left that to the environment.

    A line that stands in a record has to make its run elsewhere too.
    """
    given = any(word == "--data" or word.startswith("--data=") for word in words)
    folder = os.environ.get("UDA_REID_DATA")
    return ["--data", folder] if folder and not given else []


class Profile(StrEnum):
    """Schedules of a recipe."""

    paper = "paper"
    small = "small"
    scenes = "scenes"


class Precision(StrEnum):
    """Precision of the forward passes."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


Source = Annotated[
    str,
    typer.Option(
        "--src", help="Source: a built-in scene, a known data set, or a folder; or several, as plaza,station."
    ),
]
TargetName = Annotated[
    str, typer.Option("--tgt", help="Target: one of the same choices; the strategy never sees its identities.")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="A shipped recipe (see `list recipes`) or a YAML file.")
]
Data = Annotated[
    Path, typer.Option("--data", envvar="UDA_REID_DATA", parser=path, help="Folder that holds the data sets.")
]
Out = Annotated[Path, typer.Option("--out", parser=path, help="Folder for runs and source models.")]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", parser=path, help="A model file, or the folder of a run.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Root of every random stream.")]
ProfileOption = Annotated[Profile | None, typer.Option("--profile", help="Schedule (default: chosen by the domains).")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change one option: adapt.lr=1e-4, pretrain.epochs=5.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="Of forward passes: fp32, bf16, or (on a GPU) fp16.")
]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Batches per update: gradients are averaged.")]
Rollbacks = Annotated[
    int,
    typer.Option(
        "--rollbacks",
        min=0,
        help="How often a loss that is not finite may start an epoch again with half the learning rate.",
    ),
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the encoder's blocks (torch.compile).")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: torch's choice.")]
Weights = Annotated[
    Path | None, typer.Option("--weights", parser=path, help="Folder with weights files, looked into first.")
]
Protocol = Annotated[
    str, typer.Option("--protocol", help="market, cross-camera, any-camera, single-gallery-shot, auto.")
]
Pictures = Annotated[
    bool, typer.Option("--pictures/--no-pictures", help="Show images of the target in the report's ranked lists.")
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Import a strategy (module:Class) that no installed package offers by name."),
]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave out images that cannot be read, and say how many.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class Interrupted(UdaReidError):
    """The person at the keyboard stopped the run, or, where it was `asked`, SIGTERM did."""

    def __init__(self, message: str = "interrupted", *, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


@contextmanager
def told(*, interrupted: str, kept: str = "") -> Iterator[None]:
    """Turn Ctrl-C, and what the file system refuses, into one line.

    Args:
        interrupted: what Ctrl-C leads to, and how to go on.
        kept: what is still there after a full disk, say.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):  # training was asked to stop, and has
            goes_on = f"{error}, which is kept; the same command goes on from there"
            raise Interrupted(goes_on, asked=True) from error
        raise Interrupted(f"interrupted; {interrupted}") from error
    except OSError as error:
        place = error.filename or "the output"
        reason = error.strerror or type(error).__name__
        raise UdaReidError(f"{place}: {reason}{f'; {kept}' if kept else ''}") from error


def resumable() -> AbstractContextManager[None]:
    """Return the context of commands that go on where they stopped."""
    goes_on = "the same command goes on"
    return told(
        interrupted=f"{goes_on} from the last finished epoch or round", kept=f"what was finished is kept, {goes_on}"
    )
