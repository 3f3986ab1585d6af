"""The commands that train, adapt and score."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uda_reid.cli.arguments import (
    Accumulate,
    AllowCode,
    Compiled,
    Data,
    Device,
    Json,
    Out,
    Pictures,
    Precision,
    PrecisionOption,
    ProfileOption,
    Protocol,
    RecipeName,
    Rollbacks,
    Seed,
    Settings,
    SkipDamaged,
    Source,
    TargetName,
    Threads,
    Weights,
    data_folder,
    output,
    path,
    resumable,
    screen,
    stop,
    told,
)
from uda_reid.terminal import RichReporter

if TYPE_CHECKING:
    from uda_reid.job import Job

app = typer.Typer()


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid adapt --recipe pul --src plaza --tgt campus` built-in scenes, nothing to download\n\n"
    "`uda-reid adapt --recipe pul --src plaza,station --tgt campus` a source model of two scenes\n\n"
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
    forgetting: Annotated[
        bool, typer.Option("--forgetting", help="Also score both models on the source's own test images.")
    ] = False,
    gap: Annotated[
        bool, typer.Option("--gap", help="Also measure how far apart the domains are before any adaptation.")
    ] = False,
    selection: Annotated[
        bool, typer.Option("--selection", help="Also measure what snapshots could be chosen by without target labels.")
    ] = False,
    embedding_map: Annotated[
        bool, typer.Option("--map", help="Also map where images of both domains lie before and after (t-SNE).")
    ] = False,
    protocol: Protocol = "auto",
    device: Device = "auto",
    precision: PrecisionOption = Precision.fp32,
    accumulate: Accumulate = 1,
    rollbacks: Rollbacks = 0,
    compiled: Compiled = False,
    threads: Threads = 0,
    weights: Weights = None,
    pictures: Pictures = True,
    allow_code: AllowCode = False,
    skip_damaged: SkipDamaged = False,
    json: Json = False,
) -> None:
    """Train a source model, adapt it to an unlabelled target, and score both on the target.

    An interrupted run goes on where it stopped; a finished one is found again.
    """
    from uda_reid.pipeline import ADAPTED, one
    from uda_reid.report import PAGE, show, to_json

    job = _job(
        recipe=recipe, source=src, target=tgt, data=data, out=out, seed=seed, profile=profile, settings=set_,
        bound=bound, forgetting=forgetting, gap=gap, selection=selection, embedding_map=embedding_map,
        protocol=protocol, device=device, precision=precision, accumulate=accumulate, rollbacks=rollbacks,
        compiled=compiled, threads=threads, weights=weights, pictures=pictures, allow_code=allow_code,
        skip_damaged=skip_damaged,
    )  # fmt: skip
    with resumable():
        record, folder, finished = one(job, reporter=RichReporter(screen), stop=stop)
    if json:
        output().json(to_json(record))
        return
    table = output()
    if finished:
        table.say(f"This run was finished before; these are its numbers (remove {folder} to run it again).")
    table.print(show(record, notes=finished))
    for name, place in (("run", folder), ("model", folder / ADAPTED), ("report", folder / PAGE)):
        table.say(f"{name}: {place}")


@app.command(epilog="Examples:\n\n`uda-reid pretrain --src plaza`\n\n`uda-reid pretrain --src plaza,station`")
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
    accumulate: Accumulate = 1,
    rollbacks: Rollbacks = 0,
    compiled: Compiled = False,
    threads: Threads = 0,
    weights: Weights = None,
    allow_code: AllowCode = False,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Train a source model with labels; `adapt` with the same options and the same profile finds it."""
    from uda_reid.pipeline import source_model

    job = _job(
        recipe=recipe, source=src, data=data, out=out, seed=seed, profile=profile, settings=set_,
        device=device, precision=precision, accumulate=accumulate, rollbacks=rollbacks, compiled=compiled,
        threads=threads, weights=weights, allow_code=allow_code, skip_damaged=skip_damaged,
    )  # fmt: skip
    with resumable():
        path, used, validation = source_model(job, reporter=RichReporter(screen), stop=stop)
    table = output()
    table.say(f"profile: {used}")
    for name, value in validation.items():
        table.say(f"held-out identities: {name} {100 * value:.1f} %")
    table.say(f"model: {path}")


@app.command(epilog="Examples:\n\n`uda-reid report runs/RUN --no-pictures`\n\n`uda-reid report runs/MATRIX`")
def report(
    run: Annotated[Path, typer.Argument(parser=path, help="The folder of a finished run, or of a matrix.")],
    pictures: Pictures = True,
    published: Annotated[
        bool, typer.Option("--published", help="Of a matrix: put numbers that others have published beside it.")
    ] = False,
) -> None:
    """Write a finished run's report.html anew, with or without photographs; of a matrix, its page and tables."""
    from uda_reid.matrix.folder import MATRIX, read_matrix, write_tables
    from uda_reid.matrix.tables import show as show_matrix
    from uda_reid.report import rebuild

    if (run / MATRIX).is_file():
        with told(interrupted="the files are as they were"):
            summary, files = write_tables(read_matrix(run), published=published, pictures=pictures)
        table = output()
        table.print(show_matrix(summary))
        for file in files:
            table.say(f"written: {file}")
        return
    with told(interrupted="the page is as it was"):
        output().say(f"report: {rebuild(run, pictures=pictures)}")


def _job(**values: Any) -> Job:
    from uda_reid.job import Job

    values = {key: value.value if isinstance(value, StrEnum) else value for key, value in values.items()}
    values["settings"] = tuple(values["settings"] or ())
    words = ["uda-reid", *sys.argv[1:]]
    words += data_folder(words)
    if not values.get("threads"):  # torch's choice is another one on another machine, and so are the last bits
        from uda_reid.training.devices import threads_in_use

        words += ["--threads", str(threads_in_use())]
    return Job(**values, command=shlex.join(words))
