from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optimizers import OPTIMIZERS, alone, infinite, layer, losses, same, state
from uda_reid.errors import NotFiniteError
from uda_reid.updates import Updates, fuse


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


def test_a_bad_loss_beside_masked_ones_is_known_too() -> None:
    net, updates = layer(), Updates()
    plain, fused = (OPTIMIZERS["sgd"](list(net.parameters())) for _ in range(2))
    fuse(fused)
    with updates.watched():
        updates.step(losses(net, 1)[0](), [fused], alone)
        updates.now = 1
        updates.step(losses(net, 1)[0]() * torch.inf, [plain], alone)
        assert updates.known_bad and updates.check() == 1


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
