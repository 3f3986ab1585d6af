"""Clusters of somebody's features, what speaks for them without labels, and how right they are with labels."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from uda_reid.cells import Table
from uda_reid.data.layouts.labels import count
from uda_reid.data.layouts.tokens import UNSEEN
from uda_reid.errors import DataError, RecipeError
from uda_reid.foreign.files import zero_rows
from uda_reid.foreign.ids import IdTable
from uda_reid.ops.clustering import (
    EpsRule,
    climb_graph,
    dbscan_graph,
    hdbscan_graph,
    infomap_graph,
    kmeans,
    strips_eps,
)
from uda_reid.ops.clustering.graph import check_eps
from uda_reid.ops.distance import MEMORY, check_features, normalise
from uda_reid.ops.jaccard import Encoding, Reading, encode_features, jaccard, jaccard_strips
from uda_reid.ops.neighbours import Backend, Progress, quiet
from uda_reid.run import Run
from uda_reid.types import DISTRACTOR, JUNK, Ids
from uda_reid.writing import replacing

Method = Literal["dbscan", "hdbscan", "kmeans", "infomap"]
RULES = {
    "pairs": "the mean of the nearest 0.16 % of pairs (Song et al. 2020)",
    "knee": "the knee of the curve of distances at which rows become cores",
}
FARTHEST = 0.95
"""Farther pairs count as apart, unless a larger radius is asked for. Of the thousands of images that share some
neighbour with one, all but some dozens are that far, and no radius that finds people is."""
DENSITY_ROWS = 15_000
"""Soft neighbourhood density compares all pairs: of so many rows in 7 seconds on two cores, of more it is left out."""


@dataclass(frozen=True)
class Grouping:
    """How to cluster.

    Args:
        method: `dbscan`, `hdbscan` and `infomap` on k-reciprocal Jaccard distances, or `kmeans` on unit features.
        clusters: of `kmeans`.
        eps: the radius of `dbscan` and the longest link of `infomap`, in [0, 1), or the rule that finds it.
        ladder: whether `dbscan` changes a radius that finds less than two clusters, a giant one or too many.
        min_samples: of `dbscan`, rows that make a core; of `hdbscan` and `infomap`, the smallest cluster.
        k1: size of the k-reciprocal sets.
        k2: neighbours that an encoding is averaged over.
        reading: of the Jaccard distance, by `ops.jaccard`.
        backend: of the search for neighbours.
    """

    method: Method = "dbscan"
    clusters: int = 0
    eps: float | EpsRule = "knee"
    ladder: bool = True
    min_samples: int = 4
    k1: int = 30
    k2: int = 6
    reading: Reading = "spcl"
    backend: Backend = "auto"


@dataclass(frozen=True)
class Clustered:
    """What was found.

    Args:
        labels: (N,) int64, clusters 0..C-1, -1 for outliers.
        grouping: how.
        eps: the radius that was used in the end; NaN where there is none.
        steps: why the radius was changed, one line each.
        reach: farther pairs counted as apart; NaN for k-means.
        backend: what searched for neighbours; empty for k-means.
        recall: share of the true neighbours that were found; 1 for an exact search.
        silhouette: mean, standard error and number of rows, by cosine distance; NaN where there are no two clusters.
        density: soft neighbourhood density of the features in nats; NaN where it was not measured.
        seconds: how long each stage took.
        notes: what was unusual, one line each.
    """

    labels: Ids
    grouping: Grouping
    eps: float = math.nan
    steps: tuple[str, ...] = ()
    reach: float = math.nan
    backend: str = ""
    recall: float = 1.0
    silhouette: tuple[float, float, int] = (math.nan, math.nan, 0)
    density: float = math.nan
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the neighbours are all of the true ones, and not those that an approximate search came across."""
        return self.grouping.backend not in ("faiss-ivf", "faiss-hnsw")

    @property
    def sizes(self) -> Ids:
        """Rows of every cluster, (C,)."""
        return np.bincount(self.labels[self.labels >= 0])


@dataclass(frozen=True)
class Audited:
    """How right clusters are.

    Args:
        values: as `ops.quality.audit` returns them.
        chance: camera purity of the same clusters with the cameras shuffled; NaN without cameras.
        rows: how many rows have an identity, and were compared.
        notes: what was left out, one line each.
    """

    values: Mapping[str, float]
    chance: float
    rows: int
    notes: tuple[str, ...]


def cluster_features(
    features: Tensor,
    grouping: Grouping | None = None,
    *,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Clustered:
    """Cluster features by their directions.

    Args:
        features: (N, D) float32, finite, of any length.
        grouping: how (default: DBSCAN on Jaccard distances, with a radius by rule).
        seed: root of the random streams of k-means, Infomap and the sample of the silhouette.
        memory: bytes of products computed at once.
        progress: shows the search for neighbours.

    Returns:
        The clusters, and what speaks for them.

    Raises:
        DataError: the features are no finite matrix, or there are fewer rows than clusters.
        RecipeError: an option is unknown or out of range, or a package is not installed.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.1], [0.1, 3.0]])
    >>> cluster_features(features, Grouping(method="kmeans", clusters=2)).sizes.tolist()
    [2, 2]
    """
    grouping = grouping or Grouping()
    _check(features, grouping)
    run = Run(seed=seed)
    found = _kmeans(features, grouping, run) if grouping.method == "kmeans" else None
    found = found or _on_graph(features, grouping, run, memory, progress)
    from uda_reid.ops.quality import silhouette, soft_neighbourhood_density  # scikit-learn takes half a second

    start = time.perf_counter()
    estimate = silhouette(features, found.labels, generator=run.stream("cluster/silhouette"))
    small = 2 <= len(features) <= DENSITY_ROWS
    return replace(
        found,
        silhouette=(estimate.value, estimate.error, estimate.rows),
        notes=(*zero_rows(torch.linalg.vector_norm(features, ord=torch.inf, dim=1)), *found.notes),
        density=soft_neighbourhood_density(features) if small else math.nan,
        seconds={**found.seconds, "quality": time.perf_counter() - start},
    )


def audit_clusters(labels: Ids, table: IdTable, *, seed: int = 0) -> Audited:
    """Compare clusters with identities.

    Junk and distractors are no one person, and rows without an identity nobody's: they are left out.

    Args:
        labels: (N,) int64, -1 for outliers.
        table: of the N rows.
        seed: of the shuffled cameras.

    Raises:
        DataError: no row has an identity.
    """
    from uda_reid.ops.quality import audit, camera_purity  # scikit-learn takes half a second

    known = identified(table)
    notes = list(table.notes)
    if not known.all():
        rest = count(int((~known).sum()), "row")
        notes.append(f"the audit leaves out {rest} of junk (-1), of distractors (0) or without an identity")
    cams: Ids | None = table.cams[known]
    if (table.cams[known] == UNSEEN).any() or len(np.unique(table.cams[known])) == 1:
        notes.append("no camera purity: rows are without a camera, or all from one")
        cams = None
    values = audit(labels[known], table.pids[known], cams=cams)
    chance = math.nan
    if cams is not None:
        shuffled = cams[torch.randperm(len(cams), generator=Run(seed=seed).stream("cluster/cameras")).numpy()]
        chance = camera_purity(labels[known], shuffled)
    return Audited(values, chance, int(known.sum()), tuple(notes))


def identified(table: IdTable) -> npt.NDArray[np.bool_]:
    """Return which rows show a known person: no junk, no distractor and no blank; (N,).

    Raises:
        DataError: none does.
    """
    # Where people who are no distractors have the number 0, it is a person's.
    from_zero = len(table.splits) and ((table.pids == DISTRACTOR) & (table.splits != "gallery")).any()
    known: npt.NDArray[np.bool_] = table.pids > (JUNK if from_zero else DISTRACTOR)
    if not known.any():
        raise DataError(f"{table.file}: no row has an identity to compare with; leave out --ids")
    return known


def write_labels(path: Path, labels: Ids, *, fresh: bool = False) -> None:
    """Write the cluster of every row as CSV with the columns row and cluster, whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
        Occupied: `fresh`, and there is a file.
    """
    with replacing(path, fresh=fresh) as file:
        table = Table(file)
        table.write("row", "cluster")
        for row, label in enumerate(labels.tolist()):
            table.write(row, label)


def _check(features: Tensor, grouping: Grouping) -> None:
    check_features(features, "features")
    if grouping.method not in get_args(Method):
        raise RecipeError(f"method {grouping.method!r} is unknown; use {', '.join(get_args(Method))}")
    if grouping.method == "kmeans" and grouping.clusters < 1:
        raise RecipeError("k-means needs the number of clusters; give it with --clusters")
    if grouping.method in ("dbscan", "infomap") and not isinstance(grouping.eps, str):
        check_eps(grouping.eps)  # said before the search, and not after it
    if grouping.min_samples < 1 or (grouping.method in ("hdbscan", "infomap") and grouping.min_samples < 2):
        least = 1 if grouping.method == "dbscan" else 2
        raise RecipeError(f"min_samples {grouping.min_samples} cannot be for {grouping.method}; use {least} or more")
    if grouping.method != "kmeans" and grouping.min_samples > len(features):
        raise RecipeError(f"min_samples {grouping.min_samples} is more than the {len(features):,} rows; use fewer")


def _kmeans(features: Tensor, grouping: Grouping, run: Run) -> Clustered:
    start = time.perf_counter()
    found = kmeans(normalise(features), grouping.clusters, generator=run.stream("cluster/kmeans"))
    seconds = {"clustering": time.perf_counter() - start}
    return Clustered(found.labels.cpu().numpy(), grouping, seconds=seconds, notes=found.alike)


def _on_graph(features: Tensor, grouping: Grouping, run: Run, memory: int, progress: Progress) -> Clustered:
    start = time.perf_counter()
    encoding = encode_features(
        features, k1=grouping.k1, k2=grouping.k2, reading=grouping.reading, backend=grouping.backend, memory=memory,
        progress=progress,
    )  # fmt: skip
    eps = _radius(encoding, grouping)
    reach = farthest(grouping, eps)
    graph = jaccard(encoding, most=reach)
    middle = time.perf_counter()
    labels, eps, steps = _grouped(graph, grouping, eps, reach, run)
    seconds = {"distances": middle - start, "clustering": time.perf_counter() - middle}
    return Clustered(
        labels.numpy(), grouping, eps, steps, reach, encoding.found.backend, encoding.found.recall, seconds=seconds
    )


def _radius(encoding: Encoding, grouping: Grouping) -> float:
    """Return the radius, NaN for a method that has none."""
    if grouping.method == "hdbscan":
        return math.nan
    if not isinstance(grouping.eps, str):
        return float(grouping.eps)
    # A rule looks at all distances, which are too many to keep.
    return strips_eps(jaccard_strips(encoding), rule=grouping.eps, min_samples=grouping.min_samples)


def farthest(grouping: Grouping, eps: float) -> float:
    """Return the largest distance that a method looks at, given a radius: what is left out takes no memory."""
    if grouping.method == "hdbscan":
        return FARTHEST
    return max(eps, FARTHEST) if grouping.method == "dbscan" and grouping.ladder else eps


def _grouped(
    graph: csr_array, grouping: Grouping, eps: float, reach: float, run: Run
) -> tuple[Tensor, float, tuple[str, ...]]:
    """Return labels, the radius and how it was changed."""
    least = grouping.min_samples
    if grouping.method == "hdbscan":
        return hdbscan_graph(graph, min_cluster_size=least, ties="apart"), eps, ()
    if grouping.method == "infomap":
        seed = 1 + run.seed_for("cluster/infomap") % (1 << 31)
        return infomap_graph(graph, eps=eps, seed=seed, min_cluster_size=least), eps, ()
    if not grouping.ladder:
        return dbscan_graph(graph, eps=eps, min_samples=least), eps, ()
    found = climb_graph(graph, eps=eps, min_samples=least, limit=reach)
    return found.labels, found.eps, found.steps
