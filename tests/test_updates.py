from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optimizers import OPTIMIZERS, alone, infinite, layer, losses, same, state
from uda_reid.errors import RecipeError
from uda_reid.updates import Updates, fuse

# As plain torch


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_updates_are_those_of_plain_torch_on_the_mean_of_gradients(kind: str, fused: bool, accumulate: int) -> None:
    ours, plain = layer(), layer()
    updates, optimizer, other = (
        Updates(accumulate=accumulate),
        *(OPTIMIZERS[kind](list(net.parameters())) for net in (ours, plain)),
    )
    if fused:
        fuse(optimizer, other)
    for number, (mine, theirs) in enumerate(zip(losses(ours, 9), losses(plain, 9), strict=True), 1):
        updates.step(mine(), [optimizer], alone)
        (theirs() / accumulate).backward()  # type: ignore[no-untyped-call]
        if number % accumulate == 0:
            other.step()
            other.zero_grad()
        assert same(state(ours, optimizer), state(plain, other)), number
        assert updates.settled == (number % accumulate == 0)


def test_accumulated_small_batches_are_one_large_batch() -> None:
    ours, plain = layer(), layer()
    updates = Updates(accumulate=3)
    optimizer, other = OPTIMIZERS["sgd"](list(ours.parameters())), OPTIMIZERS["sgd"](list(plain.parameters()))
    batch = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    for part in torch.split(batch, 4):
        updates.step(ours(part).square().mean(), [optimizer], alone)
    plain(batch).square().mean().backward()
    other.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def test_flush_takes_what_is_left_and_missing_losses_count_as_0() -> None:
    ours, plain = layer(), layer()
    updates = Updates(accumulate=3)
    optimizer, other = OPTIMIZERS["sgd"](list(ours.parameters())), OPTIMIZERS["sgd"](list(plain.parameters()))
    for loss in losses(ours, 2):
        updates.step(loss(), [optimizer], alone)
    assert torch.equal(ours.weight, plain.weight)
    updates.flush(alone)
    (sum((loss() for loss in losses(plain, 2)), torch.zeros(())) / 3).backward()  # type: ignore[no-untyped-call]
    other.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    assert updates.settled
    before = state(ours, optimizer)
    updates.flush(alone)
    assert same(before, state(ours, optimizer))


def test_forgotten_gradients_leave_no_trace() -> None:
    ours, plain = layer(), layer()
    optimizer, other = OPTIMIZERS["sgd"](list(ours.parameters())), OPTIMIZERS["sgd"](list(plain.parameters()))
    updates, twin = Updates(accumulate=2), Updates(accumulate=2)
    updates.step(infinite(ours).nan_to_num(posinf=1e6), [optimizer], alone)
    updates.forget()
    for mine, theirs in zip(losses(ours, 2), losses(plain, 2), strict=True):
        updates.step(mine(), [optimizer], alone)
        twin.step(theirs(), [other], alone)
    assert same(state(ours, optimizer), state(plain, other))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_of_several_optimizers_moves_by_its_own_losses_alone(accumulate: int) -> None:
    # As ADDA does: the encoder's loss goes through the discriminator, and leaves gradients on its weights.
    ours, plain = [nn.Sequential(layer(0), nn.Linear(2, 1)) for _ in range(2)]
    plain.load_state_dict(ours.state_dict())
    updates, mine, theirs = Updates(accumulate=accumulate), list[torch.optim.Optimizer](), list[torch.optim.Optimizer]()
    for net, made in ((ours, mine), (plain, theirs)):
        made += [OPTIMIZERS["adam"](list(net[0].parameters())), OPTIMIZERS["sgd"](list(net[1].parameters()))]
    sums: list[list[Tensor]] = [[], []]
    for number in range(6):
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        for which, sign in ((1, 1.0), (0, -1.0)):
            updates.step(sign * ours(batch).sigmoid().mean(), [mine[which]], alone)
            weights = list(plain[which].parameters())
            found = torch.autograd.grad(sign * plain(batch).sigmoid().mean() / accumulate, weights)
            sums[which] = [
                one + other for one, other in zip(sums[which] or map(torch.zeros_like, found), found, strict=True)
            ]
            if (number + 1) % accumulate == 0:
                for weight, gradient in zip(weights, sums[which], strict=True):
                    weight.grad = gradient
                theirs[which].step()
                sums[which] = []
        assert all(same(state(ours, one), state(plain, other)) for one, other in zip(mine, theirs, strict=True))


def test_one_loss_steps_two_optimizers() -> None:
    ours, plain = nn.Sequential(layer(0), nn.Linear(2, 1)), nn.Sequential(layer(0), nn.Linear(2, 1))
    plain.load_state_dict(ours.state_dict())
    pairs = [[OPTIMIZERS["adam"](list(net[0].parameters())), OPTIMIZERS["sgd"](list(net[1].parameters()))]
             for net in (ours, plain)]  # fmt: skip
    updates = Updates()
    for mine, theirs in zip(losses(ours, 3), losses(plain, 3), strict=True):
        updates.step(mine(), pairs[0], alone)
        plain.zero_grad()
        theirs().backward()  # type: ignore[no-untyped-call]
        for optimizer in pairs[1]:
            optimizer.step()
    assert same(list(ours.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_that_want_no_gradient_or_get_none_stay(accumulate: int) -> None:
    net, unused = layer(), layer(1)
    net.bias.requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([*net.parameters(), *unused.parameters()])
    before = [net.bias.clone(), *(weight.detach().clone() for weight in unused.parameters())]
    moved, updates = net.weight.detach().clone(), Updates(accumulate=accumulate)
    for loss in losses(net, 2):
        updates.step(loss(), [optimizer], alone)
    assert same(before, [net.bias, *unused.parameters()]) and not torch.equal(moved, net.weight)


def test_gradients_are_averaged_over_processes_once_per_update() -> None:
    net, calls = layer(), []

    def halved(tensors: Sequence[Tensor]) -> None:
        calls.append(len(tensors))
        for tensor in tensors:
            tensor /= 2

    plain = layer()
    updates, optimizer = Updates(accumulate=2), torch.optim.SGD(net.parameters(), lr=0.1)
    for loss in losses(net, 3):
        updates.step(loss(), [optimizer], halved)
    assert calls == [2]
    updates.flush(halved)
    assert calls == [2, 2]
    other = torch.optim.SGD(plain.parameters(), lr=0.05)
    twin = Updates(accumulate=2)
    for loss in losses(plain, 3):
        twin.step(loss(), [other], alone)
    twin.flush(alone)
    torch.testing.assert_close(net.weight, plain.weight)


def test_too_few_losses_for_an_update_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^accumulate 0 is out of range; use 1 or more losses for an update$"):
        Updates(accumulate=0)


# Half the learning rate


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fused", [False, True])
def test_halved_rates_are_half_of_what_a_schedule_sets(kind: str, fused: bool) -> None:
    ours, plain = layer(), layer()
    updates, others = Updates(), Updates()
    optimizer, other = OPTIMIZERS[kind](list(ours.parameters())), OPTIMIZERS[kind](list(plain.parameters()))
    if fused:
        fuse(optimizer, other)
    updates.halve()
    updates.halve()
    for number, (mine, theirs) in enumerate(zip(losses(ours, 4), losses(plain, 4), strict=True)):
        rate = 0.1 / (number + 1)
        optimizer.param_groups[0]["lr"], other.param_groups[0]["lr"] = rate, rate / 4
        updates.step(mine(), [optimizer], alone)
        others.step(theirs(), [other], alone)
        assert optimizer.param_groups[0]["lr"] == rate
        assert same(state(ours, optimizer), state(plain, other))
    assert updates.facts() == {"learning rate halved": "2 x, after a loss that was not finite"}
    assert others.facts() == {} and updates.unusual and not others.unusual


def test_halving_forgets_what_waits() -> None:
    net, updates = layer(), Updates(accumulate=2)
    optimizer = OPTIMIZERS["sgd"](list(net.parameters()))
    fuse(optimizer)
    updates.now = 7
    updates.step(infinite(net), [optimizer], alone)
    updates.halve()
    assert updates.settled and updates.now == 0 and updates.check() == -1
    for loss in losses(net, 2):
        updates.step(loss(), [optimizer], alone)
    assert updates.settled and all(value.isfinite().all() for value in state(net, optimizer))


# What is kept


@pytest.mark.parametrize("scaled", [False, True])
def test_state_comes_back(scaled: bool) -> None:
    first, second = Updates(scaled=scaled), Updates(scaled=scaled)
    net = layer()
    first.halve()
    first.step(losses(net, 1)[0]() * 1e35, [OPTIMIZERS["sgd"](list(net.parameters()))], alone)
    assert first.unusual and second.unusual == scaled
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and second.halved == 1
    assert (first.state_dict()["scaler"] or {"scale": 32768.0})["scale"] == 32768
    third = Updates()
    third.load_state_dict(first.state_dict())  # another precision has no use for a scale
    assert third.halved == 1 and third.scaler is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_optimizer_goes_on_from_a_contiguous_state_beside_channels_last_weights(name: str) -> None:
    def trained(steps: int, saved: Any = None) -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        net.to(memory_format=torch.channels_last)
        optimizer = OPTIMIZERS[name](list(net.parameters()))
        fuse(optimizer)
        if saved is not None:
            net.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(steps):
            Updates().step(net(pictures).square().mean(), [optimizer], alone)
        state = copy.deepcopy(optimizer.state_dict())
        for each in state["state"].values():
            each.update({key: value.contiguous() for key, value in each.items() if isinstance(value, Tensor)})
        return net, (copy.deepcopy(net.state_dict()), state)

    whole, _ = trained(4)
    resumed, _ = trained(2, trained(2)[1])
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
