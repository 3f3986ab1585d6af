from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.losses import batch_hard_triplet, by_nearness, identification, smoothed, soft_identification


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- identification ------------------------------------------------------


def slow_identification(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    total, (rows, classes) = 0.0, logits.shape
    for row in range(rows):
        exponentials = [math.exp(value) for value in logits[row].tolist()]
        for k in range(classes):
            weight = smoothing / classes + (1 - smoothing) * (k == int(labels[row]))
            total -= weight * math.log(exponentials[k] / sum(exponentials))
    return total / rows


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (8, 40)])
def test_identification_equals_the_sum_over_classes(shape: tuple[int, int], smoothing: float) -> None:
    logits, labels = random(*shape), torch.arange(shape[0]) % shape[1]
    found = identification(logits, labels, smoothing=smoothing)
    assert float(found) == pytest.approx(slow_identification(logits, labels, smoothing), rel=1e-5)


def test_identification_of_the_likely_class_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    labels = torch.tensor([0])
    assert float(identification(logits, labels)) == pytest.approx(-math.log(0.7), rel=1e-6)
    smoothed = -0.8 * math.log(0.7) - 0.1 * math.log(0.2) - 0.1 * math.log(0.1)  # e = 0.3
    assert float(identification(logits, labels, smoothing=0.3)) == pytest.approx(smoothed, rel=1e-6)


def test_identification_starts_near_log_of_the_classes_with_a_small_head() -> None:
    head = random(702, 2048, seed=1) * 0.001
    loss = identification(random(64, 2048).abs() @ head.T, torch.arange(64))
    assert float(loss) == pytest.approx(math.log(702), abs=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identification_ignores_a_constant_and_its_gradient_sums_to_zero(smoothing: float) -> None:
    logits, labels = random(6, 9).requires_grad_(), torch.arange(6)
    loss = identification(logits, labels, smoothing=smoothing)
    shifted = identification(logits.detach() + 123.0, labels, smoothing=smoothing)
    assert float(shifted) == pytest.approx(float(loss.detach()), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6), atol=1e-7, rtol=0)
    wanted = (1 - smoothing) * nn.functional.one_hot(labels, 9) + smoothing / 9
    torch.testing.assert_close(gradient, (logits.detach().softmax(1) - wanted) / 6)


def test_identification_separates_a_separable_toy_completely() -> None:
    labels = torch.arange(60) % 3
    features = nn.functional.one_hot(labels, 3) * 2.0 + 0.2 * random(60, 3)
    head = torch.zeros(3, 3, requires_grad=True)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(identification(features @ head.T, labels), head)
        head = (head - gradient).detach().requires_grad_()
    assert (features @ head.T).argmax(1).equal(labels)


def test_identification_refuses_bad_input() -> None:
    logits = torch.zeros(2, 3)
    for label in (3, -1, -100):  # -100 is what torch would leave out without a word
        with pytest.raises(DataError, match=f"label {label} is outside the 3 classes"):
            identification(logits, torch.tensor([0, label]))
    with pytest.raises(DataError, match=r"logits and labels must be .* not \(2, 3\) and \(3,\)"):
        identification(logits, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"with B at least 1, not \(0, 3\)"):
        identification(logits[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(RecipeError, match=r"label smoothing 1\.0 is out of range"):
        identification(logits, torch.tensor([0, 1]), smoothing=1.0)


# ---- soft labels ---------------------------------------------------------


def test_soft_identification_equals_the_sum_over_classes() -> None:
    logits, shares = random(5, 4), random(5, 4, seed=1).softmax(1)
    total = 0.0
    for row in range(5):
        exponentials = [math.exp(value) for value in logits[row].tolist()]
        total -= sum(float(shares[row, k]) * math.log(exponentials[k] / sum(exponentials)) for k in range(4))
    assert float(soft_identification(logits, shares)) == pytest.approx(total / 5, rel=1e-5)


def test_soft_identification_is_at_least_the_entropy_of_the_labels() -> None:
    shares = random(6, 5, seed=1).softmax(1)
    entropy = float(-(shares * shares.log()).sum(1).mean())
    assert float(soft_identification(shares.log(), shares)) == pytest.approx(entropy, rel=1e-5)
    for seed in range(2, 7):
        assert float(soft_identification(random(6, 5, seed=seed), shares)) > entropy


def test_smoothed_labels_from_hard_to_uniform() -> None:
    logits, labels = random(6, 9), torch.arange(6)
    hard = soft_identification(logits, smoothed(labels, 9, 0.0))
    torch.testing.assert_close(hard, nn.functional.cross_entropy(logits, labels))
    for smoothing in (0.1, 0.6):
        expected = identification(logits, labels, smoothing=smoothing)
        torch.testing.assert_close(soft_identification(logits, smoothed(labels, 9, smoothing)), expected)
    # LSRO (Zheng et al. 2017): the mean over classes of the cross entropy with each.
    each = torch.stack([nn.functional.cross_entropy(logits, torch.full((6,), k)) for k in range(9)]).mean()
    torch.testing.assert_close(soft_identification(logits, smoothed(labels, 9, 1.0)), each)


def test_labels_by_nearness_from_the_nearest_to_uniform() -> None:
    features, centroids = random(6, 4), random(3, 4, seed=1)
    cosines = torch.stack([
        torch.stack([row @ centre / row.norm() / centre.norm() for centre in centroids]) for row in features
    ])  # fmt: skip
    shares = (cosines / 0.3).exp()
    found = by_nearness(features, centroids, temperature=0.3)
    torch.testing.assert_close(found, shares / shares.sum(1, keepdim=True))
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    logits, nearest = random(6, 3, seed=2), cosines.argmax(1)
    cold = soft_identification(logits, by_nearness(features, centroids, temperature=1e-4))
    torch.testing.assert_close(cold, nn.functional.cross_entropy(logits, nearest))
    torch.testing.assert_close(by_nearness(features, centroids, temperature=1e6), torch.full((6, 3), 1 / 3))
    torch.testing.assert_close(by_nearness(7 * features, centroids / 5, temperature=0.3), found)


def test_soft_labels_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"^logits and soft labels must both be \(B, C\)"):
        soft_identification(random(3, 4), random(3, 5))
    with pytest.raises(DataError, match="with B at least 1"):
        soft_identification(random(0, 4), random(0, 4))
    with pytest.raises(RecipeError, match=r"^label smoothing 1.1 is out of range; use a number from 0 to 1$"):
        smoothed(torch.tensor([0]), 2, 1.1)
    with pytest.raises(RecipeError, match=r"^temperature 0.0 is out of range"):
        by_nearness(random(1, 2), random(1, 2), temperature=0.0)


# ---- batch_hard_triplet --------------------------------------------------

SQUARE = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
PAIRS = torch.tensor([0, 0, 1, 1])


def slow_triplet(embeddings: Tensor, labels: Tensor, margin: float | None) -> float:
    points, names = embeddings.double().numpy(), labels.tolist()
    costs = []
    for a in range(len(names)):
        others = [b for b in range(len(names)) if b != a]
        near = [float(np.linalg.norm(points[a] - points[b])) for b in others if names[b] == names[a]]
        far = [float(np.linalg.norm(points[a] - points[b])) for b in others if names[b] != names[a]]
        if near and far:
            difference = max(near) - min(far)
            costs.append(math.log1p(math.exp(difference)) if margin is None else max(0.0, margin + difference))
    return sum(costs) / len(costs) if costs else 0.0


def test_batch_hard_triplet_takes_the_hardest_of_all_triplets_listed_by_hand() -> None:
    # (anchor, positive, negative) -> the two distances
    triplets = {
        (0, 1, 2): (5.0, 1.0),
        (0, 1, 3): (5.0, 10.0),
        (1, 0, 2): (5.0, 18**0.5),
        (1, 0, 3): (5.0, 5.0),
        (2, 3, 0): (85**0.5, 1.0),
        (2, 3, 1): (85**0.5, 18**0.5),
        (3, 2, 0): (85**0.5, 10.0),
        (3, 2, 1): (85**0.5, 5.0),
    }
    for margin, hand in (
        (0.5, [4.5, 1.257359, 8.719544, 4.719544]),
        (0.0, [4.0, 0.757359, 8.219544, 4.219544]),
    ):
        costs = [
            max(max(0.0, margin + ap - an) for (a, _, _), (ap, an) in triplets.items() if a == anchor)
            for anchor in range(4)
        ]
        assert costs == pytest.approx(hand, abs=1e-6)
        assert float(batch_hard_triplet(SQUARE, PAIRS, margin=margin)) == pytest.approx(sum(hand) / 4, abs=1e-6)
    assert float(batch_hard_triplet(SQUARE, PAIRS, margin=None)) == pytest.approx(4.403495, abs=1e-6)


@pytest.mark.parametrize("margin", [None, 0.0, 0.3, 5.0])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 1, 3], [4, 4, 4, 7], [1, 2, 3]])
def test_batch_hard_triplet_equals_the_loop_over_anchors(labels: list[int], margin: float | None) -> None:
    embeddings, names = random(len(labels), 16), torch.tensor(labels)
    found = float(batch_hard_triplet(embeddings, names, margin=margin))
    assert found == pytest.approx(slow_triplet(embeddings, names, margin), abs=1e-5)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_batch_hard_triplet_is_invariant_where_distances_are(margin: float | None) -> None:
    embeddings, labels = random(12, 5), torch.arange(12) // 3
    expected = float(batch_hard_triplet(embeddings, labels, margin=margin))
    rotation = torch.linalg.qr(random(5, 5, seed=2)).Q
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    renamed = torch.tensor([9, 4, 7, 0])[labels]
    variants = [
        (embeddings + 100.0, labels),
        (embeddings @ rotation, labels),
        (embeddings, renamed),
        (embeddings[order], labels[order]),
    ]
    for points, names in variants:
        assert float(batch_hard_triplet(points, names, margin=margin)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_batch_hard_triplet_soft_margin_lies_up_to_log_2_above_the_hinge(seed: int) -> None:
    embeddings, labels = random(16, 4, seed=seed), torch.arange(16) // 4
    gap = batch_hard_triplet(embeddings, labels, margin=None) - batch_hard_triplet(embeddings, labels, margin=0.0)
    assert 0 <= float(gap) <= math.log(2)


@pytest.mark.parametrize(("margin", "expected"), [(None, math.log(2)), (0.3, 0.3)])
def test_batch_hard_triplet_of_a_collapsed_model_is_the_margin_with_finite_gradients(
    margin: float | None, expected: float
) -> None:
    embeddings = torch.full((6, 8), 3.7, requires_grad=True)
    loss = batch_hard_triplet(embeddings, torch.arange(6) // 2, margin=margin)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(gradient, torch.zeros(6, 8))


def test_batch_hard_triplet_gradient_is_finite_with_one_pair_at_distance_zero() -> None:
    points = random(4, 8)
    points[1] = points[0]
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(batch_hard_triplet(points, PAIRS, margin=20.0), points)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("labels", [[0, 1, 2], [5, 5, 5], [3]])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_batch_hard_triplet_without_valid_anchors_is_zero_and_backward_works(
    labels: list[int], margin: float | None
) -> None:
    embeddings = random(len(labels), 4).requires_grad_()
    loss = batch_hard_triplet(embeddings, torch.tensor(labels), margin=margin)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(gradient, torch.zeros(len(labels), 4))


def test_batch_hard_triplet_gradient_equals_finite_differences() -> None:
    points, labels = random(8, 3), torch.arange(8) // 2
    (gradient,) = torch.autograd.grad(batch_hard_triplet(points.requires_grad_(), labels), points)
    for row, column in ((0, 0), (3, 2), (7, 1)):
        ends = []
        for step in (1e-3, -1e-3):
            moved = points.detach().clone()
            moved[row, column] += step
            ends.append(slow_triplet(moved, labels, 0.3))
        assert float(gradient[row, column]) == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=2e-3)


def test_batch_hard_triplet_refuses_bad_input() -> None:
    with pytest.raises(RecipeError, match=r"triplet margin -0\.1 is negative"):
        batch_hard_triplet(SQUARE, PAIRS, margin=-0.1)
    with pytest.raises(DataError, match=r"embeddings and labels must be .* not \(4, 2\) and \(3,\)"):
        batch_hard_triplet(SQUARE, PAIRS[:3])


def test_triplet_gradient_repeats_bit_by_bit_with_several_threads() -> None:
    threads = torch.get_num_threads()
    labels = torch.arange(8).repeat_interleave(4)
    embeddings = torch.randn(32, 1280, generator=torch.Generator().manual_seed(0))  # large enough to be split up
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(30):
            leaf = embeddings.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(batch_hard_triplet(leaf, labels), leaf)
            gradients.append(gradient)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
