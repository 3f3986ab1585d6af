from __future__ import annotations

import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances as sklearn_cosine
from sklearn.metrics.pairwise import euclidean_distances as sklearn_euclidean
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError
from uda_reid.ops.distance import (
    check_features,
    cosine_blocks,
    cosine_distances,
    normalise,
    squared_distances,
)


def draw(rows: int, columns: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns", "dimensions"), [(1, 1, 1), (4, 7, 3), (9, 2, 64)])
def test_cosine_distances_equal_the_loops_and_sklearn(rows: int, columns: int, dimensions: int) -> None:
    a, b = draw(rows, dimensions, seed=1), draw(columns, dimensions, seed=2)
    loops = torch.tensor([[oracles.cosine_distance(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(cosine_distances(a, b), loops, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        cosine_distances(a, b).double(),
        torch.from_numpy(sklearn_cosine(a.double(), b.double())),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize(("rows", "columns", "dimensions"), [(1, 1, 1), (4, 7, 3), (9, 2, 64)])
def test_squared_distances_equal_the_loops_and_sklearn(rows: int, columns: int, dimensions: int) -> None:
    a, b = draw(rows, dimensions, seed=1), draw(columns, dimensions, seed=2)
    loops = torch.tensor([[oracles.squared_distance(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(squared_distances(a, b), loops, atol=1e-4, rtol=1e-5)
    reference = torch.from_numpy(sklearn_euclidean(a.double(), b.double(), squared=True))
    torch.testing.assert_close(squared_distances(a, b).double(), reference, atol=1e-4, rtol=1e-5)


def test_distances_are_float32_and_never_negative() -> None:
    a = draw(200, 16) * 100
    for distances in (cosine_distances(a, a), squared_distances(a, a)):
        assert distances.dtype == torch.float32
        assert float(distances.min()) >= 0


def test_cosine_distance_does_not_depend_on_the_length_of_a_row() -> None:
    a, b = draw(3), draw(4, seed=1)
    torch.testing.assert_close(cosine_distances(a * 1000, b / 1000), cosine_distances(a, b), atol=1e-6, rtol=0)


def test_squared_distances_pass_gradients_to_both_sides() -> None:
    a, b = draw(3).requires_grad_(), draw(4, seed=1).requires_grad_()
    squared_distances(a, b).sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 2 * (4 * a.detach() - b.detach().sum(dim=0)))
    assert b.grad is not None
    torch.testing.assert_close(b.grad, 2 * (3 * b.detach() - a.detach().sum(dim=0)))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_normalise_gives_unit_rows_at_every_scale(scale: float) -> None:
    torch.testing.assert_close(torch.linalg.vector_norm(normalise(draw(6) * scale), dim=1), torch.ones(6))


def test_normalise_leaves_rows_of_zeros_at_zero() -> None:
    features = draw(3)
    features[1] = 0
    assert torch.equal(normalise(features)[1], torch.zeros(5))
    torch.testing.assert_close(cosine_distances(features[1:2], features), torch.ones(1, 3), atol=0, rtol=0)


def test_normalise_has_the_gradient_of_dividing_by_the_length() -> None:
    features = draw(4).double().requires_grad_()
    assert torch.autograd.gradcheck(normalise, (features,))


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_cosine_blocks_are_the_rows_of_the_whole_matrix(block: int) -> None:
    a, b = draw(7), draw(4, seed=1)
    blocks = list(cosine_blocks(a, b, memory=block * 16))
    assert [len(rows) for rows in blocks[:-1]] == [block] * (len(blocks) - 1)
    torch.testing.assert_close(torch.cat(blocks), cosine_distances(a, b), atol=1e-6, rtol=0)


def test_check_features_accepts_good_features() -> None:
    check_features(draw(3), "features")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), r"gallery features: shape \(3,\) given"),
        (torch.zeros(2, 3, 1), r"shape \(2, 3, 1\) given"),
        (torch.zeros(2, 3, dtype=torch.float64), r"torch.float64 given.*\.float\(\)"),
        (torch.zeros(2, 3, dtype=torch.int64), r"torch.int64 given"),
        (torch.zeros(0, 3), r"shape \(0, 3\) is empty"),
        (torch.zeros(3, 0), r"shape \(3, 0\) is empty"),
        (
            torch.tensor([[0.0], [1.0], [float("nan")], [float("inf")]]),
            r"row 2 holds NaN or infinity \(2 of 4 rows",
        ),
        (torch.tensor([[0.0, -float("inf")], [1.0, 0.0]]), r"row 0 holds NaN or infinity \(1 of 2 rows"),
    ],
)
def test_check_features_names_what_is_wrong(features: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_features(features, "gallery features")


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (2, 3)), ((2, 3), (2, 3, 1))])
def test_distances_of_unfitting_matrices_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (torch.zeros(shape) for shape in shapes)
    for distances in (cosine_distances, squared_distances):
        with pytest.raises(DataError, match="equally many columns"):
            distances(a, b)
