from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering import automatic_eps, dbscan, density, points


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(features: Tensor, eps: float, min_samples: int) -> list[int]:
    rows = features.tolist()
    return oracles.density_clusters([[math.dist(one, other) for other in rows] for one in rows], eps, min_samples)


def scikit_learn(features: Tensor, eps: float, min_samples: int) -> list[int]:
    found: list[int] = (
        DBSCAN(eps=eps, min_samples=min_samples, algorithm="brute").fit_predict(features.double()).tolist()
    )
    return found


# On a grid of whole numbers many distances are equal to eps, and many rows are copies.
GRIDS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


@given(GRIDS, st.sampled_from([0.5, 1.0, math.sqrt(2), 2.0, 2.5, 10.0]), st.integers(1, 6))
def test_dbscan_equals_scikit_learn_and_the_definition(grid: list[tuple[int, int]], eps: float, samples: int) -> None:
    features = torch.tensor(grid, dtype=torch.float32)
    labels = dbscan(features, eps=eps, min_samples=samples).tolist()
    assert labels == scikit_learn(features, eps, samples)
    assert labels == by_definition(features, eps, samples)


@pytest.mark.parametrize("dim", [2, 64, 700])
def test_dbscan_equals_scikit_learn_on_directions(dim: int) -> None:
    people = random(40, dim, seed=1)[torch.arange(400) % 40] + 0.8 * random(400, dim, seed=2)
    features = torch.nn.functional.normalize(people)
    middle = float(torch.pdist(features).quantile(0.02))
    for eps in (0.8 * middle, middle, 1.3 * middle):
        labels = dbscan(features, eps=eps, min_samples=4)
        assert labels.tolist() == scikit_learn(features, eps, 4)
        assert labels.dtype == torch.int64


def test_a_row_between_two_clusters_belongs_to_the_first() -> None:
    # Row 0 is no core and lies within 1 of a core of either cluster; the first core is row 1, on the right.
    features = torch.tensor([[0.0], [1.0], [1.5], [2.0], [-1.0], [-1.5], [-2.0]])
    assert dbscan(features, eps=1.0, min_samples=4).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert dbscan(features.flip(0), eps=1.0, min_samples=4).tolist() == [0, 0, 0, 1, 1, 1, 0]


def test_dbscan_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random(500, 6)
    eps = float(torch.pdist(features).quantile(0.003))
    whole = dbscan(features, eps=eps, min_samples=3)
    radius = automatic_eps(features)
    assert int(whole.max()) > 5
    monkeypatch.setattr(points, "BLOCK", 1)  # 64 rows at a time
    monkeypatch.setattr(density, "BLOCK", 1)
    assert torch.equal(dbscan(features, eps=eps, min_samples=3), whole)
    assert automatic_eps(features) == pytest.approx(radius, rel=1e-6)


def test_dbscan_measures_pairs_at_the_border_exactly() -> None:
    # Far from the origin a float32 product is off by more than what separates these pairs from eps.
    for inside, expected in ((1.0, 0), (1.0 + 2**-12, -1)):
        features = torch.tensor([[0.0, 1000.0], [inside, 1000.0], [800.0, -900.0]])
        assert dbscan(features, eps=1.0, min_samples=2).tolist() == [expected, expected, -1]


@pytest.mark.parametrize("scale", [2.0**-30, 3.0, 2.0**30])
def test_dbscan_follows_scale_rotation_and_order(scale: float) -> None:
    features = random(200, 4)
    eps = float(torch.pdist(features).quantile(0.015))
    plain = dbscan(features, eps=eps, min_samples=3)
    assert torch.equal(dbscan(features * scale, eps=eps * scale, min_samples=3), plain)
    rotation = torch.linalg.qr(random(4, 4, seed=3)).Q
    assert torch.equal(dbscan(features @ rotation + 5, eps=eps, min_samples=3), plain)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = dbscan(features[order], eps=eps, min_samples=3)
    assert torch.equal(shuffled < 0, plain[order] < 0)
    assert adjusted_rand_score(shuffled, plain[order]) > 0.95  # rows between two clusters may go to the other


def test_clusters_are_numbered_from_zero_and_all_occur() -> None:
    labels = dbscan(random(300, 3), eps=0.4, min_samples=4)
    assert sorted(set(labels.tolist())) == list(range(-1, int(labels.max()) + 1))


def test_one_row_alone_is_noise_or_its_own_cluster() -> None:
    assert dbscan(torch.zeros(1, 2), eps=0.0, min_samples=1).tolist() == [0]
    assert dbscan(torch.zeros(1, 2), eps=0.0, min_samples=2).tolist() == [-1]


def test_automatic_eps_is_the_mean_of_the_nearest_pairs() -> None:
    features = torch.cat([random(60, 5), random(60, 5)[:7]])  # with seven copies
    distances = np.sort([math.dist(a.tolist(), b.tolist()) for a, b in combinations(features, 2)])
    apart = distances[distances > 0]
    assert len(distances) - len(apart) == 7
    for share in (1e-6, 1.6e-3, 0.1, 1.0):
        expected = apart[: max(1, round(share * len(apart)))].mean()
        assert automatic_eps(features, share=share) == pytest.approx(expected, rel=1e-5)
        assert automatic_eps(1024 * features, share=share) == pytest.approx(1024 * expected, rel=1e-5)


def test_automatic_eps_of_equal_rows_is_zero() -> None:
    assert automatic_eps(torch.ones(5, 3)) == 0.0
    assert automatic_eps(torch.ones(1, 3)) == 0.0


def test_density_refuses_bad_input() -> None:
    features = random(5, 2)
    for eps, samples in ((-0.1, 4), (math.nan, 4), (math.inf, 4), (0.5, 0)):
        with pytest.raises(RecipeError, match=rf"DBSCAN with eps {eps} and min_samples {samples} cannot be; use at"):
            dbscan(features, eps=eps, min_samples=samples)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(RecipeError, match=rf"a share of {share} of the pairs is out of range"):
            automatic_eps(features, share=share)
    for broken in (features[:, 0], features[:0], features.long(), torch.full((2, 2), math.nan)):
        with pytest.raises(DataError, match="features"):
            dbscan(broken, eps=1.0)
        with pytest.raises(DataError, match="features"):
            automatic_eps(broken)


def test_automatic_eps_counts_near_rows_and_leaves_out_equal_ones() -> None:
    base = torch.nn.functional.normalize(random(40, 512))
    near = torch.nn.functional.normalize(base + 1e-4 * random(40, 512, seed=1))
    features = torch.cat([base, near, near[:5]])
    distances = torch.pdist(features.double())
    apart = distances[distances > 0].sort().values
    expected = float(apart[: max(1, round(0.01 * len(apart)))].mean())
    assert expected < 0.01
    assert automatic_eps(features, share=0.01) == pytest.approx(expected, rel=1e-3)
