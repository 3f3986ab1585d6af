"""The k nearest neighbours of every row: exact, in tiles of products; or approximate, with the recall measured.

Lists are ordered by distance, then by row. Every pair of rows is multiplied once and serves the lists of both, so the
work is half of N x N, and what is kept grows with N * k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import uda_reid.ops.kernels as kernels
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import MEMORY, blur, check_features, directions, exact_cosines, normalise, strip_rows

Metric = Literal["cosine", "euclidean"]
Backend = Literal["auto", "tiles", "faiss", "faiss-ivf", "faiss-hnsw"]
Array = npt.NDArray[Any]
T = TypeVar("T")


class Progress(Protocol):
    """Shows how many items have passed."""

    def __call__(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Yield the items."""


TILE = 1024
"""Rows of a tile: enough for products at full speed, and few enough that little is multiplied twice at the diagonal."""
WIDTH = 8192
"""Columns of a tile at most: products that are looked at soon are still near the processor."""
BATCH = 16_384
"""Rows that faiss searches for at once; it keeps the cells of all of them."""
SAMPLE = 1000
"""Rows on which the recall of an approximate search is measured."""


def quiet(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
    """Show nothing."""
    return items


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of every row, the row itself, at distance 0, among them.

    Args:
        rows: (N, k) int32, nearest first; of equally far ones the lower row first. Of more than k copies of a row it
            may itself not be in its list.
        distances: (N, k) float32, ascending: 1 - cosine, or squared Euclidean.
        farthest: (N,) float32, the distance of the farthest row; (0,) unless it was asked for.
        backend: what found them.
        recall: share of the true neighbours that are among them: 1 for an exact search, otherwise measured on a sample.
    """

    rows: Tensor
    distances: Tensor
    farthest: Tensor
    backend: str
    recall: float = 1.0


def neighbours(
    features: Tensor,
    k: int,
    *,
    metric: Metric = "cosine",
    farthest: bool = False,
    backend: Backend = "auto",
    effort: int = 0,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    progress: Progress = quiet,
) -> Neighbours:
    """Find the k nearest rows of every row, on the device of the features.

    Args:
        features: (N, D) float32, finite, of any length.
        k: how many, the row itself among them, from 1 to N.
        metric: `cosine`: 1 - cosine similarity; `euclidean`: squared Euclidean distance, of features that have been
            centred so that small distances keep their digits.
        farthest: also find the farthest distance of every row.
        backend: `tiles`, ours, exact; `faiss`, its exact search, for comparison; `faiss-ivf` and `faiss-hnsw`
            approximate and state their recall, on the CPU; `auto` is `tiles`, which was the faster one wherever it was
            measured (docs/performance.md).
        effort: of an approximate search: how many of the 4 sqrt(N) cells of `faiss-ivf` are searched, or how many
            candidates `faiss-hnsw` keeps. More finds more and takes longer; 0: 64 cells, the larger of 128 and 4 k.
        memory: bytes of products computed at once.
        generator: chooses the rows on which an approximate search is measured (default: seed 0).
        progress: passes work through and shows it, such as `Run.progress`.

    Returns:
        Rows and distances.

    Raises:
        DataError: the features are no finite float32 matrix, or have fewer than k rows.
        RecipeError: an option is out of range or unknown, or faiss is asked for and not installed.

    >>> found = neighbours(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), 2)
    >>> found.rows.tolist()
    [[0, 2], [1, 2], [2, 0]]
    """
    check_features(features, "features")
    if not isinstance(k, int) or not 1 <= k <= len(features):
        raise DataError(f"k = {k} neighbours of {len(features):,} rows; choose from 1 to {len(features):,}")
    if metric not in ("cosine", "euclidean"):
        raise RecipeError(f"metric {metric!r} is unknown; use cosine or euclidean")
    if backend not in ("auto", "tiles", "faiss", "faiss-ivf", "faiss-hnsw"):
        raise RecipeError(f"backend {backend!r} is unknown; use auto, tiles, faiss, faiss-ivf or faiss-hnsw")
    if effort < 0:
        raise RecipeError(f"an effort of {effort} is no number of cells or candidates; use 0 for the usual one")
    if farthest and backend not in ("auto", "tiles"):
        raise RecipeError(f"backend {backend!r} does not see the farthest rows; use tiles")
    with torch.no_grad():
        points = _Points.of(features, metric)
        if backend in ("auto", "tiles"):
            if features.device.type == "cpu":
                found = _tiles(points, k, farthest, memory, progress)
            else:
                every = torch.arange(len(features), device=features.device)
                found = _strips(points, every, k, farthest, memory, progress)
            return replace(found, farthest=_measured(found.farthest, points))
        chance = generator or torch.Generator().manual_seed(0)
        return _faiss_search(points, k, backend, effort, memory, chance, progress)


@dataclass(frozen=True)
class _Points:
    """Rows whose distances are offset[i] + other[j] - <left(i), rows[j]> * scale[j]."""

    rows: Tensor
    scale: Tensor
    offset: Tensor
    other: Tensor
    metric: Metric
    doubt: float
    """Smaller distances are measured again."""

    @staticmethod
    def of(features: Tensor, metric: Metric) -> _Points:
        if metric == "cosine":
            rows, scale = directions(features)
            return _Points(rows, scale, torch.ones_like(scale), torch.zeros_like(scale), metric, blur(rows.shape[1]))
        lengths = features.square().sum(dim=1)
        if not lengths.max() < torch.finfo(torch.float32).max / 4:
            raise DataError("features: squared lengths are too large for float32; scale the features down")
        return _Points(features, torch.full_like(lengths, 2), lengths, lengths, metric, 0.0)

    def left(self, rows: slice | Tensor) -> Tensor:
        """Return some rows as the left side of products: of unit length by cosine."""
        return self.rows[rows] * self.scale[rows, None] if self.metric == "cosine" else self.rows[rows]

    def distances(self, rows: Tensor) -> Tensor:
        """Return the distances of the images in (N, k) int32 `rows` to image 0, 1, ...; 0 to the image itself."""
        products = pair_products(self.rows, np.arange(0, rows.numel() + 1, rows.shape[1]), rows.flatten().numpy())
        found = torch.from_numpy(products).view_as(rows)
        scale = self.scale[:, None] * self.scale[rows] if self.metric == "cosine" else 2
        found = (self.offset[:, None] + self.other[rows] - found * scale).clamp_min(0)
        own = rows == torch.arange(len(rows))[:, None]
        return self.again(found, torch.arange(len(rows)), rows).masked_fill(own, 0)

    def again(self, distances: Tensor, chosen: Tensor, columns: Tensor) -> Tensor:
        """Measure anew what is in doubt of (B, k) distances, between rows `chosen` and `columns`; in place."""
        row, place = (distances < self.doubt).nonzero(as_tuple=True)
        for some in torch.split(torch.arange(len(row), device=row.device), 1024):
            at = row[some], place[some]
            other = columns[at] if columns.ndim == 2 else columns[at[1]]
            distances[at] = exact_cosines(self.rows[chosen[at[0]]], self.rows[other.long()])
        return distances


def _measured(farthest: Tensor, points: _Points) -> Tensor:
    """Measure farthest distances that are in doubt anew in float64; 0 where all rows are equal."""
    low = (farthest < points.doubt).nonzero().flatten()
    if not len(low):
        return farthest
    units = normalise(points.rows.double())
    for some in torch.split(low, max(1, (1 << 24) // len(units))):
        top = (1 - units[some] @ units.T).amax(dim=1)
        farthest[some] = top.masked_fill(top < 1e-13, 0).to(farthest.dtype)
    return farthest


def pair_products(features: Tensor, indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32]) -> Array:
    """Return the products of pairs of rows, for a sparse pattern of pairs.

    Args:
        features: (N, D) float32 on the CPU.
        indptr: (N + 1,) int64, where the entries of each row start.
        indices: (M,) int32, the other row of each pair.

    Returns:
        (M,) float32.
    """
    found = np.empty(len(indices), np.float32)
    points = features.contiguous().numpy()
    kernels.share(
        lambda start, stop: kernels.pair_products(points, indptr, indices, start, stop, found), len(points), least=64
    )
    return found


def _tiles(points: _Points, k: int, farthest: bool, memory: int, progress: Progress) -> Neighbours:
    """Search on the CPU: every tile above the diagonal serves its rows and its columns."""
    number = len(points.rows)
    strip_rows(1, memory)
    height = max(1, min(TILE, number, math.isqrt(memory // 4)))  # a square at least fits
    width = max(height, min(WIDTH, strip_rows(height, memory)))
    rows = points.rows.contiguous().numpy()
    terms = points.offset.numpy(), points.other.numpy(), points.scale.numpy(), rows, points.doubt
    best = np.full((number, k), np.inf, np.float32), np.zeros((number, k), np.int32)
    top = np.zeros(number if farthest else 0, np.float32)
    products = torch.empty(height * min(width, number))
    for first in progress(range(0, number, height), "neighbours", -(-number // height)):
        mine = slice(first, min(first + height, number))
        left = points.left(mine)
        for begin in range(first, number, width):
            theirs = slice(begin, min(begin + width, number))
            right = points.rows[theirs]
            tile = torch.mm(left, right.T, out=products[: len(left) * len(right)].view(len(left), len(right))).numpy()
            _serve(tile, mine, theirs, terms, best, top)
    return Neighbours(torch.from_numpy(best[1]), torch.from_numpy(best[0]), torch.from_numpy(top), "tiles")


Terms = tuple[Array, Array, Array, Array, float]
"""offset, other, scale, rows and doubt of `_Points`."""


def _serve(tile: Array, mine: slice, theirs: slice, terms: Terms, best: tuple[Array, Array], top: Array) -> None:
    """Bring a tile into the lists of its rows, and into those of its columns behind the square at the diagonal."""
    offset, other, scale, rows, doubt = terms
    diagonal = 0 if theirs.start == mine.start else -1
    behind = slice(max(theirs.start, mine.stop), theirs.stop)  # the square has served its rows
    rest, width = tile[:, behind.start - theirs.start :], max(behind.stop - behind.start, 0)

    def work(start: int, stop: int) -> None:
        kernels.nearest_in_rows(
            tile, offset[mine], other[theirs], scale[theirs], (rows[mine], rows[theirs]), doubt, diagonal,
            theirs.start, start, stop, (best[0][mine], best[1][mine]), top[mine],
        )  # fmt: skip
        if width:
            kernels.nearest_in_columns(
                rest, offset[mine], other[behind], scale[behind], (rows[mine], rows[behind]), doubt, mine.start,
                width * start // len(tile), width * stop // len(tile), (best[0][behind], best[1][behind]), top[behind],
            )  # fmt: skip

    kernels.share(work, len(tile))


def _strips(points: _Points, chosen: Tensor, k: int, farthest: bool, memory: int, progress: Progress) -> Neighbours:
    """Search for some rows among all by torch: on a GPU, and as the measure of approximate searches."""
    number, device = len(points.rows), points.rows.device
    columns = torch.arange(number, device=device)
    nearest = torch.empty(len(chosen), k, dtype=torch.int32, device=device)
    best, top = torch.empty(len(chosen), k, device=device), torch.empty(len(chosen) if farthest else 0, device=device)
    height = strip_rows(number, memory, itemsize=32)
    for first in progress(range(0, len(chosen), height), "neighbours", -(-len(chosen) // height)):
        part, mine = chosen[first : first + height], slice(first, first + height)
        products = points.left(part) @ points.rows.T
        distances = (points.offset[part, None] + points.other - products * points.scale).clamp_min_(0)
        distances = points.again(distances, part, columns)
        distances[torch.arange(len(part), device=device), part] = 0
        # Distances that are not negative are ordered as their bits are: with the row behind them no two are equal.
        keys = (distances.view(torch.int32).long() << 32) | columns
        rows = keys.topk(k, dim=1, largest=False, sorted=True).values & 0xFFFFFFFF
        nearest[mine], best[mine] = rows.int(), distances.gather(1, rows)
        if farthest:
            top[mine] = distances.amax(dim=1)
    return Neighbours(nearest, best, top, "strips")


def _faiss_search(
    points: _Points,
    k: int,
    backend: Backend,
    effort: int,
    memory: int,
    generator: torch.Generator,
    progress: Progress,
) -> Neighbours:
    rows = points.left(slice(None)).cpu().contiguous()
    local = _Points.of(points.rows.cpu(), points.metric)
    index, name = _index(rows, points.metric, backend, effort or (64 if backend == "faiss-ivf" else max(128, 4 * k)))
    nearest = torch.empty(len(rows), k, dtype=torch.int32)
    for part in progress(range(0, len(rows), BATCH), "neighbours", -(-len(rows) // BATCH)):
        nearest[part : part + BATCH] = torch.from_numpy(index.search(rows[part : part + BATCH].numpy(), k)[1])
    missing = (nearest < 0).any(dim=1).nonzero().flatten()
    if len(missing):
        nearest[missing] = _strips(local, missing, k, False, memory, quiet).rows
    del index
    own = torch.arange(len(rows), dtype=torch.int32)[:, None]
    alone = ~(nearest == own).any(dim=1)
    nearest[alone, -1] = own[alone, 0]
    nearest = nearest.sort(dim=1).values
    distances = local.distances(nearest)
    order = distances.argsort(dim=1, stable=True)
    nearest, distances = nearest.gather(1, order), distances.gather(1, order)
    recall = 1.0 if backend == "faiss" else _recall(local, nearest, memory, generator)
    device = points.rows.device
    return Neighbours(nearest.to(device), distances.to(device), torch.empty(0, device=device), name, recall)


def _index(rows: Tensor, metric: Metric, backend: Backend, effort: int) -> tuple[Any, str]:
    """Return a faiss index with all rows in it, and what it is."""
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    number, dim = rows.shape
    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    flat = faiss.IndexFlat(dim, kind)
    if backend == "faiss":
        flat.add(rows.numpy())
        return flat, "faiss, exact"
    if backend == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, kind)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, effort
        index.add(rows.numpy())
        return index, f"faiss HNSW, 32 links, efSearch {index.hnsw.efSearch}"
    cells = max(1, min(int(4 * number**0.5), number // 39))  # faiss wants 39 rows a cell to train on
    index = faiss.IndexIVFFlat(flat, dim, cells, kind)
    index.cp.seed, index.nprobe = 1234, min(cells, effort)
    index.train(rows.numpy())
    index.add(rows.numpy())
    return index, f"faiss IVF, {index.nprobe} of {cells} cells"


def _recall(points: _Points, nearest: Tensor, memory: int, generator: torch.Generator) -> float:
    """Return the share of the true neighbours that were found, on a sample of rows."""
    sample = torch.randperm(len(nearest), generator=generator)[:SAMPLE]
    true = _strips(points, sample, nearest.shape[1], False, memory, quiet).rows
    hits = [np.intersect1d(a, b).size for a, b in zip(true.numpy(), nearest[sample].numpy(), strict=True)]
    return float(np.mean(hits)) / nearest.shape[1]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RecipeError("faiss is not installed; pip install faiss-cpu, or use backend tiles") from error
    return faiss
