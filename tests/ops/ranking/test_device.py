from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.ranking.searches import NAMES, Search, assert_equal, assert_identical, people, random_search
from uda_reid.errors import DataError
from uda_reid.ops.ranking import Ranking, _on_device, rank, rank_distances
from uda_reid.ops.ranking.device import rank_block

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors on the CPU take the way of those on a GPU."""
    monkeypatch.setattr("uda_reid.ops.ranking._on_cpu", _on_device)


# the torch code on the CPU, so that it is tested everywhere


@pytest.mark.parametrize(("queries", "gallery", "cases"), [(3, 10, 600), (9, 60, 100)])
def test_torch_counts_what_the_compiled_loops_count(
    queries: int, gallery: int, cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(queries)
    drawn = [random_search(generator, queries=queries, gallery=gallery) for _ in range(cases)]
    rates = (0.1, 0.5, 1.0)
    expected = [search.rank(rates=rates) for search in drawn]
    by_device(monkeypatch)
    assert_equal([search.rank(rates=rates) for search in drawn], expected)
    assert_equal([search.rank(1, 2, rates=rates) for search in drawn], expected)
    assert sum(ranking.ties for ranking in expected) > cases / 5


@pytest.mark.parametrize("protocol", NAMES)
def test_torch_ranks_features_as_the_compiled_loops_do(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, labels = people(0, queries=40, gallery=300, dimensions=24, identities=11, noise=1.0)
    gallery[5:9] = 0
    gallery[200:240] = gallery[100:140] * 3
    expected = rank(query, gallery, **labels, protocol=protocol)
    assert expected.ties > 10
    by_device(monkeypatch)
    assert_equal([rank(query, gallery, **labels, protocol=protocol)], [expected])


def test_torch_ranks_very_many_matches_as_the_compiled_loops_do(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    search = Search(
        distances=generator.integers(0, 300, (3, 1600)).tolist(),
        query_pids=[1, 2, 3],
        gallery_pids=generator.choice([1, 2, 0, -1], 1600, p=[0.7, 0.1, 0.1, 0.1]).tolist(),
        query_cams=[0, 0, 0],
        gallery_cams=[1] * 1600,
        protocol="market",
    )
    expected = search.rank()
    by_device(monkeypatch)
    assert_equal([search.rank()], [expected])


def test_torch_leaves_its_blocks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    by_device(monkeypatch)
    distances = torch.tensor([[3.0, 1.0, 1.0, 2.0]])
    rank_distances([distances], query_pids=[1], gallery_pids=[1, 1, 0, -1], protocol="any-camera")
    assert distances.tolist() == [[3.0, 1.0, 1.0, 2.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_torch_refuses_distances_that_are_not_finite(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    by_device(monkeypatch)
    distances = torch.ones(4, 3)
    distances[2, 1] = distances[3, 0] = bad
    labels: dict[str, Any] = {"query_pids": [1] * 4, "gallery_pids": [1, -1, 0], "protocol": "any-camera"}
    for blocks in ([distances], [distances[:1], distances[1:]]):
        with pytest.raises(DataError, match="distances of query 2 hold NaN or infinity"):
            rank_distances(blocks, **labels)


def test_rank_block_writes_its_rows_and_returns_the_pairs() -> None:
    distances = torch.tensor([[0.3, 0.1, 0.2, 0.0], [0.5, 0.5, 0.5, 0.0]])
    good = torch.tensor([[True, False, False, False], [False, False, False, False]])
    removed = torch.tensor([[False, False, False, True], [False, False, True, True]])
    values, counts = np.full((2, 4), 9.0), np.full((2, 5), 9)
    wrong, matches = rank_block(distances, good, removed, near=0.15, values=values, counts=counts)
    np.testing.assert_allclose(values, [[1 / 6, 1 / 3, 1 / 3, 1 / 3], [np.nan] * 4])
    assert counts.tolist() == [[1, 2, 0, 1, 2], [0, -1, 0, 0, 2]]
    torch.testing.assert_close(wrong, torch.tensor([0.1, 0.2, 0.5, 0.5]))
    torch.testing.assert_close(matches, torch.tensor([0.3]))


# on real devices


@NEEDS_CUDA
def test_cuda_counts_what_the_compiled_loops_count() -> None:
    generator = np.random.default_rng(1)
    drawn = [random_search(generator, queries=6, gallery=40) for _ in range(100)]
    assert_equal([search.rank_matrix(search.matrix().cuda()) for search in drawn], [search.rank() for search in drawn])


@NEEDS_CUDA
def test_cuda_agrees_where_no_pair_is_near() -> None:
    query, gallery, labels = people(3, queries=60, gallery=400, dimensions=128, identities=20, noise=2.0)
    expected = rank(query, gallery, **labels)
    found = rank(query.cuda(), gallery.cuda(), **labels)
    clear = (expected.near == 0) & (found.near == 0)
    assert clear.sum() > 30
    for name in [field.name for field in fields(Ranking) if field.name not in ("protocol", "accepted")]:
        np.testing.assert_allclose(getattr(found, name)[clear], getattr(expected, name)[clear], atol=1e-5)
    assert dict(found.accepted) == pytest.approx(dict(expected.accepted), abs=1e-2)
    assert_identical(found, rank(query, gallery.cuda(), **labels))  # the gallery's device decides
