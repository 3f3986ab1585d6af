"""The commands about features: score a model or anybody's features, and cluster features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from uda_reid.cli.arguments import (
    Data,
    Device,
    Json,
    Precision,
    PrecisionOption,
    Protocol,
    Seed,
    SkipDamaged,
    Threads,
    output,
    path,
    screen,
    told,
)
from uda_reid.errors import RecipeError
from uda_reid.launch import launched
from uda_reid.terminal import RichReporter

app = typer.Typer()

MODEL, FEATURES, NEIGHBOURS = "A model", "Features", "Re-ranking and Jaccard distances"
"""Panels of the help."""


class Metric(StrEnum):
    """What features are compared by."""

    cosine = "cosine"
    euclidean = "euclidean"


class Reading(StrEnum):
    """Readings of k-reciprocal encoding."""

    zhong = "zhong"
    zhong_squared = "zhong-squared"
    spcl = "spcl"


class Method(StrEnum):
    """Ways to cluster."""

    dbscan = "dbscan"
    hdbscan = "hdbscan"
    kmeans = "kmeans"
    infomap = "infomap"


class Backend(StrEnum):
    """What searches for neighbours."""

    auto = "auto"
    tiles = "tiles"
    faiss = "faiss"
    faiss_ivf = "faiss-ivf"
    faiss_hnsw = "faiss-hnsw"


Model = Annotated[
    Path | None,
    typer.Option("--checkpoint", parser=path, help="A model file, or the folder of a run.", rich_help_panel=MODEL),
]
Scored = Annotated[
    str | None,
    typer.Option("--tgt", help="What to score it on: a scene, a known data set, a folder.", rich_help_panel=MODEL),
]
Query = Annotated[
    list[Path] | None,
    typer.Option(
        "--features", parser=path, rich_help_panel=FEATURES,
        help="Of the queries, or of queries and gallery: .npy, .pt, .pth, or Person_reID_baseline's .mat.",
    ),
]  # fmt: skip
Gallery = Annotated[
    Path | None, typer.Argument(metavar="GALLERY", parser=path, show_default=False, help="The gallery's features.")
]
One = Annotated[
    Path, typer.Option("--features", parser=path, help="A .npy, .pt, .pth or .mat file.", rich_help_panel=FEATURES)
]
Ids = Annotated[
    Path | None,
    typer.Option("--ids", parser=path, help="CSV table: identity[,camera][,split][,row].", rich_help_panel=FEATURES),
]
PerQuery = Annotated[
    Path | None,
    typer.Option("--per-query", parser=path, help="Also write a CSV, a line per query.", rich_help_panel=FEATURES),
]
Labels = Annotated[
    Path, typer.Option("--out", parser=path, help="CSV to write: row,cluster; -1: outlier.", rich_help_panel=FEATURES)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.", rich_help_panel=FEATURES)
]
Memory = Annotated[
    int, typer.Option("--memory", min=1, help="MB of distances computed at once.", rich_help_panel=FEATURES)
]
MetricOption = Annotated[
    Metric,
    typer.Option(
        "--metric", help="Of features: euclidean counts their lengths, as torchreid does.", rich_help_panel=FEATURES
    ),
]
Rerank = Annotated[
    bool, typer.Option("--rerank", help="Rank a second time, re-ranked by neighbours.", rich_help_panel=NEIGHBOURS)
]
K1 = Annotated[int, typer.Option("--k1", min=1, help="Size of k-reciprocal sets.", rich_help_panel=NEIGHBOURS)]
K2 = Annotated[int, typer.Option("--k2", min=1, help="Neighbours averaged over.", rich_help_panel=NEIGHBOURS)]
Share = Annotated[
    float, typer.Option("--lambda", min=0, max=1, help="Share of the plain distance.", rich_help_panel=NEIGHBOURS)
]
ReadingOption = Annotated[
    Reading, typer.Option("--reading", help="Of the publication: docs/features.md.", rich_help_panel=NEIGHBOURS)
]
WithJunk = Annotated[
    bool,
    typer.Option(
        "--with-junk",
        help="Let junk (-1) be a neighbour in re-ranking, as Person_reID_baseline does.",
        rich_help_panel=NEIGHBOURS,
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Search: auto, tiles, faiss, faiss-ivf, faiss-hnsw.",
        rich_help_panel=NEIGHBOURS,
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method", metavar="NAME", help="dbscan, hdbscan, infomap on Jaccard distances; kmeans on unit features."
    ),
]
ScoreDevice = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default="auto for a model, cpu for features"),
]
Clusters = Annotated[int | None, typer.Option("--clusters", min=1, help="How many: kmeans.")]
Eps = Annotated[
    str,
    typer.Option("--eps", help="Radius, from 0 to below 1, or its rule (auto, knee, pairs): dbscan; links: infomap."),
]
Ladder = Annotated[
    bool | None,
    typer.Option(
        "--ladder/--no-ladder",
        show_default="with a rule",
        help="Change a radius that finds no clusters or one: dbscan.",
    ),
]
MinSamples = Annotated[
    int, typer.Option("--min-samples", min=1, help="Rows that make a core: dbscan; smallest cluster: hdbscan, infomap.")
]

FEATURES_ONLY = (
    "gallery", "ids", "metric", "rerank", "k1", "k2", "share", "reading", "with_junk", "memory", "per_query",
    "overwrite",
)  # fmt: skip
MODEL_ONLY = ("tgt", "data", "seed", "precision", "skip_damaged")
RERANK_ONLY = ("k1", "k2", "share", "reading", "with_junk")
NOT_FOR = {
    Method.dbscan: ("clusters",),
    Method.hdbscan: ("clusters", "eps", "ladder"),
    Method.infomap: ("clusters", "ladder"),
    Method.kmeans: ("eps", "ladder", "min_samples", "k1", "k2", "reading", "backend", "memory"),
}
"""Options that mean nothing to a method."""


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid evaluate --checkpoint runs/RUN --tgt campus` a model, on the images of a data set\n\n"
    "`uda-reid evaluate --features q.npy g.npy --ids ids.csv` anybody's features\n\n"
    "`uda-reid evaluate --features features.npy --ids rows.csv --rerank` what `embed` wrote\n\n"
    "`uda-reid evaluate --features pytorch_result.mat --json` what Person_reID_baseline_pytorch wrote"
)
def evaluate(
    context: typer.Context,
    gallery: Gallery = None,
    checkpoint: Model = None,
    tgt: Scored = None,
    features: Query = None,
    ids: Ids = None,
    per_query: PerQuery = None,
    overwrite: Overwrite = False,
    memory: Memory = 64,
    metric: MetricOption = Metric.cosine,
    rerank: Rerank = False,
    k1: K1 = 20,
    k2: K2 = 6,
    share: Share = 0.3,
    reading: ReadingOption = Reading.zhong,
    with_junk: WithJunk = False,
    data: Data = Path("data"),
    protocol: Protocol = "auto",
    seed: Seed = 0,
    device: ScoreDevice = None,
    precision: PrecisionOption = Precision.fp32,
    threads: Threads = 0,
    skip_damaged: SkipDamaged = False,
    json: Json = False,
) -> None:
    """Score a saved model on a data set, or features that any tool has made."""
    if bool(checkpoint) == bool(features):
        raise RecipeError("what is to be scored? give --checkpoint, a model, or --features, files; one of the two")
    if checkpoint:
        _refuse(context, FEATURES_ONLY, "with --checkpoint")
        _score_model(checkpoint, tgt, data, protocol, seed, device or "auto", precision, threads, skip_damaged, json)
        return
    _refuse(context, MODEL_ONLY, "with --features")
    if launched() > 1:
        raise RecipeError(
            f"evaluate --features is work for one process, and the launcher started {launched()}; start it without one"
        )
    _refuse(context, () if rerank else RERANK_ONLY, "without --rerank")
    from uda_reid.foreign import Reranking, score_files, scored_json, show_scored

    files = [*(features or ()), *([gallery] if gallery else [])]
    with told(interrupted="nothing was scored", kept="nothing was written"):
        search, scored = score_files(
            files, ids=ids, protocol=protocol, metric=metric.value,
            reranking=Reranking(k1, k2, share, reading.value, with_junk) if rerank else None,
            per_query=per_query, overwrite=overwrite, memory=memory << 20, device=device or "cpu",
            threads=threads, reporter=RichReporter(screen),
        )  # fmt: skip
    if json:
        output().json(scored_json(scored, features=files, ids=ids, per_query=per_query))
        return
    sizes = f"{len(search.query):,} queries, {scored.gallery:,} gallery images, {scored.dim:,} dimensions"
    output().print(show_scored(f"{' and '.join(map(str, files))}: {sizes}", scored))
    if per_query:
        output().say(f"per query: {per_query}")


def _score_model(
    checkpoint: Path, tgt: str | None, data: Path, protocol: str, seed: int, device: str, precision: Precision,
    threads: int, skip_damaged: bool, json: bool,
) -> None:  # fmt: skip
    from uda_reid.job import TEST_LEFT_OUT
    from uda_reid.pipeline import score_checkpoint
    from uda_reid.report import scores_json, show_row

    if tgt is None:
        raise RecipeError(f"what is {checkpoint} to be scored on? name a data set with --tgt")
    with told(interrupted="nothing was scored"):
        row = score_checkpoint(
            checkpoint, tgt, data=data, protocol=protocol, seed=seed, device=device, precision=precision.value,
            threads=threads, skip_damaged=skip_damaged, reporter=RichReporter(screen),
        )  # fmt: skip
    if json:
        missing = row.facts.get(TEST_LEFT_OUT) if skip_damaged else None
        text = scores_json(row.scores, {TEST_LEFT_OUT: missing}) if missing else scores_json(row.scores)
        output().json(text)
    else:
        output().print(show_row(f"{checkpoint} on {tgt}", row))


@app.command(
    epilog="Examples:\n\n"
    "`uda-reid cluster --features train.npy` DBSCAN on Jaccard distances, the radius by rule\n\n"
    "`uda-reid cluster --features train.npy --eps 0.6 --ids train.csv` a given radius; how right the clusters are\n\n"
    "`uda-reid cluster --features train.npy --method kmeans --clusters 700 --out kmeans.csv`"
)
def cluster(
    context: typer.Context,
    features: One,
    ids: Ids = None,
    out: Labels = Path("labels.csv"),
    overwrite: Overwrite = False,
    memory: Memory = 64,
    method: MethodOption = Method.dbscan,
    clusters: Clusters = None,
    eps: Eps = "auto",
    ladder: Ladder = None,
    min_samples: MinSamples = 4,
    k1: K1 = 30,
    k2: K2 = 6,
    reading: ReadingOption = Reading.spcl,
    backend: BackendOption = Backend.auto,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Cluster features, write the cluster of every row, and say what speaks for the clusters."""
    _refuse(context, NOT_FOR[method], f"with --method {method.value}")
    from uda_reid.foreign import Grouping, cluster_file, clustered_json, show_clustered

    radius = _radius(eps)
    climbs = isinstance(radius, str) if ladder is None else ladder
    grouping = Grouping(
        method.value, clusters or 0, radius, climbs, min_samples, k1, k2, reading.value, backend.value
    )  # fmt: skip
    with told(interrupted="nothing was written", kept="nothing was written"):
        found, audited = cluster_file(
            features, grouping, out=out, ids=ids, overwrite=overwrite, seed=seed, memory=memory << 20,
            device=device, threads=threads, reporter=RichReporter(screen),
        )  # fmt: skip
    if json:
        output().json(clustered_json(found, audited, features=features, ids=ids, labels=out))
        return
    output().print(show_clustered(f"{features}: {len(found.labels):,} rows", found, audited))
    output().say(f"labels: {out}")


def _given(context: typer.Context, name: str) -> bool:
    """Return whether an option was typed, and not only set by its default or by the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that would have no effect."""
    for parameter in context.command.params:
        if parameter.name in names and _given(context, parameter.name):
            typed = (
                parameter.opts[0] if parameter.opts[0].startswith("-") else f"the file {context.params[parameter.name]}"
            )
            raise RecipeError(f"{typed} has no meaning {why}; leave it out")


def _radius(text: str) -> float | Literal["knee", "pairs"]:
    rules: dict[str, Literal["knee", "pairs"]] = {"auto": "knee", "knee": "knee", "pairs": "pairs"}
    if text in rules:
        return rules[text]
    try:
        return float(text)
    except ValueError:
        raise RecipeError(
            f"--eps {text} is no number and no rule; use auto, knee, pairs, or from 0 to below 1"
        ) from None
