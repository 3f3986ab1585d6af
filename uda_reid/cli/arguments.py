"""What the commands share: their options, the screen, and how an interruption or a full disk is told."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from uda_reid.errors import UdaReidError

screen = Console(stderr=True, highlight=False)


class Profile(StrEnum):
    """Schedules of a recipe."""

    paper = "paper"
    small = "small"
    scenes = "scenes"


class Precision(StrEnum):
    """Precision of the forward passes."""

    fp32 = "fp32"
    bf16 = "bf16"


Source = Annotated[str, typer.Option("--src", help="Source: a built-in scene, a known data set, or a folder.")]
TargetName = Annotated[str, typer.Option("--tgt", help="Target: the same choices; its training labels are never read.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="A shipped recipe (see `list recipes`) or a YAML file.")
]
Data = Annotated[Path, typer.Option("--data", envvar="UDA_REID_DATA", help="Folder that holds the data sets.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for runs and source models.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Root of every random stream.")]
ProfileOption = Annotated[Profile | None, typer.Option("--profile", help="Schedule (default: chosen by the domains).")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change one option: adapt.lr=1e-4, pretrain.epochs=5.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="fp32, or bf16 for the forward passes.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: torch's choice.")]
Weights = Annotated[Path | None, typer.Option("--weights", help="Folder with weights files, looked into first.")]
Protocol = Annotated[
    str, typer.Option("--protocol", help="market, cross-camera, any-camera, single-gallery-shot, auto.")
]
Pictures = Annotated[
    bool, typer.Option("--pictures/--no-pictures", help="Show images of the target in the report's ranked lists.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of tables.")]


class Interrupted(UdaReidError):
    """The person at the keyboard stopped the run."""


@contextmanager
def resumable() -> Iterator[None]:
    """Turn Ctrl-C into a line that says how to go on, and a full disk into one that says what happened."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command goes on from the last finished epoch or round") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = error.filename or "a file"
        raise UdaReidError(f"{place}: {error.strerror}; what was finished is kept, the same command goes on") from error
