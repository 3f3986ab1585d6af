"""Neighbours that faiss finds, exactly or nearly."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.ops.nearest import METRICS, assert_same_bits, distances_of, drawn, lattice
from uda_reid.errors import RecipeError
from uda_reid.ops import neighbours as module
from uda_reid.ops.distance import MEMORY
from uda_reid.ops.neighbours import Metric, neighbours, quiet


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_exact_equals_tiles_without_ties(metric: Metric) -> None:
    pytest.importorskip("faiss")
    features = drawn(400, 12)
    tiles, found = (neighbours(features, 15, metric=metric, backend=name) for name in ("tiles", "faiss"))
    gaps = np.diff(np.sort(distances_of(features, metric), axis=1)[:, :16], axis=1)
    clear = torch.from_numpy(gaps.min(axis=1) > 1e-5)
    assert clear.sum() > 300
    assert torch.equal(found.rows[clear], tiles.rows[clear])
    torch.testing.assert_close(found.distances, tiles.distances, atol=1e-5, rtol=0)
    assert (found.backend, found.recall) == ("faiss, exact", 1)


@pytest.mark.parametrize("backend", ["faiss", "faiss-ivf", "faiss-hnsw"])
def test_faiss_is_asked_in_batches(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    features = drawn(400, 12)
    whole = neighbours(features, 15, backend=backend)
    monkeypatch.setattr(module, "BATCH", 7)
    assert_same_bits(neighbours(features, 15, backend=backend), whole)


@pytest.mark.parametrize("backend", ["faiss-ivf", "faiss-hnsw"])
@pytest.mark.parametrize("metric", METRICS)
def test_approximate_searches_state_their_recall(backend: Any, metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    features = drawn(2000, 48)
    true = neighbours(features, 10, metric=metric).rows.numpy()
    found = neighbours(features, 10, metric=metric, backend=backend, effort=20)
    hits = np.array([len(np.intersect1d(a, b)) for a, b in zip(true, found.rows.numpy(), strict=True)])
    sample = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[: module.SAMPLE].numpy()
    assert found.recall == pytest.approx(hits[sample].mean() / 10, abs=1e-9)
    assert found.recall == pytest.approx(hits.mean() / 10, abs=0.01)
    assert 0.6 < found.recall < 1
    assert (
        found.backend
        == {
            "faiss-ivf": "faiss IVF, 20 of 51 cells",
            "faiss-hnsw": "faiss HNSW, 32 links, efSearch 20",
        }[backend]
    )
    # of rows that its own generator chooses
    monkeypatch.setattr(module, "SAMPLE", 50)
    generator = torch.Generator().manual_seed(7)
    some = neighbours(features, 10, metric=metric, backend=backend, effort=20, generator=generator)
    sample = torch.randperm(2000, generator=torch.Generator().manual_seed(7))[:50].numpy()
    assert some.recall == pytest.approx(hits[sample].mean() / 10, abs=1e-9)
    assert_same_bits(some, found)


def test_more_effort_finds_more() -> None:
    pytest.importorskip("faiss")
    features = drawn(1200, 48)
    cells = [neighbours(features, 10, backend="faiss-ivf", effort=effort) for effort in (1, 8, 30, 1000, 0)]
    assert [found.backend for found in cells] == [f"faiss IVF, {number} of 30 cells" for number in (1, 8, 30, 30, 30)]
    assert cells[0].recall < cells[1].recall < cells[2].recall == 1
    assert_same_bits(cells[3], cells[2])
    assert_same_bits(cells[4], cells[2])
    links = [neighbours(features, 10, backend="faiss-hnsw", effort=effort) for effort in (10, 100)]
    assert [found.backend.split(", ")[-1] for found in links] == ["efSearch 10", "efSearch 100"]
    assert links[0].recall < links[1].recall
    assert neighbours(features, 40, backend="faiss-hnsw").backend.endswith("efSearch 160")


def test_recall_counts_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = module._Points.of(torch.arange(10.0)[:, None], "euclidean")
    generator = torch.Generator().manual_seed(0)
    rows = module._strips(points, torch.arange(10), 3, False, MEMORY, quiet).rows.clone()
    assert module._recall(points, rows, MEMORY, generator) == 1
    rows[0] = torch.tensor([0, 8, 9])  # 1 and 2 are missed
    rows[9] = torch.tensor([7, 9, 8])  # all there, in another order
    assert module._recall(points, rows, MEMORY, generator) == pytest.approx(28 / 30)


@pytest.mark.parametrize("backend", ["faiss", "faiss-ivf", "faiss-hnsw"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["any", "lattice", "identical", "few"])
def test_faiss_lists_are_in_order_and_hold_every_row_once_and_the_own_one(
    backend: Any, metric: Metric, kind: str
) -> None:
    pytest.importorskip("faiss")
    features = {
        "any": drawn(500, 8),
        "lattice": lattice(metric, 500),
        "identical": drawn(1, 8).repeat(120, 1),
        "few": drawn(7, 3),
    }[kind]
    k = min(len(features), 30)
    found = neighbours(features, k, metric=metric, backend=backend)
    distances = distances_of(features, metric)
    rows = found.rows.numpy()
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < len(features)
    assert (rows == np.arange(len(rows))[:, None]).any(axis=1).all()
    assert (np.diff(found.distances.numpy(), axis=1) >= 0).all()
    np.testing.assert_allclose(found.distances, np.take_along_axis(distances, rows, axis=1), atol=1e-5, rtol=0)
    ties = np.diff(found.distances.numpy(), axis=1) == 0
    assert (np.diff(rows, axis=1)[ties] > 0).all()
    assert (found.rows.dtype, found.distances.dtype) == (torch.int32, torch.float32)
    assert_same_bits(neighbours(features, k, metric=metric, backend=backend), found)


def test_rows_that_an_approximate_search_cannot_fill_are_searched_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    features = lattice("euclidean", 60)

    class Gaps:
        def search(self, rows: Any, k: int) -> tuple[None, npt.NDArray[np.int64]]:
            found = neighbours(features, k, metric="euclidean").rows.numpy().astype(np.int64)
            found[::2, 3:] = -1  # faiss pads with -1, which would be the last row
            return None, found

    monkeypatch.setattr(module, "_index", lambda *_: (Gaps(), "gaps"))
    found = neighbours(features, 8, metric="euclidean", backend="faiss-hnsw")
    exact = neighbours(features, 8, metric="euclidean")
    assert (exact.rows == torch.arange(60)[:, None]).any(dim=1).all()
    assert_same_bits(found, exact)


def test_neighbours_say_when_faiss_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RecipeError, match=r"^faiss is not installed; pip install faiss-cpu, or use backend tiles$"):
        neighbours(drawn(5, 2), 2, backend="faiss")


def test_neighbours_do_not_touch_faiss_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert_same_bits(neighbours(drawn(9, 2), 2), neighbours(drawn(9, 2), 2, backend="tiles"))
