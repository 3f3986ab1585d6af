from __future__ import annotations

import pytest
import torch

from tests.optimizers import OPTIMIZERS, alone, layer, losses, same, state
from uda_reid.errors import RecipeError
from uda_reid.updates import Updates, fuse


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_scaled_losses_give_the_same_weights(fused: bool, accumulate: int) -> None:
    ours, plain = layer(), layer()
    updates, others = Updates(scaled=True, accumulate=accumulate), Updates(accumulate=accumulate)
    optimizer, other = OPTIMIZERS["sgd"](list(ours.parameters())), OPTIMIZERS["sgd"](list(plain.parameters()))
    if fused:
        fuse(optimizer, other)
    for mine, theirs in zip(losses(ours, 4), losses(plain, 4), strict=True):
        updates.step(mine(), [optimizer], alone)
        others.step(theirs(), [other], alone)
    updates.flush(alone)
    others.flush(alone)
    assert same(list(ours.parameters()), list(plain.parameters()))  # the scale is a power of two


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_overflow_by_the_scale_are_left_out_and_the_scale_is_halved(fused: bool) -> None:
    net, updates = layer(), Updates(scaled=True)
    optimizer = OPTIMIZERS["sgd"](list(net.parameters()))
    if fused:
        fuse(optimizer)
    before = state(net, optimizer)
    updates.step(losses(net, 1)[0]() * 1e35, [optimizer], alone)  # finite, but not 65536 times it
    assert same(before, [*net.parameters()])
    assert updates.state_dict()["scaler"]["scale"] == 32768 and updates.check() == -1
    updates.step(losses(net, 1)[0](), [optimizer], alone)
    plain = layer()
    other = OPTIMIZERS["sgd"](list(plain.parameters()))
    Updates().step(losses(plain, 1)[0](), [other], alone)
    torch.testing.assert_close(net.weight, plain.weight)


def test_a_loss_that_is_not_finite_is_masked_beside_a_scale_too() -> None:
    net, updates = layer(), Updates(scaled=True)
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    fuse(optimizer)
    before = [weight.detach().clone() for weight in net.parameters()]
    updates.step(losses(net, 1)[0]() + torch.nan, [optimizer], alone)  # gradients would be finite
    assert same(before, list(net.parameters())) and updates.check() == 0
    updates.step(losses(net, 1)[0](), [optimizer], alone)
    assert not same(before, list(net.parameters())) and updates.check() == -1


@pytest.mark.parametrize("overflow", [0, 1])
def test_gradients_that_wait_keep_the_scale_that_they_were_multiplied_by(overflow: int) -> None:
    one, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([weight], lr=1.0) for weight in (one, other)]
    updates = Updates(accumulate=2, scaled=True)
    for number in range(2):
        updates.step(one.sum() * (1e38 if number == overflow else 1.0), optimizers[:1], alone)
        updates.step(other.sum(), optimizers[1:], alone)
    assert (float(one.detach()), float(other.detach())) == (0.0, -1.0)


def test_scaled_gradients_of_optimizers_at_different_rates_cannot_be_accumulated() -> None:
    nets, updates = [layer(), layer()], Updates(scaled=True, accumulate=2)
    often, seldom = (OPTIMIZERS["sgd"](list(net.parameters())) for net in nets)
    updates.step(losses(nets[1], 1)[0](), [seldom], alone)
    with pytest.raises(RecipeError, match=r"fp16 cannot accumulate .*; use --precision bf16 or --accumulate 1$"):
        for loss in losses(nets[0], 4):
            updates.step(loss(), [often], alone)
