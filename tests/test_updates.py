from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import NotFiniteError, RecipeError
from uda_reid.updates import Updates, fuse

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "plain sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01),
}


def alone(_: Sequence[Tensor]) -> None:
    return None


def layer(seed: int = 0, *, inputs: int = 3) -> nn.Linear:
    made = nn.Linear(inputs, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return made


def losses(net: nn.Module, count: int, seed: int = 0) -> list[Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(4, 3, generator=generator) for _ in range(count)]
    return [lambda batch=batch: net(batch).square().mean() for batch in batches]  # type: ignore[misc]


def infinite(net: nn.Module) -> Tensor:
    loss: Tensor = net(torch.full((1, 3), torch.inf)).square().sum()
    return loss


def state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [each.detach().clone() for each in (*net.parameters(), *moments)]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


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


# A loss that is not finite


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("factor", [torch.inf, -torch.inf, torch.nan])
def test_where_every_loss_is_looked_at_it_is_an_error_at_once(accumulate: int, factor: float) -> None:
    net, updates = layer(), Updates(accumulate=accumulate)
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    good = losses(net, 3)
    for loss in good:
        updates.step(loss(), [optimizer], alone)
    before = state(net, optimizer)
    with pytest.raises(NotFiniteError, match=r"^the loss became (-?inf|nan); lower the learning rate"):
        updates.step(good[0]() * factor, [optimizer], alone)
    assert same(before, state(net, optimizer))
    assert updates.check() == -1  # nothing is left to tell later


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bad_at", [0, 2])
def test_on_a_device_the_update_is_masked_and_the_first_bad_step_is_told_later(kind: str, bad_at: int) -> None:
    net, twin = layer(), layer()
    updates, others = Updates(), Updates()
    optimizer, other = OPTIMIZERS[kind](list(net.parameters())), OPTIMIZERS[kind](list(twin.parameters()))
    fuse(optimizer, other)
    good, theirs = losses(net, 6), losses(twin, 6)
    for number in range(6):
        updates.now = number
        if number in (bad_at, 4):
            before = state(net, optimizer)
            moments = len(optimizer.state)
            updates.step(infinite(net) * (0 if number == 4 else 1), [optimizer], alone)
            assert not moments or same(before, state(net, optimizer))
            assert same(before[:2], state(net, optimizer)[:2])
        else:
            updates.step(good[number](), [optimizer], alone)
            others.step(theirs[number](), [other], alone)
    # Later good losses go on as if the bad ones had not been there.
    assert same(state(net, optimizer), state(twin, other))
    assert updates.check() == bad_at
    assert updates.check() == -1
    updates.step(good[0](), [optimizer], alone)
    assert updates.check() == -1


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_update_with_one_bad_loss_among_several_is_masked(bad: int) -> None:
    net, updates = layer(), Updates(accumulate=3)
    optimizer = OPTIMIZERS["sgd"](list(net.parameters()))
    fuse(optimizer)
    good = losses(net, 6)
    for loss in good[:3]:
        updates.step(loss(), [optimizer], alone)
    before = state(net, optimizer)
    for number, loss in enumerate(good[3:]):
        updates.now = number
        updates.step(infinite(net) if number == bad else loss(), [optimizer], alone)
    assert same(before, state(net, optimizer))
    assert updates.check() == bad
    updates.step(infinite(net), [optimizer], alone)
    updates.flush(alone)
    assert same(before, state(net, optimizer))
    for loss in good[:3]:
        updates.step(loss(), [optimizer], alone)
    assert not same(before, state(net, optimizer)) and all(value.isfinite().all() for value in state(net, optimizer))


def test_momentum_of_a_masked_first_update_is_not_left_to_chance() -> None:
    for _ in range(5):  # what lies in fresh memory differs from time to time
        net = nn.Linear(5000, 1)
        optimizer, updates = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), Updates()
        fuse(optimizer)
        updates.step(net(torch.full((1, 5000), torch.nan)).sum(), [optimizer], alone)
        assert not optimizer.state[net.weight]["momentum_buffer"].any()
        junk = torch.full((1, 5000), 3.0)
        del junk


def test_one_optimizer_that_cannot_mask_makes_every_loss_looked_at() -> None:
    net, updates = layer(), Updates()
    fused, plain = torch.optim.SGD([net.weight], lr=0.1), torch.optim.SGD([net.bias], lr=0.1)
    fuse(fused)
    before = state(net, fused)
    with pytest.raises(NotFiniteError):
        updates.step(infinite(net), [fused, plain], alone)
    assert same(before, state(net, fused))


def test_only_optimizers_that_have_not_begun_are_fused() -> None:
    net = layer()
    begun, fresh = OPTIMIZERS["adam"](list(net.parameters())), torch.optim.Rprop(net.parameters())
    Updates().step(losses(net, 1)[0](), [begun], alone)
    fuse(begun, fresh)
    assert not begun.param_groups[0]["fused"] and "fused" not in fresh.param_groups[0]


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


# float16


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


# What is kept


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


def test_a_bad_loss_beside_masked_ones_is_known_too() -> None:
    net, updates = layer(), Updates()
    plain, fused = (OPTIMIZERS["sgd"](list(net.parameters())) for _ in range(2))
    fuse(fused)
    with updates.watched():
        updates.step(losses(net, 1)[0](), [fused], alone)
        updates.now = 1
        updates.step(losses(net, 1)[0]() * torch.inf, [plain], alone)
        assert updates.known_bad and updates.check() == 1


def test_scaled_gradients_of_optimizers_at_different_rates_cannot_be_accumulated() -> None:
    nets, updates = [layer(), layer()], Updates(scaled=True, accumulate=2)
    often, seldom = (OPTIMIZERS["sgd"](list(net.parameters())) for net in nets)
    updates.step(losses(nets[1], 1)[0](), [seldom], alone)
    with pytest.raises(RecipeError, match=r"fp16 cannot accumulate .*; use --precision bf16 or --accumulate 1$"):
        for loss in losses(nets[0], 4):
            updates.step(loss(), [often], alone)


def test_while_somebody_watches_a_bad_loss_stops_all_updates_until_it_is_told() -> None:
    net, updates = layer(), Updates()
    optimizer = OPTIMIZERS["sgd"](list(net.parameters()))
    before = state(net, optimizer)
    with updates.watched():
        updates.now = 3
        for loss in (losses(net, 1)[0]() * torch.inf, losses(net, 1)[0]()):
            updates.step(loss, [optimizer], alone)
            assert updates.known_bad and same(before, state(net, optimizer))
        assert updates.check() == 3 and not updates.known_bad
        updates.step(losses(net, 1)[0]() * torch.inf, [optimizer], alone)
    assert not updates.known_bad
    with pytest.raises(NotFiniteError):
        updates.step(losses(net, 1)[0]() * torch.inf, [optimizer], alone)


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
