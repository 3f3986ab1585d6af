from __future__ import annotations

import builtins
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from tests.ops.clustering.blobs import Array, blobs, generator, random
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.clustering import KMeans, cluster_means, k_means, kmeans, kmeans_plusplus, nearest_samples, points


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many tiny matrix products: on a busy machine, threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def brute_force_lloyd(points: Array, centroids: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Lloyd in float64 over explicit differences, until nothing moves; no cluster may become empty."""
    while True:
        labels = ((points[:, None] - centroids[None]) ** 2).sum(2).argmin(1)
        moved = np.stack([points[labels == k].mean(0) for k in range(len(centroids))])
        if np.array_equal(moved, centroids):
            return centroids, labels.astype(np.int64)
        centroids = moved


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize(("count", "dim", "clusters"), [(60, 2, 3), (300, 16, 20), (500, 5, 7)])
def test_kmeans_equals_scikit_learn_and_brute_force_from_the_same_seeds(
    count: int, dim: int, clusters: int, backend: Any
) -> None:
    features = random(count, dim) + 3
    exact = features.double().numpy()
    seeds = exact[kmeans_plusplus(features, clusters, generator=generator(1)).numpy()]
    found = kmeans(features, clusters, generator=generator(1), backend=backend)
    reference = SklearnKMeans(clusters, init=seeds, n_init=1, tol=0, algorithm="lloyd").fit(exact)
    assert found.labels.tolist() == reference.labels_.tolist()
    np.testing.assert_allclose(found.centroids, reference.cluster_centers_, atol=1e-5)
    assert found.inertia == pytest.approx(float(reference.inertia_), rel=1e-6)
    assert found.converged
    centroids, labels = brute_force_lloyd(exact, seeds)
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.centroids, centroids, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_kmeans_finds_separated_blobs_and_says_what_it_returns(dtype: torch.dtype) -> None:
    features, truth = blobs(12, 20)
    found = kmeans(features.to(dtype), 12, generator=generator())
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.centroids.dtype == torch.float32
    assert found.centroids.shape == (12, 8)
    assert found.labels.dtype == torch.int64
    own = features.to(dtype).double() - found.centroids[found.labels].double()
    assert found.inertia == pytest.approx(float(own.square().sum()), rel=1e-5)


def test_kmeans_depends_on_the_generator_alone_to_the_bit() -> None:
    features = random(200, 6)
    before, state = features.clone(), torch.get_rng_state()
    first, second, other = (kmeans(features, 9, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.labels, second.labels)
    assert (first.inertia, first.iterations) == (second.inertia, second.iterations)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(features, before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("scale", [2.0**-90, 0.1, 3.0, 2.0**60])
def test_kmeans_labels_are_invariant_to_scale(scale: float) -> None:
    features, _ = blobs(8, 15, spread=1.0)
    plain, scaled = (
        kmeans(features, 8, generator=generator()),
        kmeans(features * scale, 8, generator=generator()),
    )
    assert torch.equal(plain.labels, scaled.labels)
    assert scaled.inertia == pytest.approx(plain.inertia * scale**2, rel=1e-5)
    torch.testing.assert_close(scaled.centroids / scale, plain.centroids, rtol=1e-5, atol=1e-5)


def test_kmeans_labels_are_invariant_to_rotation_and_translation() -> None:
    features, _ = blobs(8, 15, spread=1.0)
    plain = kmeans(features, 8, generator=generator())
    rotation = torch.linalg.qr(random(8, 8, seed=3)).Q
    for moved in (features @ rotation, features + 1000.0):
        assert torch.equal(plain.labels, kmeans(moved, 8, generator=generator()).labels)


def test_kmeans_keeps_the_best_of_its_starts() -> None:
    features = random(300, 4)
    shared = generator(5)
    single = [kmeans(features, 15, generator=shared) for _ in range(6)]
    best = min(single, key=lambda found: found.inertia)
    assert best.inertia < single[0].inertia
    found = kmeans(features, 15, generator=generator(5), starts=6)
    assert found.inertia == best.inertia
    assert torch.equal(found.labels, best.labels)


def test_kmeans_inertia_falls_with_every_iteration() -> None:
    features = random(400, 6)
    results = [kmeans(features, 20, generator=generator(), iterations=count) for count in range(1, 50)]
    inertias = [found.inertia for found in results]
    assert all(later <= earlier for earlier, later in pairwise(inertias))
    assert not results[0].converged
    assert results[-1].converged
    last = results[-1].iterations
    assert 3 < last < 49
    assert [found.iterations for found in results] == [min(count, last) for count in range(1, 50)]
    for found in (results[0], results[-1]):
        nearest = torch.cdist(features, found.centroids).argmin(1)
        assert torch.equal(found.labels, nearest)  # the labels belong to the centroids, converged or not


def test_kmeans_stops_earlier_with_a_tolerance() -> None:
    features = random(400, 6)
    exact, loose = (kmeans(features, 20, generator=generator(), tolerance=t) for t in (0.0, 0.5))
    assert loose.converged
    assert loose.iterations < exact.iterations


def test_kmeans_of_as_many_clusters_as_samples_gives_each_sample_its_own() -> None:
    features = random(40, 5)
    found = kmeans(features, 40, generator=generator())
    assert sorted(found.labels.tolist()) == list(range(40))
    torch.testing.assert_close(found.centroids[found.labels], features)
    assert found.inertia == pytest.approx(0, abs=1e-9)


def test_kmeans_of_one_cluster_is_the_mean() -> None:
    features = random(50, 3)
    found = kmeans(features, 1, generator=generator())
    torch.testing.assert_close(found.centroids[0], features.double().mean(0).float())
    assert not found.labels.any()


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_kmeans_fills_every_cluster_even_with_fewer_distinct_samples(distinct: int, backend: Any) -> None:
    features = random(distinct, 4).repeat(6, 1)
    found = kmeans(features, distinct + 1, generator=generator(), backend=backend)
    assert found.converged
    assert found.labels.bincount(minlength=distinct + 1).min() >= 1
    assert found.inertia == pytest.approx(0, abs=1e-8)


def test_kmeans_gives_an_empty_cluster_the_worst_fitting_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.tensor([[0.0], [1.0], [2.0], [10.0], [30.0]])
    # Three seeds on one spot: ties go to cluster 0, the clusters 1 and 2 are empty and take 30, then 10.
    monkeypatch.setattr(k_means, "_seeds", lambda *_: torch.tensor([1, 1, 1]))
    found = kmeans(features, 3, generator=generator())
    assert found.labels.tolist() == [0, 0, 0, 2, 1]
    assert found.centroids.flatten().tolist() == pytest.approx([1, 30, 10], rel=1e-6)


def test_kmeans_gives_a_sample_between_two_centroids_to_the_lower_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = torch.tensor([[-4.0], [0.0], [4.0]])
    for seeds, expected in (([0, 2], [0, 0, 1]), ([2, 0], [1, 0, 0])):
        monkeypatch.setattr(k_means, "_seeds", lambda *_, seeds=seeds: torch.tensor(seeds))
        found = kmeans(features, 2, generator=generator())
        assert found.labels.tolist() == expected


@pytest.mark.parametrize("clusters", [8, 40])
def test_kmeans_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch, clusters: int) -> None:
    features, _ = blobs(8, 40, spread=1.0)
    whole = kmeans(features, clusters, generator=generator())
    centres = nearest_samples(features, whole.centroids)
    monkeypatch.setattr(points, "BLOCK", 1)  # 64 rows at a time
    small = kmeans(features, clusters, generator=generator())
    assert torch.equal(whole.labels, small.labels)
    assert small.inertia == pytest.approx(whole.inertia, rel=1e-9)
    assert torch.equal(centres, nearest_samples(features, whole.centroids))


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_with_many_clusters_equals_brute_force_though_it_measures_less(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    features = random(120, 12, seed=seed).repeat(25, 1) + 1.2 * random(3000, 12, seed=seed + 9)
    measured, original = [0], k_means._nearest

    def counted(rows: Tensor, centroids: Tensor) -> Any:
        measured[0] += len(rows) * len(centroids)
        return original(rows, centroids)

    monkeypatch.setattr(k_means, "_nearest", counted)
    found = kmeans(features, 120, generator=generator(seed))
    assert found.converged
    assert found.iterations > 10
    assert measured[0] < 0.6 * (found.iterations + 1) * 3000 * 120
    exact = features.double().numpy()
    centroids, labels = brute_force_lloyd(exact, exact[kmeans_plusplus(features, 120, generator=generator(seed))])
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.centroids, centroids, atol=1e-5)
    torch.testing.assert_close(found.centroids, cluster_means(features, found.labels, 120), rtol=1e-6, atol=1e-6)


def test_what_is_nearest_after_some_centroids_moved_is_what_all_distances_say() -> None:
    # Whole numbers: every float32 distance is exact, and many are equal.
    draws = generator(3)
    samples = torch.randint(-4, 5, (500, 3), generator=draws).float()
    centroids = torch.randint(-4, 5, (30, 3), generator=draws).float()
    found = k_means._nearest(samples, centroids)
    for number in range(60):
        moved = torch.rand(30, generator=draws) < number % 20 / 20
        centroids[moved] += torch.randint(-2, 3, (int(moved.sum()), 3), generator=draws).float()
        found = k_means._nearest_again(samples, centroids, moved, found)
        distances = (samples[:, None] - centroids).square().sum(2)
        assert torch.equal(found.labels, distances.argmin(1))
        assert torch.equal(found.reach, distances.amin(1) - samples.square().sum(1))
        others = distances.scatter(1, found.labels[:, None], math.inf).amin(1) - samples.square().sum(1)
        assert bool((found.others <= others).all())


def test_kmeans_refuses_bad_input() -> None:
    features = random(5, 2)
    with pytest.raises(DataError, match=r"cannot make 6 clusters of 5 samples; choose from 1 to 5 clusters$"):
        kmeans(features, 6, generator=generator())
    with pytest.raises(DataError, match=r"cannot make 0 clusters of 5 samples"):
        kmeans(features, 0, generator=generator())
    with pytest.raises(DataError, match=r"must be a floating \(N, D\) matrix, not \(5,\) torch.float32"):
        kmeans(features[:, 0], 2, generator=generator())
    with pytest.raises(DataError, match=r"matrix, not \(5, 2\) torch.int64"):
        kmeans(features.long(), 2, generator=generator())
    for bad in (math.nan, math.inf, -math.inf):
        broken = features.clone()
        broken[3, 1] = bad
        with pytest.raises(DataError, match="the features hold NaN or infinite values"):
            kmeans(broken, 2, generator=generator())
    with pytest.raises(RecipeError, match="at least 1 start, 1 iteration"):
        kmeans(features, 2, generator=generator(), starts=0)
    unknown: Any = "fiass"
    with pytest.raises(RecipeError, match="backend 'fiass' is unknown; use torch or faiss"):
        kmeans(features, 2, generator=generator(), backend=unknown)


def test_kmeans_says_when_faiss_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_faiss(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise ImportError("no faiss")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(RecipeError, match="'faiss' is not installed; pip install faiss-cpu, or use backend torch"):
        kmeans(random(5, 2), 2, generator=generator(), backend="faiss")


def test_kmeans_result_cannot_be_changed() -> None:
    found = kmeans(random(5, 2), 2, generator=generator())
    assert isinstance(found, KMeans)
    with pytest.raises(AttributeError, match="cannot assign to field 'inertia'"):
        found.inertia = 0.0  # type: ignore[misc]
