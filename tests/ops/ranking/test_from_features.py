from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor

from tests import oracles
from tests.ops.ranking.searches import NAMES, Search, assert_equal, assert_identical, people
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import cosine_blocks, cosine_distances, directions, product_strips
from uda_reid.ops.ranking import Ranking, rank, rank_distances

MEASURES = ("average_precision", "average_precision_step", "average_precision_merged", "inverse_penalty", "first")


def matches_of(labels: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The number of each query's matches under `market`."""
    same = labels["query_pids"][:, None] == labels["gallery_pids"]
    counts: np.ndarray[Any, np.dtype[np.int64]] = (
        same & (labels["query_cams"][:, None] != labels["gallery_cams"])
    ).sum(axis=1)
    return counts


def differing(a: Ranking, b: Ranking) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which queries another result was found for."""
    pairs = [(getattr(a, name)[a.valid], getattr(b, name)[a.valid]) for name in MEASURES]
    found = np.zeros(len(a.valid), dtype=np.bool_)
    found[a.valid] = np.any([one != other for one, other in pairs], axis=0)
    return found


def check_flips_are_near(a: Ranking, b: Ranking, labels: dict[str, Any]) -> int:
    """Check that only queries with a near pair differ, and no more than their number allows; return how many do."""
    np.testing.assert_array_equal(a.valid, b.valid)
    differ = differing(a, b)
    assert (a.near[differ] > 0).all()
    assert (b.near[differ] > 0).all()
    # A flip moves a match by one place, which changes the precision there, and so one term of n, by at most 1.
    most = np.maximum(a.near, b.near)[a.valid] / matches_of(labels)[a.valid]
    for name in ("average_precision", "average_precision_step"):
        assert (np.abs(getattr(a, name) - getattr(b, name))[a.valid] <= most + 1e-12).all()
    assert (np.abs(a.first - b.first) <= np.maximum(a.near, b.near)).all()
    return int(differ.sum())


# the same as the loops, and as given distances


@pytest.mark.parametrize("block", [1, 7, 256])
@pytest.mark.parametrize("protocol", NAMES)
def test_rank_equals_the_loops_on_cosine_distances(block: int, protocol: str) -> None:
    generator = torch.Generator().manual_seed(3)
    query, gallery = torch.randn(9, 6, generator=generator), torch.randn(40, 6, generator=generator)
    search = Search(
        distances=[[oracles.cosine_distance(q, g) for g in gallery.tolist()] for q in query.tolist()],
        query_pids=[1, 2, 3] * 3,
        gallery_pids=[-1, 0, 1, 2, 3] * 8,
        query_cams=[1, 2, 3, 2, 3, 1, 3, 1, 2],
        gallery_cams=[camera for camera in (1, 2, 3, 1) for _ in range(10)],
        protocol=protocol,
    )
    labels: dict[str, Any] = {key: value for key, value in vars(search).items() if key not in ("distances", "dtype")}
    rates = (0.01, 0.1, 0.5)
    found = rank(query, gallery * 17, **labels, rates=rates, memory=block * 160)
    assert_equal([found], [search.by_loops(rates)])


@pytest.mark.parametrize("protocol", NAMES)
def test_rank_equals_ranking_by_the_distances_where_these_are_exact(protocol: str) -> None:
    generator = np.random.default_rng(4)
    corners = torch.from_numpy(generator.choice([-1.0, 1.0], (90, 16))).float()  # of length 4
    query, gallery = corners[:30] / 4, corners[30:]
    labels: dict[str, Any] = {
        "query_pids": generator.integers(1, 5, 30),
        "gallery_pids": generator.integers(-1, 5, 60),
        "query_cams": generator.integers(0, 3, 30),
        "gallery_cams": generator.integers(0, 3, 60),
        "protocol": protocol,
        "rates": (0.01, 0.3, 1.0),
    }
    expected = rank_distances([cosine_distances(query, gallery)], **labels)
    assert expected.ties > 20
    for rows in (1, 7, 30):
        assert_identical(expected, rank(query, gallery, **labels, memory=rows * 240))


@pytest.mark.parametrize("protocol", NAMES)
@pytest.mark.parametrize("rows", [1, 7, 30])
def test_rank_equals_ranking_by_the_same_blocks_to_the_last_bit(rows: int, protocol: str) -> None:
    query, gallery, labels = people(7, queries=30, gallery=200, dimensions=24, identities=8, noise=1.0)
    gallery[:60] = query.repeat(2, 1) * torch.linspace(0.1, 9, 60)[:, None]  # at distance 0 but for rounding
    towards, memory = directions(gallery), rows * 800
    below = torch.cat([1 - strip * towards.scale for strip in product_strips(query, towards, memory=memory)]) < 0
    assert below.any()  # and is cut off
    expected = rank_distances(cosine_blocks(query, gallery, memory=memory), **labels, protocol=protocol)
    assert_identical(expected, rank(query, gallery, **labels, protocol=protocol, memory=memory))


# rounding


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_another_memory_changes_the_mean_by_less_than_a_millionth(rows: int) -> None:
    query, gallery, labels = people(0, queries=200, gallery=2000, dimensions=512, identities=60, noise=3.0)
    whole = rank(query, gallery, **labels)
    assert 0.3 < whole.mean(whole.average_precision) < 0.5
    strips = rank(query, gallery, **labels, memory=rows * 8000)
    check_flips_are_near(whole, strips, labels)
    for name in MEASURES[:4]:
        assert strips.mean(getattr(strips, name)) == pytest.approx(whole.mean(getattr(whole, name)), abs=1e-6)


def test_double_precision_changes_the_mean_by_less_than_a_millionth() -> None:
    query, gallery, labels = people(1, queries=200, gallery=2000, dimensions=512, identities=60, noise=3.0)
    a, b = (x.double() / torch.linalg.vector_norm(x.double(), dim=1, keepdim=True) for x in (query, gallery))
    single, double = rank(query, gallery, **labels), rank_distances([1 - a @ b.T], **labels)
    check_flips_are_near(single, double, labels)
    assert single.mean(single.average_precision) == pytest.approx(double.mean(double.average_precision), abs=1e-6)
    for rate, share in double.accepted.items():
        assert single.accepted[rate] == pytest.approx(share, abs=1e-3)


def test_results_that_rounding_flips_are_flagged_as_near() -> None:
    # Every image has a double, mostly of another identity, farther or nearer by a rounding error.
    query, gallery, labels = people(2, queries=100, gallery=300, dimensions=256, identities=20, noise=2.0)
    noise = torch.randn(gallery.shape, generator=torch.Generator().manual_seed(0))
    gallery = torch.cat([gallery, gallery + 1e-6 * noise])
    labels["gallery_pids"] = np.concatenate([labels["gallery_pids"], labels["gallery_pids"] % 19 + 1])
    labels["gallery_cams"] = np.tile(labels["gallery_cams"], 2)
    turn = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(1)))[0]
    ranking = rank(query, gallery, **labels)
    flipped = check_flips_are_near(ranking, rank(query @ turn, gallery @ turn, **labels), labels)
    assert flipped > 50
    check_flips_are_near(ranking, rank(query, gallery, **labels, memory=2400), labels)


def test_noise_of_a_few_units_in_the_last_place_flips_only_what_is_flagged() -> None:
    generator = np.random.default_rng(5)
    _, _, labels = people(5, queries=80, gallery=400, dimensions=1, identities=10, noise=1.0)
    levels = 0.5 + generator.integers(0, 64, (80, 400)) / 128
    one, other = (levels + generator.integers(-3, 4, levels.shape) * 2**-24 for _ in range(2))
    noisy = rank_distances([torch.from_numpy(one).float()], **labels)
    assert check_flips_are_near(noisy, rank_distances([torch.from_numpy(other).float()], **labels), labels) > 50
    exact = rank_distances([torch.from_numpy(levels)], **labels)
    assert (exact.near == noisy.near).all()  # what is equal up to rounding is near, and nothing else
    assert exact.near.sum() > 1000


# what must not matter where no pair is near


def turned(query: Tensor, gallery: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    turn = torch.linalg.qr(torch.randn(query.shape[1], query.shape[1], generator=generator))[0]
    return query @ turn, gallery @ turn


def scaled(query: Tensor, gallery: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    query, gallery = (x * 10 ** (6 * torch.rand(len(x), 1, generator=generator) - 3) for x in (query, gallery))
    return query, gallery


def far_scaled(query: Tensor, gallery: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    query, gallery = (x * 10 ** (60 * torch.rand(len(x), 1, generator=generator) - 30) for x in (query, gallery))
    return query, gallery


def padded(query: Tensor, gallery: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    width = int(torch.randint(1, 9, (1,), generator=generator))
    return torch.nn.functional.pad(query, (0, width)), torch.nn.functional.pad(gallery, (width, 0)).roll(-width, 1)


@pytest.mark.parametrize("change", [turned, scaled, far_scaled, padded])
@limits(max_examples=40)
@given(seed=st.integers(0, 10_000), protocol=st.sampled_from(NAMES))
def test_rank_does_not_change_without_near_pairs(
    change: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]], seed: int, protocol: str
) -> None:
    query, gallery, labels = people(seed, queries=8, gallery=60, dimensions=16, identities=5, noise=1.0)
    ranking = rank(query, gallery, **labels, protocol=protocol)
    assume(not ranking.near.any())
    other = rank(*change(query, gallery, torch.Generator().manual_seed(seed)), **labels, protocol=protocol)
    for name in (*MEASURES, "valid", "tied"):
        np.testing.assert_allclose(getattr(other, name), getattr(ranking, name), rtol=0, atol=1e-12, err_msg=name)


@limits(max_examples=40)
@given(seed=st.integers(0, 10_000), protocol=st.sampled_from(NAMES))
def test_the_gallerys_order_does_not_matter_without_near_pairs(seed: int, protocol: str) -> None:
    query, gallery, labels = people(seed, queries=8, gallery=60, dimensions=16, identities=5, noise=1.0)
    ranking = rank(query, gallery, **labels, protocol=protocol)
    assume(not ranking.near.any())
    order = np.random.default_rng(seed).permutation(60)
    mixed = {name: column[order] if name.startswith("gallery") else column for name, column in labels.items()}
    other = rank(query, gallery[torch.from_numpy(order)], **mixed, protocol=protocol)
    for name in (*MEASURES, "valid", "tied"):
        np.testing.assert_allclose(getattr(other, name), getattr(ranking, name), rtol=0, atol=1e-12, err_msg=name)


# what features may be


@pytest.mark.parametrize("length", [1e-38, 1e-30, 1e-13, 1.0, 1e13, 1e30])
def test_features_of_any_length_are_ranked_by_their_direction(length: float) -> None:
    # A row of zeros (at distance 1), a near wrong image, the match, and a wrong image behind the query.
    gallery = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.0, 1.0]])
    gallery[2] *= length
    labels: dict[str, Any] = {"query_pids": [1], "gallery_pids": [0, 2, 1, 3], "protocol": "any-camera"}
    for scale in (1e-38, 1e-30, 1.0, 1e30):
        assert rank(torch.tensor([[scale, 0.0, 0.0]]), gallery, **labels).first.tolist() == [1]
    zeros = rank(torch.zeros(1, 3), gallery, **labels)
    assert (zeros.tied[0], zeros.near[0], zeros.average_precision_merged[0]) == (True, 3, 0.25)


def test_rank_leaves_the_features_as_they_are() -> None:
    query, gallery = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    rank(query, gallery, query_pids=[1, 1], gallery_pids=[1, 2, 1, 2], protocol="any-camera")
    assert torch.equal(query, torch.arange(6.0).view(2, 3))
    assert torch.equal(gallery, torch.arange(12.0).view(4, 3))


def test_features_that_hold_gradients_or_lie_apart_are_ranked_by_their_values() -> None:
    query, gallery, labels = people(6, queries=8, gallery=40, dimensions=8, identities=5, noise=1.0)
    expected = rank(query, gallery, **labels)
    assert_identical(expected, rank(query.clone().requires_grad_(), gallery.clone().requires_grad_(), **labels))
    found = rank(query.T.contiguous().T, gallery.repeat(1, 2)[:, :8], **labels)
    assert not differing(expected, found)[expected.near == 0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    query, gallery = torch.ones(3, 2), torch.ones(4, 2)
    labels: dict[str, Any] = {"query_pids": [1, 1, 1], "gallery_pids": [1, 1, 0, 0], "protocol": "any-camera"}
    broken = query.clone()
    broken[2, 1] = bad
    with pytest.raises(DataError, match="query features: row 2 holds NaN or infinity"):
        rank(broken, gallery, **labels)
    broken = gallery.clone()
    broken[3, 0] = bad
    with pytest.raises(DataError, match="gallery features: row 3 holds NaN or infinity"):
        rank(query, broken, **labels)


def test_rank_refuses_unfitting_features_and_too_little_memory() -> None:
    labels: dict[str, Any] = {"query_pids": [1, 1], "gallery_pids": [1, 2, 1], "protocol": "any-camera"}
    with pytest.raises(DataError, match="query features have 3 dimensions, gallery features 2"):
        rank(torch.ones(2, 3), torch.ones(3, 2), **labels)
    with pytest.raises(DataError, match="5 query features but 2 query_pids"):
        rank(torch.ones(5, 3), torch.ones(3, 3), **labels)
    with pytest.raises(DataError, match="2 gallery features but 3 gallery_pids"):
        rank(torch.ones(2, 3), torch.ones(2, 3), **labels)
    with pytest.raises(DataError, match=r"gallery features: shape \(0, 3\) is empty"):
        rank(torch.ones(2, 3), torch.ones(0, 3), **labels)
    with pytest.raises(RecipeError, match="memory of 11 bytes is too small: one row takes 12"):
        rank(torch.ones(2, 3), torch.ones(3, 3), **labels, memory=11)
    with pytest.raises(RecipeError, match="a false-positive rate of 0 is out of range"):
        rank(torch.ones(2, 3), torch.ones(3, 3), **labels, rates=(0,))
