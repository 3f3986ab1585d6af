"""The commands about data sets: draw a scene, check a folder, embed its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from uda_reid.cli.arguments import (
    Checkpoint,
    Data,
    Device,
    Json,
    Seed,
    SkipDamaged,
    Threads,
    output,
    path,
    screen,
    told,
)
from uda_reid.errors import RecipeError
from uda_reid.terminal import RichReporter

app = typer.Typer()
data_app = typer.Typer(help="Check a data set, or draw a built-in scene as one.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command(
    "check",
    epilog="Examples:\n\n"
    "`uda-reid data check ~/datasets/my-site` any folder of crops, labelled or not\n\n"
    "`uda-reid data check market --data ~/datasets`",
)
def check(
    name: Annotated[str, typer.Argument(metavar="DIR", help="A folder, a known data set, or a built-in scene.")],
    data: Data = Path("data"),
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Open every image; without, damage and copies stay unknown.")
    ] = True,
    json: Json = False,
) -> None:
    """Name a data set's layout, count it, and say what is wrong with it and what it can be used for.

    Exits with 2 where a model could not be adapted to it.
    """
    from uda_reid.doctor import examine, show, to_json
    from uda_reid.job import open_domain

    reporter = RichReporter(screen)
    with told(interrupted="nothing was changed"):
        diagnosis = examine(open_domain(name, data), progress=reporter.progress, decode=decode)
    if json:
        output().json(to_json(diagnosis))
    else:
        output().print(show(diagnosis))
    raise typer.Exit(diagnosis.exit_code)


@data_app.command("draw", epilog="Example: `uda-reid data draw plaza --out data/big-plaza --identities 500`")
def draw(
    scene: Annotated[str, typer.Argument(help="plaza, campus or station.")],
    out: Annotated[
        Path, typer.Option("--out", parser=path, help="Folder to draw into; it must not exist or be empty.")
    ],
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
    from pydantic import ValidationError

    from uda_reid.data.scenes import Drawing
    from uda_reid.data.scenes import draw as draw_scene

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
    with told(interrupted="nothing is left of the drawing; the same command draws it anew"):
        folder = draw_scene(scene, out, options, processes=jobs or os.cpu_count() or 1, progress=reporter.progress)
    output().say(f"drawn: {folder}")


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid embed ~/my-site --checkpoint runs/RUN`\n\n"
    "`uda-reid embed market --data ~/datasets --checkpoint runs/RUN --split query --split gallery --normalise`"
)
def embed(
    name: Annotated[str, typer.Argument(metavar="DIR", help="A folder, a known data set, or a built-in scene.")],
    checkpoint: Checkpoint,
    data: Data = Path("data"),
    out: Annotated[
        Path | None, typer.Option("--out", parser=path, help="Folder to write into (default: NAME-features).")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="train, query or gallery; may be repeated (default: all).")
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Scale every row to unit length.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.")] = False,
    skip_damaged: SkipDamaged = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write the embedding of every image: features.npy, and rows.csv with the image of each row."""
    from uda_reid.embedding import embed as embed_images

    with told(interrupted="nothing was written; the same command starts anew", kept="nothing was written"):
        written = embed_images(
            checkpoint, name, data=data, out=out, splits=split or (), normalise=normalise, overwrite=overwrite,
            skip_damaged=skip_damaged, device=device, threads=threads, reporter=RichReporter(screen),
        )  # fmt: skip
    lines = output()
    lines.say(f"{written.count:,} x {written.dim} features: {written.features}")
    lines.say(f"rows: {written.rows}")
    if written.left_out:
        counts = ", ".join(f"{many:,} in {split}" for split, many in written.left_out.items())
        lines.say(f"images left out, damaged: {counts}")
