from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.impact import (
    deterministic_mask,
    fit,
    halves,
    held_out_scores,
    impacts,
    normalised,
    stochastic_mask,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(
    rows: int = 7, units: int = 5, classes: int = 4, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = generator(rows + units + classes)
    return (
        scale * torch.randn(rows, units, generator=draws).clamp(min=0),
        torch.randint(classes, (rows,), generator=draws),
        torch.randn(classes, units, generator=draws),
        torch.randn(classes, generator=draws),
    )


def by_zeroing(units: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> list[list[float]]:
    """The definition: two forward passes per row and unit, in plain numbers."""

    def loss(vector: list[float], label: int) -> float:
        logits = [
            sum(w * g for w, g in zip(row, vector, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        return float(math.log(sum(math.exp(z) for z in logits)) - logits[label])

    found = []
    for vector, label in zip(units.tolist(), labels.tolist(), strict=True):
        whole = loss(vector, label)
        found.append([loss([*vector[:i], 0.0, *vector[i + 1 :]], label) - whole for i in range(len(vector))])
    return found


# Impacts


@pytest.mark.parametrize(("rows", "units", "classes", "scale"), [(7, 5, 4, 1.0), (1, 1, 2, 3.0), (40, 16, 9, 4.0)])
def test_impacts_are_those_of_zeroing_one_unit_after_another(rows: int, units: int, classes: int, scale: float) -> None:
    given = problem(rows, units, classes, scale)
    expected = torch.tensor(by_zeroing(*given), dtype=torch.float64)
    torch.testing.assert_close(impacts(*given), expected, atol=1e-6, rtol=0)
    in_double = torch.tensor(by_zeroing(*(each.double() if each.is_floating_point() else each for each in given)))
    torch.testing.assert_close(impacts(*given).float(), in_double, atol=1e-6, rtol=0)


@pytest.mark.parametrize("memory", [1, 32, 4 * 8 * 9, 4 * 8 * 9 * 16, 4 * 8 * 9 * 16 * 3 + 1, 1 << 20])
def test_impacts_do_not_depend_on_the_memory_allowed(memory: int) -> None:
    given = problem(40, 16, 9)
    torch.testing.assert_close(impacts(*given, memory=memory), impacts(*given), atol=1e-14, rtol=0)


def test_impacts_never_hold_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = Tensor.logsumexp

    def watched(values: Tensor, dim: int) -> Tensor:
        sizes.append(values.numel() * values.element_size())
        return plain(values, dim)

    monkeypatch.setattr(Tensor, "logsumexp", watched)
    impacts(*problem(40, 16, 9), memory=4096)
    assert max(sizes) <= 4096 / 4
    assert sum(sizes) == 40 * 16 * 9 * 8


def test_impact_is_exactly_zero_of_units_that_are_off_or_add_the_same_to_every_class() -> None:
    units, labels, weight, bias = problem(30, 6, 5)
    units[:, 1] = 0
    weight[:, 2], weight[:, 3] = 0.0, 0.7
    found = impacts(units, labels, weight, bias)
    assert bool((found[:, 1:4] == 0).all())
    assert bool((found[units == 0] == 0).all())
    assert bool((found[:, [0, 4, 5]][units[:, [0, 4, 5]] > 0] != 0).all())


def test_impacts_of_huge_logits_are_finite() -> None:
    found = impacts(
        torch.tensor([[2000.0, 1.0]]), torch.tensor([0]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.zeros(2)
    )
    assert found.tolist() == [[pytest.approx(math.log(2) - 4000), 0.0]]


def test_second_order_taylor_error_shrinks_with_the_cube_of_the_unit() -> None:
    """The paper's cheap form, -g dL/dg + g^2/2 d2L/dg2, from automatic derivatives."""
    base, labels, weight, bias = (each.double() if each.is_floating_point() else each for each in problem(6, 5, 4))

    def error(size: float) -> Tensor:
        units = (size * (base + 0.1)).requires_grad_()
        loss = torch.nn.functional.cross_entropy(units @ weight.T + bias, labels, reduction="sum")
        (first,) = torch.autograd.grad(loss, units, create_graph=True)
        second = torch.stack(
            [torch.autograd.grad(first[:, i].sum(), units, retain_graph=True)[0][:, i] for i in range(5)]
        )
        taylor = -units * first + units.square() / 2 * second.T
        return (taylor - impacts(units.detach(), labels, weight, bias)).abs().amax()

    errors = [float(error(size).detach()) for size in (0.1, 0.05, 0.025)]
    assert errors[0] > 1e-6
    for larger, smaller in pairwise(errors):
        assert larger / smaller == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": torch.zeros(3)}, r"must be \(N, K\), \(N,\), \(C, K\) and \(C,\)"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "units, labels, weight and bias"),
        ({"weight": torch.zeros(4, 2)}, "units, labels, weight and bias"),
        ({"bias": torch.zeros(3)}, "units, labels, weight and bias"),
        ({"labels": torch.tensor([0, 4, 1])}, "label 4 is outside the 4 classes"),
        ({"labels": torch.tensor([0, -1, 1])}, "label -1 is outside the 4 classes"),
        ({"units": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.int64)}, "units, labels, weight and bias"),
    ],
)
def test_impacts_refuse_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    names = ("units", "labels", "weight", "bias")
    given: dict[str, Any] = {**dict(zip(names, problem(3, 5, 4), strict=True)), **change}
    with pytest.raises(DataError, match=message):
        impacts(**given)


# Scores


def test_normalised_scores_give_the_best_unit_a_chance_of_nine_tenths_and_change_no_sign_or_order() -> None:
    scores = torch.randn(3, 40, generator=generator(), dtype=torch.float64) * torch.tensor([[1e-4], [1.0], [50.0]])
    found = normalised(scores)
    torch.testing.assert_close(found.amax(1).sigmoid(), torch.full((3,), 0.9, dtype=torch.float64), atol=1e-15, rtol=0)
    assert torch.equal(found.sign(), scores.sign())
    assert torch.equal(found.argsort(1), scores.argsort(1))
    torch.testing.assert_close(normalised(1000 * scores), found)


def test_scores_without_a_positive_one_stay() -> None:
    scores = torch.tensor([[-1.0, 0.0, -2.0]])
    assert torch.equal(normalised(scores), scores)


# Masks


def test_masks_of_the_example_are_those_worked_out_by_hand() -> None:
    scores = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
    assert deterministic_mask(scores).tolist() == [[2.0, 0.0, 2.0, 0.0]]
    chances = torch.tensor([[0.731059, 0.268941, 0.880797, 0.5]])
    below, above = (stochastic_mask(scores, chances + shift) for shift in (-1e-5, 1e-5))
    torch.testing.assert_close(below, torch.full((1, 4), 1.680110), atol=2e-6, rtol=0)
    assert not bool(above.any())


def test_uniform_number_equal_to_the_chance_keeps_the_unit() -> None:
    assert stochastic_mask(torch.zeros(1, 2), torch.full((1, 2), 0.5)).tolist() == [[2.0, 2.0]]


def test_stochastic_mask_at_infinite_temperature_is_inverted_dropout_of_one_half() -> None:
    scores, uniforms = torch.randn(6, 9, generator=generator()), torch.rand(6, 9, generator=generator(1))
    for temperature in (math.inf, 1e12):
        found = stochastic_mask(scores, uniforms, temperature=temperature)
        torch.testing.assert_close(found, 2.0 * (uniforms <= 0.5), atol=1e-6, rtol=0)


def test_stochastic_mask_near_temperature_zero_is_the_deterministic_one() -> None:
    scores = torch.randn(50, 9, generator=generator())
    found = stochastic_mask(scores, generator(1), temperature=1e-9)
    torch.testing.assert_close(found, deterministic_mask(scores))


def test_unit_without_any_impact_is_dropped_by_one_mask_and_kept_half_the_time_by_the_other() -> None:
    scores = torch.zeros(20_000, 2)
    scores[:, 1] = 1.0
    assert not bool(deterministic_mask(scores)[:, 0].any())
    kept = stochastic_mask(scores, generator(), temperature=1e-3)[:, 0] > 0
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0, math.inf])
def test_mean_over_draws_sums_to_the_number_of_units(temperature: float) -> None:
    scores = torch.tensor([[2.0, -1.0, 0.0, 0.5, -3.0]])
    found = stochastic_mask(scores.expand(200_000, 5), generator(), temperature=temperature).mean(0)
    assert float(found.sum()) == pytest.approx(5, abs=0.02)
    chances = 1 / (1 + (-scores[0].double() / temperature).exp())
    torch.testing.assert_close(found.double(), 5 * chances / chances.sum(), atol=0.02, rtol=0)


def test_deterministic_mask_keeps_mass_and_a_row_without_positive_scores_is_all_zero() -> None:
    found = deterministic_mask(torch.tensor([[3.0, -1.0, 1e-30], [-1.0, 1.0, -2.0], [-1.0, 0.0, -2.0]]))
    assert found.tolist() == [[1.5, 0.0, 1.5], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]


def test_gradient_passes_where_a_unit_is_kept_and_nowhere_else() -> None:
    scores = torch.randn(8, 6, generator=generator())
    uniforms = torch.rand(8, 6, generator=generator(1))
    chances = scores.sigmoid()
    kept = scores > 0
    for mask, keep, factor in (
        (deterministic_mask(scores), kept, 6 / kept.sum(1, keepdim=True).clamp(min=1)),
        (stochastic_mask(scores, uniforms), uniforms <= chances, 6 / chances.sum(1, keepdim=True)),
    ):
        units = torch.randn(8, 6, generator=generator(2)).requires_grad_()
        out = units * mask
        out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
        assert units.grad is not None
        torch.testing.assert_close(units.grad, torch.where(keep, factor, 0.0))
        torch.testing.assert_close(out.detach(), torch.where(keep, factor, 0.0) * units.detach())


def test_rows_of_a_batch_are_masked_by_their_own_scores_and_draws() -> None:
    scores = torch.randn(5, 6, generator=generator())
    uniforms = torch.rand(5, 6, generator=generator(1))
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.equal(deterministic_mask(scores)[one], deterministic_mask(scores[one]))
        assert torch.equal(stochastic_mask(scores, uniforms)[one], stochastic_mask(scores[one], uniforms[one]))


def test_generator_draws_the_uniform_numbers_and_no_other_does() -> None:
    scores = torch.randn(5, 6, generator=generator())
    before = torch.get_rng_state()
    found = stochastic_mask(scores, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, stochastic_mask(scores, torch.rand(5, 6, generator=generator(3))))
    assert not torch.equal(found, stochastic_mask(scores, generator(4)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(RecipeError, match=r"^temperature .* is not above 0"):
        stochastic_mask(torch.zeros(1, 1), generator(), temperature=temperature)


# Classifiers of their own


def test_rows_of_an_identity_are_dealt_evenly_and_single_rows_are_left_out() -> None:
    labels = torch.tensor([3] * 5 + [-1] * 3 + [0] * 4 + [9] + [2] * 2)
    found = halves(labels, generator())
    counts = {
        label: [(found[labels == label] == half).sum().item() for half in (-1, 0, 1)] for label in (3, -1, 0, 9, 2)
    }
    assert counts == {3: [0, 3, 2], -1: [3, 0, 0], 0: [0, 2, 2], 9: [1, 0, 0], 2: [0, 1, 1]}
    assert torch.equal(found, halves(labels, generator()))
    assert any(not torch.equal(found, halves(labels, generator(seed))) for seed in range(1, 5))


def test_fitted_classifier_is_where_the_gradient_vanishes() -> None:
    units, labels = torch.rand(30, 6, generator=generator()), torch.arange(30) % 4
    weight, bias = fit(units, labels, 4, decay=0.01, steps=500)
    shares = (units.double() @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(labels, 4)
    torch.testing.assert_close(
        shares.T @ units.double() / 30 + 0.01 * weight, torch.zeros_like(weight), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(shares.mean(0), torch.zeros_like(bias), atol=1e-5, rtol=0)
    assert float(bias.sum()) == pytest.approx(0, abs=1e-5)  # from zeros: the one direction that no loss sees stays


def test_fit_repeats_bit_by_bit_and_draws_nothing() -> None:
    units, labels = torch.rand(30, 6, generator=generator()), torch.arange(30) % 4
    before = torch.get_rng_state()
    first, again = fit(units, labels, 4), fit(units, labels, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not first[0].requires_grad


def test_fit_needs_a_decay() -> None:
    with pytest.raises(RecipeError, match=r"^decay 0 is not above 0"):
        fit(torch.eye(2), torch.arange(2), 2, decay=0)


def test_every_row_is_scored_by_the_classifier_of_the_other_half() -> None:
    units, labels = torch.rand(12, 5, generator=generator()), torch.tensor([4, 4, 4, 4, 8, 8, 8, 8, 6, 6, 7, -1])
    numbers = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 1, 1])
    half = halves(labels, generator(3))
    total = torch.zeros(5, dtype=torch.float64)
    for row in range(10):
        others = [other for other in range(10) if half[other] != half[row]]
        head = fit(units[others], numbers[others], 3, decay=0.1)
        total += impacts(units[row : row + 1], numbers[row : row + 1], *head)[0]
    found = held_out_scores(units, labels, generator(3), decay=0.1)
    torch.testing.assert_close(found, total / 10, atol=1e-12, rtol=0)
    assert not torch.equal(found, held_out_scores(units, labels, generator(4), decay=0.1))


def test_unit_that_tells_people_apart_matters_and_one_that_is_noise_does_not() -> None:
    labels = torch.arange(400) % 2
    units = torch.rand(400, 3, generator=generator())
    units[:, 0] += 3 * (labels == 0)
    units[:, 1] = torch.rand(400, generator=generator(1)) * 0.3
    scores = held_out_scores(units, labels, generator(2), decay=0.01)
    assert float(scores[0]) > 0.3
    assert float(scores[1:].abs().max()) < 0.02


def test_one_identity_has_no_impacts() -> None:
    with pytest.raises(DataError, match=r"^1 identity with two rows or more; impact scores need at least 2$"):
        held_out_scores(torch.rand(4, 3), torch.tensor([5, 5, 2, -1]), generator())


@pytest.mark.parametrize("temperature", [1e-3, 1e-9])
def test_row_in_which_nothing_matters_is_dropped_by_both_masks_at_a_low_temperature(temperature: float) -> None:
    scores = torch.tensor([[-1.0, -2.0, -0.5]])
    found = stochastic_mask(scores, torch.full((1, 3), 0.5), temperature=temperature)
    assert torch.equal(found, deterministic_mask(scores)) and found.tolist() == [[0.0, 0.0, 0.0]]
