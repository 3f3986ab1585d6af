from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracles
from tests.ops.nearest import (
    METRICS,
    T,
    assert_exact,
    assert_near,
    assert_same_bits,
    distances_of,
    drawn,
    lattice,
    strips,
    threads,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops import neighbours as module
from uda_reid.ops.distance import MEMORY
from uda_reid.ops.neighbours import Metric, Neighbours, neighbours, pair_products, quiet

# exact search


def test_neighbours_of_a_case_worked_out_on_paper() -> None:
    # On a line, squared distances: 0-1: 1, 0-2: 9, 0-3: 1; 1-2: 4, 1-3: 4; 2-3: 16. Rows 1 and 3 tie for row 0.
    found = neighbours(torch.tensor([[0.0], [1.0], [3.0], [-1.0]]), 3, metric="euclidean", farthest=True)
    assert found.rows.tolist() == [[0, 1, 3], [1, 0, 2], [2, 1, 0], [3, 0, 1]]
    assert found.distances.tolist() == [[0, 1, 1], [0, 1, 4], [0, 4, 9], [0, 1, 4]]
    assert found.farthest.tolist() == [9, 4, 16, 16]
    # Directions 0, 90, 180 and 0 degrees: row 3 is row 0 three times as long.
    found = neighbours(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-5.0, 0.0], [3.0, 0.0]]), 4, farthest=True)
    assert found.rows.tolist() == [[0, 3, 1, 2], [1, 0, 2, 3], [2, 1, 0, 3], [0, 3, 1, 2]]
    assert found.distances.tolist() == [[0, 0, 1, 2], [0, 1, 1, 1], [0, 1, 2, 2], [0, 0, 1, 2]]
    assert found.farthest.tolist() == [2, 1, 2, 2]
    assert (found.backend, found.recall) == ("tiles", 1)
    assert (found.rows.dtype, found.distances.dtype) == (torch.int32, torch.float32)


@settings(max_examples=150)
@given(
    metric=st.sampled_from(METRICS),
    rows=st.integers(1, 40),
    seed=st.integers(0, 1 << 20),
    tile=st.integers(1, 45),
    memory=st.integers(4, 4 * 45 * 45),
    share=st.floats(0, 1),
)
def test_neighbours_with_ties_equal_a_sort_for_every_size_of_tile(
    metric: Metric, rows: int, seed: int, tile: int, memory: int, share: float
) -> None:
    features = lattice(metric, rows, seed)
    k = 1 + round(share * (rows - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        found = neighbours(features, k, metric=metric, farthest=True, memory=memory)
    distances = distances_of(features, metric)
    assert_exact(found, distances)
    np.testing.assert_array_equal(found.farthest, distances.max(axis=1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("tile", "entries", "k"),
    [
        (1024, 700 * 700, 30),
        (700, 600 * 600, 1),
        (257, 257 * 257, 30),
        (256, 256 * 600, 700),
        (64, 64 * 300, 30),
        (300, 300, 1),
        (300, 300 * 300, 700),
    ],
)
def test_neighbours_of_many_rows_equal_a_sort(
    metric: Metric, tile: int, entries: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = lattice(metric, 700)  # more rows and columns than the loops look at together
    monkeypatch.setattr(module, "TILE", tile)
    found = neighbours(features, k, metric=metric, farthest=True, memory=4 * entries)
    distances = distances_of(features, metric)
    assert_exact(found, distances)
    np.testing.assert_array_equal(found.farthest, distances.max(axis=1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 9, 300])
def test_neighbours_of_any_features_are_the_nearest(metric: Metric, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 128)
    features = drawn(300, 24)
    scaled = features * torch.logspace(-9, 9, 300)[:, None] if metric == "cosine" else features
    distances = distances_of(features, metric)
    for found in (neighbours(scaled, k, metric=metric, farthest=True), strips(scaled, metric, k)):
        assert_near(found, distances, 1e-6 if metric == "cosine" else 1e-4)
        np.testing.assert_allclose(found.farthest, distances.max(axis=1), rtol=1e-6)
        assert torch.equal(found.rows[:, 0], torch.arange(300, dtype=torch.int32))
        assert not found.distances[:, 0].any()


def test_neighbours_agree_with_the_loops_of_the_oracle() -> None:
    features = drawn(25, 4)
    points = features.tolist()
    cosine = np.array([[oracles.cosine_distance(a, b) for b in points] for a in points])
    euclidean = np.array([[oracles.squared_distance(a, b) for b in points] for a in points])
    assert_near(neighbours(features, 25), cosine)
    assert_near(neighbours(features, 25, metric="euclidean"), euclidean, 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_neighbours_of_features_at_the_ends_of_float32(scale: float) -> None:
    features = drawn(40, 6)
    found = neighbours(features * scale, 40, farthest=True)
    assert_near(found, distances_of(features, "cosine"))


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_the_same_bits_for_every_number_of_threads(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", 300)
    features = lattice(metric, 900)
    found = []
    for number in (1, 2, 1):
        with threads(number):
            found.append(neighbours(features, 25, metric=metric, farthest=True, memory=300 * 4 * 350))
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


@pytest.mark.parametrize("metric", METRICS)
def test_strips_are_the_same_bits_as_tiles_where_products_are_exact(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", 50)
    features = lattice(metric, 160)
    for k in (1, 20, 160):
        tiles = neighbours(features, k, metric=metric, farthest=True, memory=50 * 4 * 60)
        for height in (1, 7, 160):
            found = strips(features, metric, k, memory=height * 32 * 160)
            assert_same_bits(found, tiles)
            assert found.backend == "strips"


def test_strips_answer_for_the_chosen_rows_only() -> None:
    points = module._Points.of(lattice("euclidean", 60), "euclidean")
    chosen = torch.tensor([59, 3, 3, 0])
    whole = module._strips(points, torch.arange(60), 7, False, MEMORY, quiet)
    found = module._strips(points, chosen, 7, False, 2 * 32 * 60, quiet)
    assert torch.equal(found.rows, whole.rows[chosen])
    assert torch.equal(found.distances, whole.distances[chosen])
    assert found.farthest.shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
def test_farthest_changes_nothing_else_and_is_empty_unless_asked_for(metric: Metric) -> None:
    features = drawn(50, 3)
    plain, told = neighbours(features, 5, metric=metric), neighbours(features, 5, metric=metric, farthest=True)
    assert plain.farthest.shape == (0,)
    assert torch.equal(plain.rows, told.rows)
    assert torch.equal(plain.distances, told.distances)


@pytest.mark.parametrize("value", [1.0, 0.0, 1e-3, 12345.678])
@pytest.mark.parametrize("dimensions", [3, 64, 257])
def test_identical_rows_are_all_at_distance_zero_in_the_order_of_rows(value: float, dimensions: int) -> None:
    features = (value * drawn(1, dimensions)).repeat(300, 1)
    found = neighbours(features, 40, farthest=True)
    if value:
        assert not found.distances.any()
        assert not found.farthest.any()
        assert torch.equal(found.rows, torch.arange(40, dtype=torch.int32).repeat(300, 1))
    else:  # rows of zeros point nowhere: at distance 1 of everything else
        assert_exact(found, distances_of(features, "cosine"))


def test_neighbours_of_a_single_row_are_itself() -> None:
    for metric in METRICS:
        found = neighbours(torch.ones(1, 4), 1, metric=metric, farthest=True)
        assert (found.rows.tolist(), found.distances.tolist(), found.farthest.tolist()) == ([[0]], [[0.0]], [0.0])


def test_neighbours_leave_the_features_as_they_are() -> None:
    features = drawn(30, 4)
    before = features.clone()
    for metric in METRICS:
        neighbours(features, 3, metric=metric)
    assert torch.equal(features, before)


def test_neighbours_take_strided_features_and_such_that_need_gradients() -> None:
    features = lattice("cosine", 50)
    plain = neighbours(features, 9)
    assert_same_bits(neighbours(features.T.contiguous().T, 9), plain)
    found = neighbours(features.clone().requires_grad_(), 9)
    assert_same_bits(found, plain)
    assert not found.distances.requires_grad


@pytest.mark.parametrize("memory", [4, 39, 400, 5000, 4 * 90 * 90, MEMORY])
def test_products_take_no_more_than_the_memory_and_all_of_it_is_used(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, multiply = [], torch.mm

    def mm(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        sizes.append(out.untyped_storage().nbytes())
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    found = neighbours(lattice("cosine", 90), 9, memory=memory)
    assert memory / 2 < max(sizes) <= memory or max(sizes) == 4 * 90 * 90
    assert_exact(found, distances_of(lattice("cosine", 90), "cosine"))


def test_progress_sees_every_tile_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 20)
    seen: list[Any] = []

    def show(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        seen.append((description, total))
        for item in items:
            yield item
            seen.append("done")

    found = neighbours(drawn(90, 3), 4, progress=show)
    assert seen == [("neighbours", 5)] + ["done"] * 5
    assert_same_bits(found, neighbours(drawn(90, 3), 4))


def test_pair_products_equal_those_in_double_precision() -> None:
    features = drawn(200, 333)
    numbers = np.random.default_rng(0)
    sizes = numbers.integers(0, 9, 200)  # rows without an entry among them
    starts = np.concatenate([[0], sizes.cumsum()])
    others = numbers.integers(0, 200, starts[-1]).astype(np.int32)
    found = pair_products(features, starts, others)
    points = features.double().numpy()
    expected = (points[np.repeat(np.arange(200), sizes)] * points[others]).sum(axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    with threads(2):
        np.testing.assert_array_equal(pair_products(features, starts, others), found)


# bad input


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"^features: shape \(3,\) given, \(rows, dimensions\) expected$"),
        (torch.zeros(3, 2, dtype=torch.float64), "^features: torch.float64 given, torch.float32 expected"),
        (torch.zeros(3, 2, dtype=torch.float16), "^features: torch.float16 given, torch.float32 expected"),
        (torch.zeros(0, 2), r"^features: shape \(0, 2\) is empty"),
        (torch.tensor([[1.0], [float("nan")]]), r"^features: row 1 holds NaN or infinity \(1 of 2 rows do\)"),
        (torch.tensor([[-float("inf")], [1.0]]), "^features: row 0 holds NaN or infinity"),
    ],
)
def test_neighbours_refuse_features_that_no_distance_can_be_trusted_on(features: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        neighbours(features, 1)


@pytest.mark.parametrize("k", [-1, 0, 6])
def test_neighbours_refuse_k_out_of_range(k: int) -> None:
    with pytest.raises(DataError, match=f"^k = {k} neighbours of 5 rows; choose from 1 to 5$"):
        neighbours(drawn(5, 2), k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "^metric 'manhattan' is unknown; use cosine or euclidean$"),
        ({"backend": "annoy"}, "^backend 'annoy' is unknown; use auto, tiles, faiss, faiss-ivf or faiss-hnsw$"),
        ({"backend": "faiss", "farthest": True}, "^backend 'faiss' does not see the farthest rows; use tiles$"),
        ({"backend": "faiss-ivf", "farthest": True}, "^backend 'faiss-ivf' does not see the farthest rows; use tiles$"),
        ({"effort": -1}, "^an effort of -1 is no number of cells or candidates; use 0 for the usual one$"),
        ({"memory": 3}, "^memory of 3 bytes is too small: one row takes 4$"),
        ({"memory": 0}, "^memory of 0 bytes is too small: one row takes 4$"),
    ],
)
def test_neighbours_refuse_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        neighbours(drawn(5, 2), 2, **options)


def test_strips_refuse_too_little_memory() -> None:
    with pytest.raises(RecipeError, match=r"^memory of 159 bytes is too small: one row takes 160$"):
        strips(drawn(5, 2), "cosine", 2, memory=159)


def test_euclidean_neighbours_refuse_features_whose_squares_leave_float32() -> None:
    with pytest.raises(DataError, match="too large"):
        neighbours(drawn(5, 2) * 1e25, 2, metric="euclidean")


# on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_on_a_gpu_equal_those_on_the_cpu(metric: Metric) -> None:
    features = lattice(metric, 700)
    for k in (1, 30, 700):
        found = neighbours(features.cuda(), k, metric=metric, farthest=True, memory=150 * 32 * 700)
        assert {part.device.type for part in (found.rows, found.distances, found.farthest)} == {"cuda"}
        on_cpu = Neighbours(found.rows.cpu(), found.distances.cpu(), found.farthest.cpu(), found.backend)
        assert_same_bits(on_cpu, neighbours(features, k, metric=metric, farthest=True))
    features = drawn(500, 128)
    found = neighbours(features.cuda(), 20, metric=metric)
    near = Neighbours(found.rows.cpu(), found.distances.cpu(), found.farthest.cpu(), found.backend)
    assert_near(near, distances_of(features, metric), 1e-5 if metric == "cosine" else 1e-2)


def test_rows_nearer_than_rounding_of_products_are_told_apart() -> None:
    # A common part in all features makes cosine distances of 1e-5, of which float32 products know little.
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 1, 2048, generator=generator)
    features = (1 + 0.003 * (centres + 0.5 * torch.randn(40, 10, 2048, generator=generator))).view(400, 2048)
    units = torch.nn.functional.normalize(features.double())
    matrix = 1 - units @ units.T
    assert float(matrix.max()) < 1.5e-5
    found = neighbours(features, 10, farthest=True)
    expected = matrix.argsort(dim=1, stable=True)[:, :10]
    agreed = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), expected.tolist(), strict=True)]
    assert agreed == [10] * 400
    torch.testing.assert_close(found.farthest.double(), matrix.amax(1), atol=1e-10, rtol=0)
    torch.testing.assert_close(strips(features, "cosine", 10).distances, found.distances, atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [2.5, 0, 6])
def test_numbers_of_neighbours_that_cannot_be_are_refused(k: Any) -> None:
    with pytest.raises(DataError, match=rf"k = {k} neighbours of 5 rows; choose from 1 to 5"):
        neighbours(torch.eye(5), k)


def test_memory_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="memory of -1 bytes is too small"):
        neighbours(torch.eye(5), 2, memory=-1)
