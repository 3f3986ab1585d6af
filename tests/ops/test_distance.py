from __future__ import annotations

import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances as sklearn_cosine
from sklearn.metrics.pairwise import euclidean_distances as sklearn_euclidean
from torch import Tensor

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import (
    Directions,
    check_features,
    cosine_blocks,
    cosine_distances,
    directions,
    normalise,
    product_strips,
    squared_distances,
    strip_rows,
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


# directions


EXTREMES = {
    "ordinary": [[3.0, 4.0, 0.0], [1.0, -2.0, 2.0]],
    "tiny": [[3e-30, 4e-30, 0.0], [-1e-30, 2e-30, 2e-30]],
    "small": [[3e-20, 4e-20, 0.0], [-1e-20, 2e-20, 2e-20]],
    "subnormal": [[3e-40, 4e-40, 0.0], [1e-42, 0.0, 0.0]],
    "huge": [[3e30, 4e30, 0.0], [-1e30, 2e30, 2e30]],
    "largest": [[3e38, 3e38, 3e38], [-3e38, 3e38, 0.0]],
    "zeros": [[0.0, 0.0, 0.0], [0.0, -0.0, 0.0]],
    "zeros among others": [[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]],
    "rows of all kinds": [[3e-30, 4e-30, 0.0], [0.0, 0.0, 0.0], [3e30, 0.0, 4e30], [1.0, 1.0, 1.0], [2e-13, 0.0, 0.0]],
    "entries of all kinds": [[3e30, 1e-30, 0.0], [1.0, 1e-30, 1.0], [1e30, 1.0, -1e30], [1e-20, 1e-30, -1e-20]],
}


def exact_directions(features: Tensor) -> Tensor:
    """Rows over their lengths, in double precision; rows of zeros as they are."""
    lengths = torch.linalg.vector_norm(features.double(), dim=1, keepdim=True)
    return features.double() / torch.where(lengths > 0, lengths, 1.0)


@pytest.mark.parametrize("rows", EXTREMES.values(), ids=EXTREMES)
def test_directions_have_length_one_or_zero_at_every_scale(rows: list[list[float]]) -> None:
    features = torch.tensor(rows)
    found = directions(features)
    expected = exact_directions(features)
    torch.testing.assert_close((found.rows * found.scale[:, None]).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(normalise(features).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", EXTREMES.values(), ids=EXTREMES)
def test_cosine_distances_of_extreme_features_equal_the_loops(rows: list[list[float]]) -> None:
    a, b = torch.tensor([[1.0, 2.0, -1.0], [2e-30, 1e-30, 0.0], [0.0, 1e30, 1e30]]), torch.tensor(rows)
    loops = [
        [oracles.cosine_distance(x, y) if any(y) else 1.0 for y in exact_directions(b).tolist()]
        for x in exact_directions(a).tolist()
    ]
    for found in (cosine_distances(a, b), torch.cat(list(cosine_blocks(a, b, memory=8 * len(b))))):
        torch.testing.assert_close(found.double(), torch.tensor(loops, dtype=torch.float64), atol=1e-6, rtol=0)


def test_directions_are_the_features_themselves_unless_these_are_extreme() -> None:
    for ordinary in (draw(5), draw(5) * 1e10, draw(5) * 1e-10, torch.cat([draw(2), torch.zeros(1, 5)])):
        assert directions(ordinary).rows is ordinary
    for extreme in (torch.cat([draw(2), draw(1) * 1e-30]), torch.cat([draw(2), draw(1) * 1e30])):
        before = extreme.clone()
        assert directions(extreme).rows is not extreme
        assert torch.equal(extreme, before)


# strips


@pytest.mark.parametrize(
    ("columns", "memory", "itemsize", "rows"), [(10, 40, 4, 1), (10, 119, 4, 2), (10, 120, 4, 3), (10, 160, 8, 2)]
)
def test_strip_rows_are_as_many_as_fit(columns: int, memory: int, itemsize: int, rows: int) -> None:
    assert strip_rows(columns, memory, itemsize=itemsize) == rows


def test_memory_for_less_than_a_row_is_refused() -> None:
    with pytest.raises(RecipeError, match="memory of 39 bytes is too small: one row takes 40"):
        strip_rows(10, 39)
    with pytest.raises(RecipeError, match="memory of 1,000 bytes is too small: one row takes 80,000"):
        strip_rows(10_000, 1000, itemsize=8)
    with pytest.raises(RecipeError, match="memory of 0 bytes is too small"):
        next(product_strips(draw(2), directions(draw(3)), memory=0))


@pytest.mark.parametrize("memory", [28, 55, 56, 84, 10_000])
def test_product_strips_hold_every_row_once_and_no_more_than_the_memory(memory: int) -> None:
    a, b = draw(11, seed=1), draw(7, seed=2)
    parts = []
    for strip in product_strips(a, directions(b), memory=memory):
        assert strip.numel() * strip.element_size() <= memory
        assert strip.untyped_storage().nbytes() <= min(memory, 11 * 28)
        parts.append(strip.clone())
    torch.testing.assert_close(torch.cat(parts), normalise(a) @ b.T)


def test_product_strips_reuse_their_memory() -> None:
    strips = list(product_strips(draw(6), directions(draw(3)), memory=24))
    assert len({strip.data_ptr() for strip in strips}) == 1
    assert len(strips) == 3


def test_product_strips_multiply_rows_as_they_are() -> None:
    b = Directions(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([0.5, 0.2]))
    torch.testing.assert_close(next(product_strips(torch.tensor([[3.0, 4.0]]), b)), torch.tensor([[1.2, 4.0]]))


# refusals


def test_check_features_accepts_good_features() -> None:
    check_features(draw(3), "features")


@pytest.mark.parametrize("row", [[3e38, 3e38, 3e38], [-3e38, -3e38, 0.0], [3e38, 3e38, -3e38], [0.0, 1e-45, 0.0]])
def test_check_features_accepts_finite_numbers_whose_sum_is_not(row: list[float]) -> None:
    check_features(torch.tensor([[1.0, 2.0, 3.0], row]), "features")


def test_check_features_finds_what_is_not_finite_beside_sums_that_have_overflown() -> None:
    features = torch.tensor([[3e38, 3e38], [1.0, 2.0], [3e38, float("inf")], [float("inf"), -float("inf")]])
    with pytest.raises(DataError, match=r"features: row 2 holds NaN or infinity \(2 of 4 rows do\)"):
        check_features(features, "features")


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
    with pytest.raises(DataError, match="equally many columns"):
        next(cosine_blocks(a, b))
