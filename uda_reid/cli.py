"""The command line: one command per job; errors in one line; exit codes 0 (done), 1 (interrupted), 2 (bad input)."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from uda_reid import __version__
from uda_reid.errors import UdaReidError
from uda_reid.terminal import RichReporter

if TYPE_CHECKING:
    from uda_reid.job import Job

app = typer.Typer(
    name="uda-reid",
    help="Carry a person re-identification model to cameras that nobody labelled, and say honestly how far it got.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Draw the built-in scenes.", no_args_is_help=True)
app.add_typer(data_app, name="data")
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


class Kind(StrEnum):
    """What can be listed."""

    datasets = "datasets"
    recipes = "recipes"
    strategies = "strategies"
    encoders = "encoders"


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
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of tables.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid adapt --recipe pul --src plaza --tgt campus` built-in scenes, nothing to download\n\n"
    "`uda-reid adapt --recipe pul --src market --tgt duke --data ~/datasets --device cuda`\n\n"
    "`uda-reid adapt --recipe pul --src cuhk03 --tgt my-site --data ~/datasets --set adapt.clusters=300`"
)
def adapt(
    src: Source,
    tgt: TargetName,
    recipe: RecipeName = "pul",
    data: Data = Path("data"),
    out: Out = Path("runs"),
    seed: Seed = 0,
    profile: ProfileOption = None,
    set_: Settings = None,
    bound: Annotated[
        bool, typer.Option("--bound", help="Also train the supervised bound, with target labels.")
    ] = False,
    protocol: Protocol = "auto",
    device: Device = "auto",
    precision: PrecisionOption = Precision.fp32,
    threads: Threads = 0,
    weights: Weights = None,
    json: Json = False,
) -> None:
    """Train a source model, adapt it to an unlabelled target, and score both on the target.

    An interrupted run goes on where it stopped; a finished one is found again.
    """
    from uda_reid.pipeline import one
    from uda_reid.report import show, to_json

    job = _job(
        recipe=recipe, source=src, target=tgt, data=data, out=out, seed=seed, profile=profile, settings=set_,
        bound=bound, protocol=protocol, device=device, precision=precision, threads=threads, weights=weights,
    )  # fmt: skip
    with _resumable():
        record, folder, finished = one(job, reporter=RichReporter(screen))
    if json:
        typer.echo(to_json(record), nl=False)
        return
    output = Console(highlight=False)
    if finished:
        output.print(
            f"This run was finished before; these are its numbers (remove {folder} to run it again).",
            soft_wrap=True,
        )
    output.print(show(record))
    output.print(f"run: {folder}\nmodel: {folder / 'adapted.safetensors'}", soft_wrap=True)


@app.command(epilog="Example: `uda-reid pretrain --src plaza`")
def pretrain(
    src: Source,
    recipe: RecipeName = "pul",
    data: Data = Path("data"),
    out: Out = Path("runs"),
    seed: Seed = 0,
    profile: ProfileOption = None,
    set_: Settings = None,
    device: Device = "auto",
    precision: PrecisionOption = Precision.fp32,
    threads: Threads = 0,
    weights: Weights = None,
) -> None:
    """Train a source model with labels; `adapt` with the same options and the same profile finds it."""
    from uda_reid.pipeline import source_model

    job = _job(
        recipe=recipe, source=src, data=data, out=out, seed=seed, profile=profile, settings=set_,
        device=device, precision=precision, threads=threads, weights=weights,
    )  # fmt: skip
    with _resumable():
        path, used, validation = source_model(job, reporter=RichReporter(screen))
    typer.echo(f"profile: {used}")
    for name, value in validation.items():
        typer.echo(f"held-out identities: {name} {100 * value:.1f} %")
    typer.echo(f"model: {path}")


@app.command(epilog="Example: `uda-reid evaluate --checkpoint runs/RUN/adapted --tgt campus`")
def evaluate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A model file, or the folder of a run.")],
    tgt: TargetName,
    data: Data = Path("data"),
    protocol: Protocol = "auto",
    device: Device = "auto",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Score a saved model on a domain's query and gallery."""
    from uda_reid.pipeline import score_checkpoint
    from uda_reid.report import scores_json, show_row

    row = score_checkpoint(
        checkpoint,
        tgt,
        data=data,
        protocol=protocol,
        device=device,
        threads=threads,
        reporter=RichReporter(screen),
    )
    if json:
        typer.echo(scores_json(row.scores), nl=False)
    else:
        title = f"{checkpoint} on {row.scores.domain}, protocol {row.scores.protocol}"
        Console(highlight=False).print(show_row(title, row))


@app.command("list", epilog="Example: `uda-reid list recipes`")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list (default: everything).")] = None,
) -> None:
    """List the data sets, recipes, strategies and encoders that can be named."""
    output = Console(highlight=False)
    for what in [kind] if kind else list(Kind):
        table = Table(title=what.value, title_justify="left", title_style="bold", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for name, meaning in _known(what).items():
            table.add_row(name, meaning)
        output.print(table)


def _known(kind: Kind) -> dict[str, str]:
    if kind is Kind.recipes:
        from uda_reid.recipe import recipes

        return recipes()
    if kind is Kind.strategies:
        from uda_reid.strategies import known

        return known()
    if kind is Kind.encoders:
        from uda_reid.models.encoder import BACKBONES

        return {name: str(meaning) for name, meaning in BACKBONES.items()}
    from uda_reid.data.layouts import DATASETS
    from uda_reid.data.scenes import SCENES

    scenes = dict.fromkeys(SCENES, "built-in scene, drawn on first use")
    return {**scenes, **{name: f"{known.title}; {known.origin}" for name, known in DATASETS.items()}}


@data_app.command("draw", epilog="Example: `uda-reid data draw plaza --out data/big-plaza --identities 500`")
def draw(
    scene: Annotated[str, typer.Argument(help="plaza, campus or station.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to draw into; it must not exist or be empty.")],
    identities: Annotated[int, typer.Option("--identities", min=2, help="People in the training set.")] = 100,
    test_identities: Annotated[int, typer.Option("--test-identities", min=2, help="People to search for.")] = 60,
    cameras: Annotated[int, typer.Option("--cameras", min=2, help="Cameras of the network.")] = 5,
    images: Annotated[int, typer.Option("--images", min=1, help="Most images of a person in one camera.")] = 3,
    height: Annotated[int, typer.Option("--height", min=32, help="Rows of an image.")] = 128,
    width: Annotated[int, typer.Option("--width", min=16, help="Columns of an image.")] = 64,
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Processes; 0: one per core.")] = 0,
    seed: Seed = 0,
) -> None:
    """Draw a built-in scene as a data set in Market-1501's layout, with annotations."""
    import os

    from pydantic import ValidationError

    from uda_reid.data.scenes import Drawing
    from uda_reid.data.scenes import draw as draw_scene
    from uda_reid.errors import RecipeError

    try:
        options = Drawing(
            train_identities=identities, test_identities=test_identities, cameras=cameras, most_images=images,
            height=height, width=width, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(map(str, problem["loc"])).replace("_", "-")
        raise RecipeError(f"--{option} {problem['input']}: {problem['msg'].lower()}") from error
    reporter = RichReporter(screen)
    with _resumable():
        folder = draw_scene(scene, out, options, processes=jobs or os.cpu_count() or 1, progress=reporter.progress)
    typer.echo(f"drawn: {folder}")


def _job(**values: Any) -> Job:
    from uda_reid.job import Job

    values = {key: value.value if isinstance(value, StrEnum) else value for key, value in values.items()}
    values["settings"] = tuple(values["settings"] or ())
    return Job(**values, command=shlex.join(["uda-reid", *sys.argv[1:]]))


class Interrupted(UdaReidError):
    """The person at the keyboard stopped the run."""


@contextmanager
def _resumable() -> Iterator[None]:
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


def main() -> None:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    try:
        app()
    except UdaReidError as error:
        screen.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(1 if isinstance(error, Interrupted) else 2) from None
