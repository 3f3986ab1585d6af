"""From files to scores and from files to clusters: what the commands `evaluate --features` and `cluster` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from uda_reid.errors import DataError, UdaReidError
from uda_reid.foreign.clustering import Audited, Clustered, Grouping, audit_clusters, cluster_features, write_labels
from uda_reid.foreign.scoring import Reranking, Scored, score_features, write_per_query
from uda_reid.foreign.search import Search, read_rows, read_search
from uda_reid.ops.distance import MEMORY
from uda_reid.run import Reporter, Silent
from uda_reid.training.devices import pick_device, use_threads

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def score_files(
    files: Sequence[Path],
    *,
    ids: Path | None = None,
    protocol: str = "auto",
    reranking: Reranking | None = None,
    per_query: Path | None = None,
    overwrite: bool = False,
    memory: int = MEMORY,
    device: str = "cpu",
    threads: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Search, Scored]:
    """Score the features in files.

    Args:
        files: as for `read_search`.
        ids: as for `read_search`.
        protocol: as for `score_features`.
        reranking: as for `score_features`.
        per_query: a CSV to write, with a line for every query and ranking (`write_per_query`).
        overwrite: replace that file if it is there.
        memory: bytes of distances computed at once.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        threads: CPU threads; 0 leaves torch's choice.
        reporter: shows progress.

    Returns:
        What was searched, and how well.

    Raises:
        UdaReidError: bad input; or there is not enough memory.
    """
    use_threads(threads)
    place = pick_device(device)
    _check_free(per_query, overwrite, "--per-query")
    search = read_search(files, ids)
    there = replace(search, query=search.query.to(place), gallery=search.gallery.to(place))
    scored = _within_memory(
        score_features, there, protocol=protocol, reranking=reranking, memory=memory,
        progress=(reporter or Silent()).progress,
    )  # fmt: skip
    if per_query:
        write_per_query(per_query, scored, search)
    return search, scored


def cluster_file(
    file: Path,
    grouping: Grouping | None = None,
    *,
    out: Path,
    ids: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    memory: int = MEMORY,
    device: str = "cpu",
    threads: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Clustered, Audited | None]:
    """Cluster the features in a file, and write the cluster of every row.

    Args:
        file: as for `read_rows`.
        grouping: as for `cluster_features`.
        out: the CSV to write, with the columns row and cluster; -1 are outliers.
        ids: a table of identities to audit the clusters by; they are not known to the clustering.
        overwrite: replace that file if it is there.
        seed: as for `cluster_features`.
        memory: bytes of products computed at once.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        threads: CPU threads; 0 leaves torch's choice.
        reporter: shows progress.

    Returns:
        The clusters, and how right they are where identities are known.

    Raises:
        UdaReidError: bad input; or there is not enough memory.
    """
    use_threads(threads)
    place = pick_device(device)
    _check_free(out, overwrite, "--out")
    features, table = read_rows(file, ids)
    found = _within_memory(
        cluster_features, features.to(place), grouping, seed=seed, memory=memory,
        progress=(reporter or Silent()).progress,
    )  # fmt: skip
    audited = audit_clusters(found.labels, table, seed=seed) if table is not None else None
    write_labels(out, found.labels)
    return found, audited


def _check_free(path: Path | None, overwrite: bool, option: str) -> None:
    """Refuse to write over a file before the work, and not after it."""
    if path is not None and path.is_dir():
        raise DataError(f"{path} is a folder; name a file to write with {option}")
    if path is not None and path.exists() and not overwrite:
        raise DataError(f"{path} is there already; choose another {option}, or replace it with --overwrite")


def _within_memory(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Return what `work` returns, or say in one line that the memory does not hold it."""
    try:
        return work(*arguments, **options)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UdaReidError(
            "not enough memory for these features; give a smaller --memory, or --device cpu if it was a GPU's"
        ) from error
