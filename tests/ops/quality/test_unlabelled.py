from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import silhouette_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.quality import Estimate, camera_purity, silhouette, soft_neighbourhood_density, unlabelled

labellings = st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 5)), min_size=2, max_size=25)


def draw(rows: int, columns: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(rows=labellings, seed=st.integers(0, 99))
def test_camera_purity_equals_the_loops_and_sklearn_over_shared_clusters(
    rows: list[tuple[int, int]], seed: int
) -> None:
    labels, cams = np.array(rows).T
    shared = [row for row, label in enumerate(labels) if label >= 0 and (labels == label).sum() > 1]
    found = camera_purity(labels, cams)
    if not shared:
        assert math.isnan(found)
        return
    assert found == pytest.approx(oracles.purity(labels[shared].tolist(), cams[shared].tolist()))
    table = contingency_matrix(labels[shared], cams[shared])
    assert found == pytest.approx(table.max(axis=1).sum() / table.sum())
    generator = np.random.default_rng(seed)
    order, names = generator.permutation(len(rows)), np.append(generator.permutation(5), -1)
    assert camera_purity(names[labels][order], (7 - cams)[order]) == found
    assert 0 < found <= 1


def test_camera_purity_is_one_for_clusters_of_one_camera_and_its_share_for_large_random_ones() -> None:
    generator = np.random.default_rng(0)
    cams = generator.choice(4, p=[0.4, 0.3, 0.2, 0.1], size=40_000)
    assert camera_purity(cams * 3, cams) == 1
    assert camera_purity(generator.integers(0, 4, 40_000), cams) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("cameras", [2, 6])
def test_camera_purity_of_random_pairs_is_what_its_docstring_says(cameras: int) -> None:
    cams = np.random.default_rng(0).integers(0, cameras, 40_000)
    assert camera_purity(np.arange(40_000) // 2, cams) == pytest.approx((1 + 1 / cameras) / 2, abs=0.01)


@pytest.mark.parametrize("labels", [[], [-1, -1], [0, 1, 2]])
def test_camera_purity_of_no_shared_cluster_is_not_a_number(labels: list[int]) -> None:
    assert math.isnan(camera_purity(labels, [1] * len(labels)))


@pytest.mark.parametrize(
    ("clusters", "cams", "message"),
    [
        ([0, 1], [1], "2 rows of clusters but 1 of cams"),
        ([0, -2], [1, 1], "clusters: label -2 given"),
        ([0, 1], [0.5, 1.0], "cams: float64 of shape"),
    ],
)
def test_camera_purity_refuses_bad_columns(clusters: list[int], cams: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        camera_purity(clusters, cams)


@given(labels=st.lists(st.integers(-1, 3), min_size=2, max_size=20), seed=st.integers(0, 99))
def test_silhouette_of_all_rows_equals_the_loops_and_sklearn(labels: list[int], seed: int) -> None:
    features, column = draw(len(labels), seed=seed), np.array(labels)
    used = column >= 0
    found = silhouette(features, labels, sample=20, generator=seeded())
    if len(set(column[used])) < 2:
        np.testing.assert_equal(found, Estimate(math.nan, math.nan, 0))
        return
    assert found.value == pytest.approx(np.mean(oracles.silhouettes(features.tolist(), labels)), abs=1e-9)
    assert (found.error, found.rows) == (0, used.sum())
    assert -1 <= found.value <= 1
    if len(set(column[used])) < used.sum():  # scikit-learn refuses clusters of one row only
        reference = silhouette_score(features.double().numpy()[used], column[used], metric="cosine")
        assert found.value == pytest.approx(reference, abs=1e-9)


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=20), seed=st.integers(0, 99))
def test_silhouette_depends_on_no_name_order_or_length(labels: list[int], seed: int) -> None:
    features, column = draw(len(labels), seed=seed), torch.tensor(labels)
    order, names = torch.randperm(len(labels), generator=seeded(seed)), torch.randperm(90, generator=seeded(seed))
    lengths = 2.0 ** torch.randint(-60, 60, (len(labels), 1), generator=seeded(seed))  # powers of two round nothing
    found = silhouette(features, column, generator=seeded())
    other = silhouette((features * lengths)[order], names[column][order], generator=seeded())
    np.testing.assert_allclose(other, found, rtol=0, atol=1e-12)


def test_silhouette_of_a_row_of_zeros_equals_sklearn() -> None:
    features, labels = draw(12), np.arange(12) % 3
    features[[2, 5, 7]] = 0
    found = silhouette(features, labels, generator=seeded())
    assert found.value == pytest.approx(silhouette_score(features.double(), labels, metric="cosine"), abs=1e-9)


def test_silhouette_is_exact_for_features_that_have_almost_collapsed() -> None:
    features, labels = 1 + 1e-4 * draw(60, 40), np.arange(60) % 4
    reference = silhouette_score(features.double(), labels, metric="cosine")
    assert silhouette(features, labels, generator=seeded()).value == pytest.approx(reference, abs=1e-6)


def test_silhouette_of_equal_rows_is_zero_and_not_their_rounding() -> None:
    features = draw(1, 300).expand(90, -1) * torch.linspace(1, 9, 90)[:, None]
    assert silhouette(features, torch.arange(90) % 7, generator=seeded()) == (0, 0, 90)


def test_silhouette_of_a_row_alone_is_zero() -> None:
    assert silhouette(draw(5), [4, 3, 2, 1, 0], generator=seeded()) == (0, 0, 5)


@pytest.mark.parametrize("labels", [[-1] * 4, [2] * 4, [2, -1, 2, -1]])
def test_silhouette_of_less_than_two_clusters_is_not_a_number(labels: list[int]) -> None:
    np.testing.assert_equal(silhouette(draw(4), labels, generator=seeded()), Estimate(math.nan, math.nan, 0))


def test_silhouette_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = draw(80, 300), torch.arange(80) % 9 - 1
    whole = silhouette(features, labels, sample=30, generator=seeded())
    monkeypatch.setattr(unlabelled, "BLOCK", 1)
    np.testing.assert_allclose(silhouette(features, labels, sample=30, generator=seeded()), whole, rtol=1e-12)


def test_silhouette_of_a_sample_has_the_error_that_it_says() -> None:
    features, labels = draw(60) + torch.eye(5).repeat(12, 1), torch.arange(60) % 5
    whole = silhouette(features, labels, sample=60, generator=seeded()).value
    found = np.array([silhouette(features, labels, sample=40, generator=seeded(seed)) for seed in range(400)])
    values, errors, rows = found.T
    assert set(rows) == {40}
    error = math.sqrt((errors**2).mean())
    assert values.mean() == pytest.approx(whole, abs=4 * error / math.sqrt(400))
    assert values.std() == pytest.approx(error, rel=0.15)  # without the correction for 40 of 60 it would be 1.7 times
    assert np.mean(np.abs(values - whole) < 2 * errors) == pytest.approx(0.95, abs=0.03)


def test_silhouette_draws_from_its_generator_alone_and_only_where_it_must() -> None:
    features, labels, state = draw(50), torch.arange(50) % 3, torch.get_rng_state()
    generator = seeded()
    silhouette(features, labels, sample=50, generator=generator)
    assert torch.equal(generator.get_state(), seeded().get_state())
    first = silhouette(features, labels, sample=49, generator=generator)
    assert first.error > 0
    assert silhouette(features, labels, sample=49, generator=seeded()) == first
    assert silhouette(features, labels, sample=49, generator=generator) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_silhouette_leaves_gradients_alone() -> None:
    features = draw(6).requires_grad_()
    labels = torch.arange(6) % 2
    assert silhouette(features, labels, generator=seeded()) == silhouette(draw(6), labels, generator=seeded())


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (draw(3), [0, 1], "3 rows of features but 2 of labels; one of each per row is needed"),
        (draw(2), [0, -2], "labels: label -2 given"),
        (draw(2), [0.0, 1.0], "labels: float64 of shape"),
        (draw(2).double(), [0, 1], "features: torch.float64 given, torch.float32 expected"),
        (draw(2)[0], [0, 1], r"features: shape \(5,\) given"),
        (draw(0), [], r"features: shape \(0, 5\) is empty"),
        (draw(2) * torch.tensor([[1.0], [math.nan]]), [0, 1], "features: row 1 holds NaN or infinity"),
    ],
)
def test_silhouette_refuses_bad_input(features: Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        silhouette(features, labels, generator=seeded())


@pytest.mark.parametrize("sample", [-1, 0, 1])
def test_silhouette_refuses_a_sample_without_an_error(sample: int) -> None:
    with pytest.raises(RecipeError, match=f"sample of {sample} has no known error; draw at least 2 rows"):
        silhouette(draw(4), [0, 0, 1, 1], sample=sample, generator=seeded())


@given(
    rows=st.integers(2, 20),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.01, 0.05, 1.0, 50.0]),
    block=st.integers(1, 21),
)
def test_soft_neighbourhood_density_equals_the_loops_and_scipy_for_every_block(
    rows: int, seed: int, temperature: float, block: int
) -> None:
    features = draw(rows, seed=seed)
    found = soft_neighbourhood_density(features, temperature=temperature, block=block)
    expected = oracles.soft_neighbourhood_density(features.tolist(), temperature)
    assert found == pytest.approx(expected, abs=2e-6 + 4e-7 / temperature)
    units = features.double().numpy() / np.linalg.norm(features.double().numpy(), axis=1, keepdims=True)
    others = (units @ units.T)[~np.eye(rows, dtype=bool)].reshape(rows, rows - 1)
    reference = entropy(softmax(others / temperature, axis=1), axis=1).mean()
    assert found == pytest.approx(reference, abs=2e-6 + 4e-7 / temperature)
    assert 0 <= found <= math.log(rows - 1) + 1e-6


@given(rows=st.integers(2, 20), seed=st.integers(0, 99))
def test_soft_neighbourhood_density_depends_on_no_order_or_length(rows: int, seed: int) -> None:
    features, order = draw(rows, seed=seed), torch.randperm(rows, generator=seeded(seed))
    lengths = 2.0 ** torch.randint(-60, 60, (rows, 1), generator=seeded(seed))
    found = soft_neighbourhood_density(features)
    assert soft_neighbourhood_density((features * lengths)[order]) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(("groups", "members"), [(2, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_soft_neighbourhood_density_of_orthogonal_groups_has_a_closed_form(
    groups: int, members: int, temperature: float
) -> None:
    near, far, weight = members - 1, (groups - 1) * members, math.exp(1 / temperature)
    total = near * weight + far
    expected = math.log(total) - near * weight / total / temperature
    found = soft_neighbourhood_density(torch.eye(groups).repeat(members, 1), temperature=temperature)
    assert found == pytest.approx(expected, abs=1e-5)


def test_soft_neighbourhood_density_is_highest_for_collapsed_features() -> None:
    features = torch.ones(50, 8) * torch.arange(1, 51)[:, None]
    assert soft_neighbourhood_density(features) == pytest.approx(math.log(49), abs=1e-5)
    assert soft_neighbourhood_density(draw(50, 8)) < math.log(49) - 0.5


def test_soft_neighbourhood_density_is_finite_at_every_allowed_temperature() -> None:
    assert soft_neighbourhood_density(draw(9), temperature=1e-6) == pytest.approx(0, abs=1e-6)
    assert soft_neighbourhood_density(draw(9), temperature=1e30) == pytest.approx(math.log(8), abs=1e-6)


def test_soft_neighbourhood_density_of_two_rows_is_zero() -> None:
    assert soft_neighbourhood_density(draw(2).requires_grad_()) == 0


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (draw(1), "1 row given, which has no neighbours; at least 2 are needed"),
        (draw(0), r"features: shape \(0, 5\) is empty"),
        (draw(3).double(), "features: torch.float64 given, torch.float32 expected"),
        (draw(3)[0], r"features: shape \(5,\) given"),
        (draw(2) * torch.tensor([[math.inf], [1.0]]), "features: row 0 holds NaN or infinity"),
    ],
)
def test_soft_neighbourhood_density_refuses_bad_features(features: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        soft_neighbourhood_density(features)


@pytest.mark.parametrize("temperature", [0.0, -0.05, 1e-9, math.inf, math.nan])
def test_soft_neighbourhood_density_refuses_a_bad_temperature(temperature: float) -> None:
    with pytest.raises(RecipeError, match=f"with temperature {temperature} and block 256 cannot be; use a finite"):
        soft_neighbourhood_density(draw(3), temperature=temperature)


def test_soft_neighbourhood_density_refuses_an_empty_block() -> None:
    with pytest.raises(RecipeError, match=r"and block 0 cannot be; .* a block of at least 1"):
        soft_neighbourhood_density(draw(3), block=0)
