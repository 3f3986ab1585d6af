from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.run import QUIET, Run


def test_streams_with_the_same_name_repeat_and_others_differ() -> None:
    run = Run(seed=3)
    first = torch.rand(4, generator=run.stream("a"))
    assert torch.equal(first, torch.rand(4, generator=run.stream("a")))
    assert not torch.equal(first, torch.rand(4, generator=run.stream("b")))
    assert not torch.equal(first, torch.rand(4, generator=Run(seed=4).stream("a")))


def test_randomness_is_a_stream_of_its_own_and_leaves_the_global_one() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with QUIET.randomness("x"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    with QUIET.randomness("x"):
        assert torch.equal(torch.rand(3), first)


def test_step_equals_plain_torch() -> None:
    ours, plain = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    inputs = torch.rand(5, 3)
    optimizer, other = torch.optim.SGD(ours.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(2):
        QUIET.step(ours(inputs).square().sum(), optimizer)
        other.zero_grad()
        plain(inputs).square().sum().backward()
        other.step()
    assert torch.equal(ours.weight, plain.weight)


def test_a_run_with_other_options_makes_its_own_updates_and_keeps_the_count_of_halvings() -> None:
    run = Run(rollbacks=3)
    run.updates.halve()
    assert replace(run, seed=1).updates is run.updates
    other = replace(run, accumulate=2)
    assert (other.updates.accumulate, other.updates.halved) == (2, 1)
    assert replace(run, precision="fp16").updates.scaler is not None


def test_step_refuses_a_loss_that_is_not_finite_and_changes_nothing() -> None:
    layer = torch.nn.Linear(1, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(UdaReidError, match="the loss became nan; lower the learning rate"):
        QUIET.step(layer(torch.tensor([[float("nan")]])).sum(), torch.optim.SGD(layer.parameters(), lr=1.0))
    assert torch.equal(layer.weight, before)


def test_run_refuses_an_unknown_precision() -> None:
    with pytest.raises(RecipeError, match="precision 'fp8' is unknown; use one of fp32, bf16, fp16"):
        Run(precision="fp8")  # type: ignore[arg-type]


def test_quiet_run_keeps_nothing() -> None:
    QUIET.save("x", {"a": 1})
    assert QUIET.restore("x") is None
    assert list(QUIET.progress([1, 2], "counting")) == [1, 2]
