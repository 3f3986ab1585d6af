from __future__ import annotations

import builtins
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tests.ops.clustering.graphs import GRAPHS, graph_of, random_graph
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering import graph, infomap_graph

# Two groups of four with a weak link between them, a pair, and three rows with no near one.
PAIRS = {(i, j): 0.2 for group in (range(4), range(4, 8)) for i in group for j in group if i < j}
PEOPLE = graph_of(13, {**PAIRS, (3, 4): 0.59, (8, 9): 0.5, (10, 11): 0.8})


@pytest.fixture
def _infomap() -> None:
    pytest.importorskip("infomap", reason="the extra 'infomap' is not installed")


@pytest.mark.usefixtures("_infomap")
def test_infomap_finds_groups_and_leaves_out_rows_without_a_link() -> None:
    labels = infomap_graph(PEOPLE, eps=0.6, seed=1)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2, 2, -1, -1, -1]
    assert infomap_graph(PEOPLE, eps=0.8, seed=1).tolist() == [0] * 4 + [1] * 4 + [2, 2, 3, 3, -1]


@pytest.mark.usefixtures("_infomap")
def test_infomap_leaves_out_small_modules() -> None:
    labels = infomap_graph(PEOPLE, eps=0.6, seed=1, min_cluster_size=3)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 5


@pytest.mark.usefixtures("_infomap")
def test_infomap_weighs_near_pairs_more() -> None:
    # A ring of six: with pairs of near rows it falls apart between them, whichever these are.
    ring = [tuple(sorted((row, (row + 1) % 6))) for row in range(6)]
    for shift in (0, 1):
        distances = {(one, other): 0.02 if place % 2 == shift else 0.98 for place, (one, other) in enumerate(ring)}
        labels = infomap_graph(graph_of(6, distances), eps=0.99, seed=1).tolist()
        for place, (one, other) in enumerate(ring):
            assert (labels[one] == labels[other]) == (place % 2 == shift)


@pytest.mark.usefixtures("_infomap")
@given(GRAPHS, st.integers(1, 1 << 31))
def test_infomap_joins_only_rows_that_links_connect(given: csr_array, seed: int) -> None:
    labels = infomap_graph(given, eps=0.7, seed=seed)
    assert torch.equal(labels, infomap_graph(given, eps=0.7, seed=seed))
    clusters = [torch.nonzero(labels == number).flatten().tolist() for number in range(int(labels.max()) + 1)]
    assert all(len(rows) >= 2 for rows in clusters)
    assert [rows[0] for rows in clusters] == sorted(rows[0] for rows in clusters)
    near = {row: set(given.indices[given.indptr[row] : given.indptr[row + 1]].tolist()) for row in range(len(labels))}
    for rows in clusters:
        reached, front = {rows[0]}, [rows[0]]
        while front:
            fresh = (near[front.pop()] & set(rows)) - reached
            reached |= fresh
            front += fresh
        assert reached == set(rows)


@pytest.mark.usefixtures("_infomap")
def test_infomap_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_graph(100, density=0.05)
    whole = infomap_graph(given, eps=0.5, seed=3)
    monkeypatch.setattr(graph, "ENTRIES", 1)
    assert torch.equal(infomap_graph(given, eps=0.5, seed=3), whole)


@pytest.mark.usefixtures("_infomap")
def test_infomap_refuses_options_out_of_range() -> None:
    with pytest.raises(RecipeError, match=r"eps 1.0 is out of range on a graph"):
        infomap_graph(PEOPLE, eps=1.0, seed=1)
    for seed, size in ((0, 2), (1, 1)):
        with pytest.raises(RecipeError, match=rf"Infomap with seed {seed} and min_cluster_size {size} cannot be"):
            infomap_graph(PEOPLE, eps=0.5, seed=seed, min_cluster_size=size)
    with pytest.raises(DataError, match="above 1"):
        infomap_graph(graph_of(2, {(0, 1): 2.0}), eps=0.5, seed=1)


def test_infomap_says_when_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_infomap(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "infomap":
            raise ImportError("no infomap")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_infomap)
    with pytest.raises(RecipeError, match=r"^Infomap is not installed; pip install infomap, or cluster by DBSCAN"):
        infomap_graph(PEOPLE, eps=0.5, seed=1)


@pytest.mark.usefixtures("_infomap")
def test_infomap_works_beside_faiss_in_one_process() -> None:
    pytest.importorskip("faiss")
    code = """
import faiss, numpy as np
from scipy.sparse import csr_array
from uda_reid.ops.clustering import infomap_graph
near = np.full((6, 6), 0.2, dtype=np.float32)
print(infomap_graph(csr_array(near), eps=0.6, seed=1).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[0, 0, 0, 0, 0, 0]\n"), done.stderr
