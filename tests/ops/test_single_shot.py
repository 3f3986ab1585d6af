from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.protocols import PROTOCOLS
from uda_reid.ops.ranking import rank
from uda_reid.ops.single_shot import single_gallery_shot


def draw_search(seed: int, queries: int = 8, gallery: int = 30) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A random search; features are corners of a cube: many distances are equal, and all are exact."""
    generator = np.random.default_rng(seed)
    corners = torch.from_numpy(generator.choice([-1.0, 1.0], (queries + gallery, 4))).float()
    labels = {
        "query_pids": generator.integers(1, 6, queries),
        "gallery_pids": generator.integers(-1, 5, gallery),  # nobody is identity 5
        "query_cams": generator.integers(0, 3, queries),
        "gallery_cams": generator.integers(0, 3, gallery),
    }
    return corners[:queries], corners[queries:], labels


def oracle_firsts(
    query: Tensor, gallery: Tensor, labels: dict[str, Any], protocol: str, orders: list[list[int]]
) -> list[list[int]]:
    """For each repeat, the wrong images before the match of each query that has one."""
    distances = [[oracles.cosine_distance(q, g) for g in gallery.tolist()] for q in query.tolist()]
    pids, cams = labels["gallery_pids"].tolist(), labels["gallery_cams"].tolist()
    queries = list(zip(distances, labels["query_pids"].tolist(), labels["query_cams"].tolist(), strict=True))
    firsts = [
        [oracles.single_shot_first(row, pid, cam, pids, cams, protocol, order) for row, pid, cam in queries]
        for order in orders
    ]
    return [[first for first in row if first >= 0] for row in firsts]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    protocol=st.sampled_from(sorted(PROTOCOLS)),
    block=st.sampled_from([1, 3, 256]),
)
def test_single_gallery_shot_equals_the_loops(seed: int, protocol: str, block: int) -> None:
    query, gallery, labels = draw_search(seed)
    generator = np.random.default_rng(seed)
    firsts = oracle_firsts(
        query, gallery, labels, protocol, [generator.permutation(len(gallery)).tolist() for _ in range(4)]
    )
    assume(firsts[0])
    options: dict[str, Any] = {
        "protocol": protocol,
        "ranks": (1, 2, 9),
        "repeats": 4,
        "seed": seed,
        "block": block,
    }
    found = single_gallery_shot(query, gallery, **labels, **options)
    assert (found.counted, found.skipped) == (len(firsts[0]), len(query) - len(firsts[0]))
    expected = [[np.mean([first < rank for first in row]) for rank in (1, 2, 9)] for row in firsts]
    np.testing.assert_allclose(found.by_repeat, expected, atol=1e-12)


def test_single_gallery_shot_averages_to_the_mean_over_all_draws() -> None:
    query, gallery, labels = draw_search(5, queries=6, gallery=9)
    labels["gallery_pids"] = np.array([1, 1, 2, 2, 2, 3, 4, -1, 0])
    labels["query_pids"] = np.array([1, 2, 3, 4, 1, 2])
    images = [np.flatnonzero(labels["gallery_pids"] == pid).tolist() for pid in (0, 1, 2, 3, 4)]
    firsts = oracle_firsts(query, gallery, labels, "any-camera", [list(kept) for kept in product(*images)])
    expected = {rank: np.mean([[first < rank for first in row] for row in firsts]) for rank in (1, 2, 3)}
    assert len({first for row in firsts for first in row}) > 2
    found = single_gallery_shot(query, gallery, **labels, protocol="any-camera", ranks=(1, 2, 3), repeats=3000)
    assert found.cmc == pytest.approx(expected, abs=0.03)


def test_one_image_per_identity_needs_no_draw_and_equals_the_ranking() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(20, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels: dict[str, Any] = {
        "query_pids": list(range(1, 21)),
        "gallery_pids": list(range(1, 21)),
        "query_cams": [1] * 20,
        "gallery_cams": [2] * 20,
    }
    found = single_gallery_shot(query, gallery, **labels, repeats=5)
    assert (found.by_repeat == found.by_repeat[0]).all()
    assert found.cmc == pytest.approx(rank(query, gallery, **labels).cmc())


def test_a_known_small_case() -> None:
    # Identity 1 has a near and a far image, identity 2 one in between: half of the draws find it at rank 1.
    gallery = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 1.0]])
    labels: dict[str, Any] = {"query_pids": [1], "gallery_pids": [1, 1, 2], "protocol": "any-camera"}
    found = single_gallery_shot(torch.tensor([[1.0, 0.0]]), gallery, **labels, ranks=(1, 2), repeats=400)
    assert set(found.by_repeat[:, 0].tolist()) == {0.0, 1.0}
    assert found.cmc == pytest.approx({1: 0.5, 2: 1.0}, abs=0.1)
    assert (found.by_repeat[:, 1] == 1).all()


def test_ranks_beyond_the_number_of_identities_hold() -> None:
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels: dict[str, Any] = {"query_pids": [1], "gallery_pids": [1, 2], "protocol": "any-camera"}
    found = single_gallery_shot(torch.tensor([[1.0, 0.0]]), gallery, **labels, ranks=(1, 2, 3, 50), repeats=2)
    assert found.cmc == {1: 0.0, 2: 1.0, 3: 1.0, 50: 1.0}


def test_same_seed_equal_other_seed_different_and_global_state_untouched() -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(40, 8, generator=generator), torch.randn(200, 8, generator=generator)
    labels: dict[str, Any] = {"query_pids": [1, 2, 3, 4] * 10, "gallery_pids": [0, 1, 2, 3, 4] * 40}
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    first, again, other = (
        single_gallery_shot(query, gallery, **labels, protocol="any-camera", repeats=10, seed=seed).by_repeat
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)  # noqa: NPY002


def test_more_repeats_keep_the_first_ones() -> None:
    query, gallery, labels = draw_search(2)
    few, many = (single_gallery_shot(query, gallery, **labels, repeats=repeats).by_repeat for repeats in (3, 12))
    np.testing.assert_array_equal(few, many[:3])


def test_bad_input_is_refused() -> None:
    query, gallery, labels = draw_search(3)
    options: dict[str, Any]
    for options in ({"repeats": 0}, {"ranks": (1, 0)}, {"block": 0}):
        with pytest.raises(RecipeError, match="must all be positive"):
            single_gallery_shot(query, gallery, **labels, **options)
    with pytest.raises(DataError, match="query features: row 0 holds NaN"):
        single_gallery_shot(query * float("nan"), gallery, **labels)
    with pytest.raises(DataError, match="needs the camera of every query"):
        single_gallery_shot(query, gallery, **{**labels, "query_cams": None})
    with pytest.raises(DataError, match="none of the 8 queries has a match"):
        single_gallery_shot(query, gallery, **{**labels, "query_pids": [9] * 8})
