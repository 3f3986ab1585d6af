from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uda_reid.errors import RecipeError
from uda_reid.models.heads import Classifier, Discriminator, DomainSimilarity, OneClass, centroid_classifier


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


# ---- the classifier of clusters ------------------------------------------


def test_centroid_classifier_scores_by_the_centroids_and_has_no_biases() -> None:
    centroids = torch.randn(3, 8, generator=generator(1))
    head = centroid_classifier(centroids, dropout=0.4, generator=generator())
    assert head.state_dict().keys() == {"linear.weight"}
    assert head.dropout.p == 0.4
    embeddings = torch.randn(5, 8, generator=generator(2))
    torch.testing.assert_close(head.eval()(embeddings), embeddings @ centroids.T)


def test_centroid_classifier_without_clusters_has_one_output() -> None:
    assert centroid_classifier(torch.zeros(0, 8), generator=generator())(torch.ones(2, 8)).shape == (2, 1)


# ---- domain similarity ---------------------------------------------------

FORMS: tuple[OneClass, ...] = ("three", "bce", "svdd")


def similar(form: OneClass, dim: int = 8) -> DomainSimilarity:
    """A head that has learned something; its ball is centred at 0."""
    head = DomainSimilarity(dim, form, generator=generator())
    for seed, weight in enumerate(head.parameters()):
        torch.nn.init.normal_(weight, std=0.7, generator=generator(seed))
    head.similarity(torch.zeros(1, dim))
    return head


@pytest.mark.parametrize("form", FORMS)
def test_similarity_does_not_know_which_domain_an_embedding_is_of(form: OneClass) -> None:
    head = similar(form)
    shared, specific = (torch.randn(10, 8, generator=generator(seed)) for seed in (1, 2))
    usual, apart = head(shared, specific, 5)
    swapped, turned = head(shared.roll(5, 0), specific.roll(5, 0), 5)
    torch.testing.assert_close(swapped, usual)
    assert abs(float(turned.detach()) - float(apart.detach())) > 0.01  # a loss of domains does
    assert torch.equal(head(shared, specific, 3)[0], usual)  # nor how many are of either


@pytest.mark.parametrize("form", FORMS)
def test_similarity_moves_equal_embeddings_of_both_domains_the_same_way(form: OneClass) -> None:
    """What separates it from a reversed gradient, which moves them opposite ways."""
    head, same = similar(form), torch.randn(1, 8, generator=generator(1))
    shared = same.repeat(2, 1).requires_grad_()
    head(shared, torch.zeros(2, 8), 1)[0].backward()
    assert shared.grad is not None
    assert torch.equal(shared.grad[0], shared.grad[1])
    assert float(shared.grad.abs().sum()) > 0


def test_losses_of_heads_that_know_nothing() -> None:
    zeros = torch.zeros(4, 8)
    three, bce, svdd = (DomainSimilarity(8, form, generator=generator()) for form in FORMS)
    assert [float(loss.detach()) for loss in three(zeros, zeros, 2)] == pytest.approx([math.log(3)] * 2)
    assert [float(loss.detach()) for loss in bce(zeros, zeros, 2)] == pytest.approx([math.log(2)] * 2)
    ones = torch.ones(4, 8)
    assert float(svdd(ones, zeros, 2)[0].detach()) == 0  # the centre is the mean of the first batch
    assert float(svdd(3 * ones, zeros, 2)[0].detach()) > 0  # and stays there
    assert float(svdd(ones, zeros, 2)[0].detach()) == 0


def test_three_classes_are_source_target_and_nominal() -> None:
    head = similar("three")
    shared, specific = (torch.randn(6, 8, generator=generator(seed)) for seed in (1, 2))
    weight, bias = head.one.linear.weight, head.one.linear.bias

    def cost(row: Tensor, wanted: int) -> Tensor:
        logits = weight @ row + bias
        return logits.logsumexp(0) - logits[wanted]

    similarity, told = head(shared, specific, 2)
    torch.testing.assert_close(similarity, torch.stack([cost(row, 2) for row in shared]).mean())
    domains = [0, 0, 1, 1, 1, 1]
    costs = [cost(row, domain) for row, domain in zip(specific, domains, strict=True)]
    torch.testing.assert_close(told, torch.stack(costs).mean())


def test_one_logistic_class_is_not_satisfied_by_growing() -> None:
    head, shared = similar("bce"), torch.randn(6, 8, generator=generator(1))
    usual = head.similarity(shared)
    direction = head.one.linear.weight[0] / head.one.linear.weight.norm()
    torch.testing.assert_close(usual, (1 + (-shared @ direction).exp()).log().mean())
    with torch.no_grad():
        head.one.linear.weight.mul_(100)
    torch.testing.assert_close(head.similarity(shared), usual)


def test_ball_is_around_the_mean_of_the_first_batch() -> None:
    head = DomainSimilarity(8, "svdd", generator=generator())
    first, second = (torch.randn(5, 8, generator=generator(seed)) for seed in (1, 2))
    weight = head.one.linear.weight
    centre = (first @ weight.T).mean(0)
    for batch in (first, second):
        expected = ((batch @ weight.T - centre) ** 2).sum(1).mean()
        torch.testing.assert_close(head.similarity(batch), expected)
    assert set(head.state_dict()) >= {"centre", "centred"}  # a resumed training keeps it


@pytest.mark.parametrize("form", ["bce", "svdd"])
def test_other_forms_tell_the_specific_embeddings_apart_by_a_layer_of_their_own(form: OneClass) -> None:
    head = similar(form)
    specific = torch.randn(5, 8, generator=generator(2))
    logits = head.two(specific)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 1.0, 0, 0, 0]))
    torch.testing.assert_close(head(specific, specific, 2)[1], expected)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^one-class loss 'two' is unknown; use three, bce, svdd$"):
        DomainSimilarity(8, "two", generator=generator())  # type: ignore[arg-type]
