"""From files to scores and from files to clusters: what the commands `evaluate --features` and `cluster` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from uda_reid.errors import DataError, UdaReidError
from uda_reid.foreign.clustering import (
    Audited,
    Clustered,
    Grouping,
    audit_clusters,
    cluster_features,
    identified,
    write_labels,
)
from uda_reid.foreign.files import out_of_memory
from uda_reid.foreign.scoring import Metric, Reranking, Scored, score_features, write_per_query
from uda_reid.foreign.search import Search, read_rows, read_search
from uda_reid.ops.distance import MEMORY
from uda_reid.run import Reporter, Silent
from uda_reid.training.devices import pick_device, use_threads
from uda_reid.writing import Occupied, check_place


def score_files(
    files: Sequence[Path],
    *,
    ids: Path | None = None,
    protocol: str = "auto",
    metric: Metric = "cosine",
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
        metric: as for `score_features`.
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
    _check_free(per_query, overwrite, "--per-query", [*files, *([ids] if ids else [])])
    with _enough_memory():
        search = read_search(files, ids)
        there = replace(search, query=search.query.to(place), gallery=search.gallery.to(place))
        scored = score_features(
            there, protocol=protocol, metric=metric, reranking=reranking, memory=memory,
            progress=(reporter or Silent()).progress,
        )  # fmt: skip
    if per_query:
        with _unless_written_meanwhile(per_query, "--per-query"):
            write_per_query(per_query, scored, search, fresh=not overwrite)
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
    _check_free(out, overwrite, "--out", [file, *([ids] if ids else [])])
    with _enough_memory():
        features, table = read_rows(file, ids)
        if table is not None:
            identified(table)  # said before the work, and not after it
        found = cluster_features(
            features.to(place), grouping, seed=seed, memory=memory, progress=(reporter or Silent()).progress
        )
        with _unless_written_meanwhile(out, "--out"):
            write_labels(out, found.labels, fresh=not overwrite)
        return found, audit_clusters(found.labels, table, seed=seed) if table is not None else None


def _check_free(path: Path | None, overwrite: bool, option: str, inputs: Sequence[Path]) -> None:
    """Refuse a place that cannot be written to before the work, and not after it."""
    if path is None:
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file to write with {option}")
    if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
        raise DataError(f"{path} is read from; choose another {option}")
    if path.exists() and not overwrite:
        raise _there(path, option)
    check_place(path)


@contextmanager
def _unless_written_meanwhile(path: Path, option: str) -> Iterator[None]:
    """Refuse to write over a file that another process wrote during the work."""
    try:
        yield
    except Occupied as error:
        raise _there(path, option) from error


def _there(path: Path, option: str) -> DataError:
    return DataError(f"{path} is there already; choose another {option}, or replace it with --overwrite")


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Say in one line that the memory does not hold the work."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UdaReidError(
            "not enough memory for these features; give a smaller --memory, or --device cpu if it was a GPU's"
        ) from error
