from __future__ import annotations

import pytest
import torch
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.training.pseudo_labels import Method, PseudoLabels, assign


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people(identities: int, each: int, *, spread: float = 0.2, dim: int = 12) -> tuple[Tensor, Tensor]:
    """Features whose direction tells the identity and whose length tells nothing."""
    truth = torch.arange(identities).repeat(each)
    directions = torch.randn(identities, dim, generator=generator(1))[truth]
    features = directions + spread * torch.randn(len(truth), dim, generator=generator(2))
    return features * torch.rand(len(truth), 1, generator=generator(3)).mul(5).add(0.1), truth


def check_centroids(found: PseudoLabels, features: Tensor) -> None:
    """The centroids are the directions of the mean directions."""
    for number in range(found.clusters):
        members = [row / row.square().sum().sqrt() for row in features[found.labels == number].double()]
        mean = torch.stack(members).mean(0)
        direction = (mean / mean.square().sum().sqrt()).float()
        torch.testing.assert_close(found.centroids[number], direction, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["kmeans", "dbscan"])
def test_assign_finds_directions_whatever_the_lengths(method: Method) -> None:
    features, truth = people(8, 6)
    found = assign(features, method=method, clusters=8, starts=5, eps=0.5, generator=generator())
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.labels.dtype == torch.int64
    assert dict(found.counts) == {"clusters": 8.0, "images": 48.0, "outliers": 0.0}
    check_centroids(found, features)
    again = assign(features * 64, method=method, clusters=8, starts=5, eps=0.5, generator=generator())
    assert torch.equal(again.labels, found.labels)


def test_dbscan_leaves_outliers_out_of_labels_and_centroids() -> None:
    features, _ = people(8, 6, spread=0.7)
    found = assign(features, method="dbscan", eps=0.7, min_samples=3, generator=generator())
    unit = torch.nn.functional.normalize(features.double())
    assert found.labels.tolist() == DBSCAN(eps=0.7, min_samples=3, algorithm="brute").fit(unit).labels_.tolist()
    outliers = int((found.labels < 0).sum())
    assert 0 < outliers < 40
    assert dict(found.counts) == {"clusters": 6.0, "images": 48.0 - outliers, "outliers": float(outliers)}
    assert (found.eps, found.steps) == (0.7, ())
    check_centroids(found, features)


def test_dbscan_without_a_radius_takes_the_mean_of_the_nearest_pairs() -> None:
    features, _ = people(40, 8, spread=0.3)
    distances = torch.pdist(torch.nn.functional.normalize(features.double())).sort().values
    expected = float(distances[: round(1.6e-3 * len(distances))].mean())
    found = assign(features, method="dbscan", min_samples=2, generator=generator())
    assert found.steps == ()
    assert found.eps == pytest.approx(expected, rel=1e-5)


def test_dbscan_changes_a_radius_that_finds_nothing_and_says_so() -> None:
    features, truth = people(8, 6)
    found = assign(features, method="dbscan", eps=0.05, generator=generator())
    assert found.eps > 0.05
    assert len(found.steps) >= 1
    assert found.clusters >= 2
    used = found.labels >= 0
    assert adjusted_rand_score(truth[used], found.labels[used]) == 1


def test_equal_features_have_no_pseudo_labels() -> None:
    found = assign(torch.ones(20, 4), method="dbscan", generator=generator())
    assert found.clusters == 0
    assert found.labels.tolist() == [-1] * 20
    assert found.centroids.shape == (0, 4)
    assert dict(found.counts) == {"clusters": 0.0, "images": 0.0, "outliers": 20.0}
    assert found.steps == ("no eps finds two clusters",)


def test_kmeans_draws_from_the_generator_and_dbscan_does_not() -> None:
    features, _ = people(20, 3, spread=1.0)
    kmeans = [assign(features, method="kmeans", clusters=15, generator=generator(seed)).labels for seed in (0, 0, 1)]
    assert torch.equal(kmeans[0], kmeans[1])
    assert not torch.equal(kmeans[0], kmeans[2])
    unused = generator()
    assign(features, method="dbscan", eps=0.9, generator=unused)
    assert torch.equal(unused.get_state(), generator().get_state())


def test_kmeans_keeps_the_best_of_its_starts() -> None:
    features, _ = people(20, 3, spread=1.0)
    unit = torch.nn.functional.normalize(features.double())

    def inertia(starts: int) -> float:
        labels = assign(features, method="kmeans", clusters=15, starts=starts, generator=generator()).labels
        groups = [unit[labels == number] for number in range(15)]
        return sum(float((group - group.mean(0)).square().sum()) for group in groups)

    assert inertia(20) < inertia(1)


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"^cannot make 21 clusters of 20 samples; choose from 1 to 20 clusters$"):
        assign(torch.ones(20, 4), method="kmeans", clusters=21, generator=generator())
