from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.ops.clustering import climb_graph, nearest_pairs_eps
from uda_reid.ops.distance import normalise
from uda_reid.ops.jaccard import encode_features, jaccard
from uda_reid.training.pseudo_labels import REACH, Distance, Method, PseudoLabels, assign


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


@pytest.mark.parametrize(
    ("method", "distance"), [("kmeans", "jaccard"), ("dbscan", "jaccard"), ("dbscan", "euclidean")]
)
def test_assign_finds_directions_whatever_the_lengths(method: Method, distance: Distance) -> None:
    features, truth = people(8, 6)
    options: dict[str, Any] = {"clusters": 8, "starts": 5, "eps": 0.5, "k1": 6, "k2": 2, "distance": distance}
    found = assign(features, method=method, generator=generator(), **options)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.labels.dtype == torch.int64
    assert dict(found.counts) == {"clusters": 8.0, "images": 48.0, "outliers": 0.0}
    check_centroids(found, features)
    again = assign(features * 64, method=method, generator=generator(), **options)
    assert torch.equal(again.labels, found.labels)


def test_dbscan_leaves_outliers_out_of_labels_and_centroids() -> None:
    features, _ = people(8, 6, spread=0.7)
    found = assign(features, method="dbscan", distance="euclidean", eps=0.7, min_samples=3, generator=generator())
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
    found = assign(features, method="dbscan", distance="euclidean", min_samples=2, generator=generator())
    assert found.steps == ()
    assert found.eps == pytest.approx(expected, rel=1e-5)


def test_dbscan_changes_a_radius_that_finds_nothing_and_says_so() -> None:
    features, truth = people(8, 6)
    found = assign(features, method="dbscan", distance="euclidean", eps=0.05, generator=generator())
    assert found.eps > 0.05
    assert len(found.steps) >= 1
    assert found.clusters >= 2
    used = found.labels >= 0
    assert adjusted_rand_score(truth[used], found.labels[used]) == 1


def jaccard_matrix(features: Tensor, k1: int, k2: int) -> npt.NDArray[np.float32]:
    """All Jaccard distances of the features' directions."""
    graph = jaccard(encode_features(normalise(features), k1=k1, k2=k2, reading="zhong"))
    matrix = np.ones(graph.shape, dtype=np.float32)
    matrix[np.repeat(np.arange(len(matrix)), np.diff(graph.indptr)), graph.indices] = graph.data
    return matrix


def test_dbscan_by_jaccard_distance_equals_scikit_learn_on_the_whole_matrix() -> None:
    features, _ = people(12, 8, spread=0.9)
    matrix = jaccard_matrix(features, 10, 3)
    found = assign(features, method="dbscan", k1=10, k2=3, eps=0.6, min_samples=3, generator=generator())
    expected = DBSCAN(eps=0.6, min_samples=3, metric="precomputed").fit_predict(matrix)
    assert found.labels.tolist() == expected.tolist()
    assert found.steps == () and 0 < found.counts["outliers"] < 60 and found.clusters > 4
    check_centroids(found, features)


def test_dbscan_by_jaccard_distance_takes_the_mean_of_the_nearest_pairs() -> None:
    features, _ = people(40, 8, spread=0.3)
    distances = np.sort(jaccard_matrix(features, 20, 6)[np.triu_indices(320, 1)])
    distances = distances[distances > 0]
    found = assign(features, method="dbscan", min_samples=2, generator=generator())
    assert found.eps == pytest.approx(distances[: round(1.6e-3 * len(distances))].mean(), rel=1e-5)


def test_the_automatic_jaccard_radius_looks_beyond_the_kept_distances() -> None:
    features = torch.randn(3000, 64, generator=generator(5)) * 2
    features += torch.randn(300, 64, generator=generator(6)).repeat(10, 1)
    graph = jaccard(encode_features(normalise(features), k1=20, k2=6, reading="zhong"))
    assert np.sort(graph.data[graph.data > 0])[: round(2 * 1.6e-3 * 3000 * 2999 / 2)].max() > REACH
    found = assign(features, method="dbscan", generator=generator())
    begun = nearest_pairs_eps(graph)
    exact = climb_graph(graph, eps=begun)
    assert found.steps == exact.steps and found.eps == exact.eps
    assert torch.equal(found.labels, exact.labels)


def test_a_jaccard_radius_that_finds_nothing_is_changed_and_one_beyond_the_kept_distances_reaches_them() -> None:
    features, _ = people(8, 6)
    found = assign(features, method="dbscan", k1=6, k2=2, eps=1e-4, generator=generator())
    assert found.eps > 1e-3 and len(found.steps) > 3 and found.clusters > 1
    features, _ = people(12, 6, spread=0.6)
    wide = assign(features, method="dbscan", k1=5, k2=1, eps=0.85, min_samples=4, generator=generator())
    expected = DBSCAN(eps=0.85, min_samples=4, metric="precomputed").fit_predict(jaccard_matrix(features, 5, 1))
    assert wide.steps == () and wide.labels.tolist() == expected.tolist()
    inner = DBSCAN(eps=REACH, min_samples=4, metric="precomputed").fit_predict(jaccard_matrix(features, 5, 1))
    assert inner.tolist() != expected.tolist()


@pytest.mark.parametrize("distance", ["jaccard", "euclidean"])
def test_equal_features_have_no_pseudo_labels(distance: Distance) -> None:
    found = assign(torch.ones(20, 4), method="dbscan", distance=distance, generator=generator())
    assert found.clusters == 0
    assert found.labels.tolist() == [-1] * 20
    assert found.centroids.shape == (0, 4)
    assert dict(found.counts) == {"clusters": 0.0, "images": 0.0, "outliers": 20.0}
    assert found.steps == ("no eps finds two clusters: all rows are left as outliers",)


def test_kmeans_draws_from_the_generator_and_dbscan_does_not() -> None:
    features, _ = people(20, 3, spread=1.0)
    kmeans = [assign(features, method="kmeans", clusters=15, generator=generator(seed)).labels for seed in (0, 0, 1)]
    assert torch.equal(kmeans[0], kmeans[1])
    assert not torch.equal(kmeans[0], kmeans[2])
    unused = generator()
    assign(features, method="dbscan", distance="euclidean", eps=0.9, generator=unused)
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


def test_embeddings_that_have_collapsed_are_said_to_be_alike() -> None:
    features = torch.eye(6)[torch.arange(12) % 2]
    found = assign(features, method="kmeans", clusters=4, generator=torch.Generator().manual_seed(0))
    assert found.steps == ("only 2 of the 4 clusters differ: the others are parts of equal rows",)
    apart = assign(torch.eye(6), method="kmeans", clusters=4, generator=torch.Generator().manual_seed(0))
    assert apart.steps == ()
