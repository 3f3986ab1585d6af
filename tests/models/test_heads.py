from __future__ import annotations

import math

import pytest
import torch

from uda_reid.errors import RecipeError
from uda_reid.models.heads import Classifier, Discriminator


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classifier_starts_with_small_normal_weights_and_zero_biases() -> None:
    head = Classifier(400, 100, std=0.02, generator=generator())
    assert head.linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.linear.weight.mean().item() == pytest.approx(0.0, abs=0.0005)
    assert torch.equal(head.linear.bias, torch.zeros(100))


def test_classifier_fresh_loss_is_that_of_guessing() -> None:
    head = Classifier(64, 50, generator=generator())
    logits = head(torch.randn(200, 64, generator=generator(1)))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(200) % 50)
    assert loss.item() == pytest.approx(math.log(50), abs=0.01)


def test_classifier_logits_are_the_affine_map() -> None:
    head = Classifier(5, 3, dropout=0.5, std=1.0, generator=generator()).eval()
    embeddings = torch.randn(4, 5, generator=generator(1))
    rows, vectors = head.linear.weight.tolist(), embeddings.tolist()
    expected = [[sum(w * x for w, x in zip(row, vector, strict=True)) for row in rows] for vector in vectors]
    torch.testing.assert_close(head(embeddings), torch.tensor(expected))


def test_rectified_classifier_sees_what_is_above_zero() -> None:
    head = Classifier(2, 2, bias=False, rectified=True, generator=generator())
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert head(torch.tensor([[-5.0, 1.0], [2.0, -1.0]])).tolist() == [[2.0, 4.0], [2.0, 6.0]]
    plain = Classifier(2, 2, bias=False, generator=generator())
    plain.load_state_dict(head.state_dict())
    assert plain(torch.tensor([[-5.0, 1.0]])).tolist() == [[-3.0, -11.0]]


def test_classifier_dropout_works_in_training_only() -> None:
    head = Classifier(1000, 1, dropout=0.5, generator=generator())
    torch.nn.init.ones_(head.linear.weight)
    ones = torch.ones(1, 1000)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)  # exactly half is kept once in forty draws
        dropped = head(ones).item()
    assert dropped != 1000.0
    assert dropped == pytest.approx(1000.0, rel=0.2)
    assert head.eval()(ones).item() == 1000.0


def test_classifier_depends_on_its_generator_and_leaves_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (Classifier(8, 4, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_classifier_without_bias_maps_zero_to_zero() -> None:
    head = Classifier(8, 4, bias=False, std=1.0, generator=generator())
    assert len(list(head.parameters())) == 1
    assert torch.equal(head(torch.zeros(1, 8)), torch.zeros(1, 4))


@pytest.mark.parametrize(("dim", "classes"), [(0, 3), (3, 0)])
def test_classifier_refuses_empty_sizes(dim: int, classes: int) -> None:
    with pytest.raises(RecipeError, match=f"from {dim} numbers to {classes} classes"):
        Classifier(dim, classes, generator=generator())


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_classifier_refuses_a_dropout_out_of_range(dropout: float) -> None:
    with pytest.raises(RecipeError, match="out of range"):
        Classifier(3, 3, dropout=dropout, generator=generator())


def test_discriminator_is_linear_layers_with_a_slope_between_and_keeps_the_variance() -> None:
    before = torch.get_rng_state()
    head = Discriminator(300, (400, 500), slope=0.2, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    weights = [value for name, value in head.named_parameters() if name.endswith("weight")]
    assert [tuple(weight.shape) for weight in weights] == [(400, 300), (500, 400), (1, 500)]
    for weight in weights[:2]:
        assert weight.std().item() == pytest.approx((2 / (1.04 * weight.shape[1])) ** 0.5, rel=0.02)
    values = torch.randn(7, 300, generator=generator(1))
    by_hand = values
    for weight in weights[:2]:
        by_hand = torch.where(by_hand @ weight.T > 0, by_hand @ weight.T, 0.2 * (by_hand @ weight.T))
    torch.testing.assert_close(head(values), (by_hand @ weights[2].T)[:, 0])
    assert all((value == 0).all() for name, value in head.named_parameters() if name.endswith("bias"))
    assert torch.equal(Discriminator(300, (400, 500), slope=0.2, generator=generator())(values), head(values))
    assert Discriminator(3, (), generator=generator())(torch.ones(2, 3)).shape == (2,)
