"""Seeds of k-means, and the samples nearest to centroids."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from tests.ops.clustering.blobs import Array, blobs, generator, random
from uda_reid.errors import DataError
from uda_reid.ops.clustering import k_means, kmeans_plusplus, nearest_samples, points

# ---- kmeans_plusplus -----------------------------------------------------


def test_kmeans_plusplus_chooses_one_sample_of_every_separated_blob() -> None:
    features, truth = blobs(15, 10, spread=0.05)
    for seed in range(5):
        rows = kmeans_plusplus(features, 15, generator=generator(seed))
        assert sorted(truth[rows].tolist()) == list(range(15))


def test_kmeans_plusplus_rows_are_distinct_even_among_copies() -> None:
    # In 300 dimensions, rounding leaves a sample some distance to itself.
    for features in (torch.zeros(6, 3), random(2, 3).repeat(3, 1), random(6, 3), random(3, 300).repeat(20, 1)):
        rows = kmeans_plusplus(features, len(features), generator=generator())
        assert sorted(rows.tolist()) == list(range(len(features)))


def test_kmeans_plusplus_draws_by_squared_distance_and_takes_the_best_candidate() -> None:
    # From sample 0 the others weigh 1, 1 and 16, and two candidates are drawn. The far sample leaves 2,
    # either near one 10 or more, so it wins as soon as one draw hits it: 1 - (2 / 18)^2 of the time.
    features = torch.tensor([[0.0], [1.0], [-1.0], [4.0]])
    seconds = []
    for seed in range(3000):
        first, second = kmeans_plusplus(features, 2, generator=generator(seed)).tolist()
        if first == 0:
            seconds.append(second)
    assert 600 < len(seconds) < 900  # the first is uniform
    share = np.mean(np.array(seconds) == 3)
    assert share == pytest.approx(1 - (2 / 18) ** 2, abs=0.015)


def seed_law(features: Array, clusters: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of seeds: each the best of 2 + ln K independent draws by squared distance."""
    distances = ((features[:, None] - features) ** 2).sum(2)
    law = {}
    for rows in permutations(range(len(features)), clusters):
        chance, nearest = 1 / len(features), distances[rows[0]]
        for row in rows[1:]:
            left = np.minimum(distances, nearest).sum(1)
            shares = nearest / nearest.sum()
            worse, alike = shares[left > left[row]].sum(), shares[left == left[row]].sum()
            draws = 2 + int(math.log(clusters))
            # No draw is better and not all are worse; of rows as good, the one drawn first.
            chance *= ((worse + alike) ** draws - worse**draws) * shares[row] / alike
            nearest = np.minimum(nearest, distances[row])
        law[rows] = chance
    return law


@pytest.mark.parametrize("proposals", [3, 256])
def test_kmeans_plusplus_follows_the_law_of_fresh_draws_however_many_are_drawn_at_a_time(
    monkeypatch: pytest.MonkeyPatch, proposals: int
) -> None:
    # Whole numbers around 0: equal sums of distances are equal to the bit.
    rows = [[-6.0, -6, 1], [-3, -1, 4], [-5, 0, -2], [4, 0, -3], [-3, 1, 5], [13, 6, -5]]
    features = torch.tensor(rows)
    law = seed_law(features.double().numpy(), 4)
    assert sum(law.values()) == pytest.approx(1)
    monkeypatch.setattr(k_means, "PROPOSALS", proposals)  # 3 draws a seed: with 3 at a time, every one is fresh
    shared, runs = generator(1), 6000
    seen = dict.fromkeys(law, 0)
    for _ in range(runs):
        seen[tuple(kmeans_plusplus(features, 4, generator=shared).tolist())] += 1
    often = [rows for rows, chance in law.items() if chance * runs >= 5]
    rest = runs - sum(seen[rows] for rows in often), runs * (1 - sum(law[rows] for rows in often))
    cells = [(seen[rows], runs * law[rows]) for rows in often] + [rest]
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    assert 30 < len(cells) < 150
    # Chi-squared: its mean is its degrees of freedom, its variance twice that. A wrong law is far beyond.
    assert statistic < len(cells) + 4 * math.sqrt(2 * len(cells))


def test_kmeans_plusplus_seeds_better_than_chance() -> None:
    features, _ = blobs(30, 10, spread=0.5)
    ours, chance = [], []
    for seed in range(10):
        rows = kmeans_plusplus(features, 30, generator=generator(seed))
        uniform = torch.randperm(300, generator=generator(seed))[:30]
        ours.append(float(torch.cdist(features, features[rows]).amin(1).square().sum()))
        chance.append(float(torch.cdist(features, features[uniform]).amin(1).square().sum()))
    assert max(ours) < min(chance)


# ---- nearest_samples -----------------------------------------------------


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (50, 7), (3000, 40)])
def test_nearest_samples_equals_the_column_minimum_over_all_samples(count: int, clusters: int) -> None:
    features, centroids = random(count, 6) + 2, random(clusters, 6, seed=1) + 2
    differences = features.double().numpy()[:, None] - centroids.double().numpy()[None]
    expected = (differences**2).sum(2).argmin(0)
    assert nearest_samples(features, centroids).tolist() == expected.tolist()


def test_nearest_samples_takes_the_lowest_of_equal_rows_across_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = torch.tensor([[5.0], [1.0], [-1.0], [5.0]]).repeat(50, 1)
    for block in (1, 1 << 20):
        monkeypatch.setattr(points, "BLOCK", block)
        assert nearest_samples(features, torch.tensor([[0.0], [7.0]])).tolist() == [1, 0]


def test_nearest_samples_may_belong_to_another_cluster() -> None:
    # The mean of cluster 0 lies beside a sample of cluster 1.
    features = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.5]])
    labels = torch.tensor([0, 0, 1, 1])
    centroids = torch.stack([features[labels == k].mean(0) for k in (0, 1)])
    assert nearest_samples(features, centroids).tolist() == [2, 2]


def test_nearest_samples_refuses_centroids_of_another_dimension() -> None:
    with pytest.raises(DataError, match=r"centroids \(2, 3\) do not fit features \(4, 2\)"):
        nearest_samples(random(4, 2), random(2, 3))
