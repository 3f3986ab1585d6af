from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.threads import all_of
from uda_reid.errors import RecipeError
from uda_reid.models.batch_norm import BatchNorm1d, BatchNorm2d, batch_norms, grouped, shared, statistics_kept
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.run import Run
from uda_reid.sharing import ALONE, Processes
from uda_reid.testing import fingerprint


def test_batch_norms_are_found_wherever_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm1d(4))
    assert batch_norms(net) == [net[1][0], net[2]]  # type: ignore[index]


def test_statistics_stay_inside_and_move_outside() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, momentum=0.3))
    pictures = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def statistics() -> list[torch.Tensor]:
        return [value.clone() for key, value in net.state_dict().items() if "running" in key]

    before = statistics()
    with statistics_kept(net):
        inside = net(pictures)
    assert all(map(torch.equal, statistics(), before))
    torch.testing.assert_close(net(pictures), inside)
    assert not any(map(torch.equal, statistics(), before))
    assert [layer.momentum for layer in batch_norms(net)] == [0.1, None, 0.3]


def test_momentum_comes_back_after_an_error() -> None:
    layer = nn.BatchNorm1d(2)
    try:
        with statistics_kept(layer):
            raise KeyError
    except KeyError:
        assert layer.momentum == 0.1


# By whole batches and by groups

SHAPES = [(8, 3), (8, 3, 5), (8, 3, 4, 2)]
MOMENTA = [0.1, None, 0.0]


def values_of(shape: tuple[int, ...], seed: int = 0, kind: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=kind) + torch.rand(3, generator=generator).to(kind).view(
        1, 3, *[1] * (len(shape) - 2)
    )


def layers(
    shape: tuple[int, ...], group: int, *, momentum: float | None = 0.1, affine: bool = True, track: bool = True
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return torch's layer and ours, with equal weights and statistics."""
    made = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    plain = nn.Sequential(made(3, 1e-3, momentum, affine, track))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    ours = copy.deepcopy(plain)
    grouped(ours, group)
    return plain, ours


def passed(net: nn.Module, values: Tensor, weights: Tensor) -> list[Tensor]:
    """Return what a layer makes of values, and every gradient."""
    values = values.clone().requires_grad_()
    found = net(values)
    (found * weights).sum().backward()
    gradients = [values.grad, *(parameter.grad for parameter in net.parameters())]
    return [found.detach(), *(each.clone() for each in gradients if each is not None)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("training", [True, False])
def test_whole_batches_on_one_process_are_torchs_layer_to_the_last_bit(
    shape: tuple[int, ...], momentum: float | None, training: bool
) -> None:
    plain, ours = layers(shape, 0, momentum=momentum)
    for net in (plain, ours):
        net.train(training)
    for seed in range(3):
        given = values_of(shape, seed), values_of(shape, seed + 10)
        assert all(map(torch.equal, passed(plain, *given), passed(ours, *given)))
        assert fingerprint(plain) == fingerprint(ours)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track": False}])
def test_groups_are_torchs_layer_on_every_group(
    shape: tuple[int, ...], momentum: float | None, options: dict[str, bool]
) -> None:
    plain, ours = layers(shape, 4, momentum=momentum, **options)
    for seed in range(3):
        values, weights = values_of(shape, seed), values_of(shape, seed + 10)
        before, each = copy.deepcopy(plain.state_dict()), []
        for net in (plain, ours):
            net.zero_grad()
        for part, factor in zip(torch.split(values, 4), torch.split(weights, 4), strict=True):
            plain.load_state_dict(before)
            found = passed(plain, part, factor)
            each.append((found[:2], copy.deepcopy(plain.state_dict())))
        mine = passed(ours, values, weights)
        assert torch.equal(mine[0], torch.cat([found[0] for found, _ in each]))
        torch.testing.assert_close(mine[1], torch.cat([found[1] for found, _ in each]))
        for one, other in zip(plain.parameters(), ours.parameters(), strict=True):  # gradients have added up
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad, other.grad)
        mean = {
            name: torch.stack([after[name].double() for _, after in each]).mean(0)
            for name in before if "running" in name
        }  # fmt: skip
        for name, value in mean.items():
            torch.testing.assert_close(ours.state_dict()[name].double(), value, rtol=1e-6, atol=1e-6)
        if not options.get("track", True):
            assert not mean
            continue
        assert int(ours.state_dict()["0.num_batches_tracked"]) == seed + 1
        plain.load_state_dict({**before, **{name: value.float() for name, value in mean.items()}} | {
            "0.num_batches_tracked": torch.tensor(seed + 1)
        })  # fmt: skip


def test_groups_in_evaluation_do_not_matter() -> None:
    plain, ours = layers((5, 3), 4)
    values = values_of((5, 3))
    assert torch.equal(plain.eval()(values), ours.eval()(values))
    assert fingerprint(plain) == fingerprint(ours)


def test_groups_that_do_not_divide_a_batch_are_refused() -> None:
    _, ours = layers((6, 3), 4)
    with pytest.raises(
        RecipeError,
        match=r"^encoder\.bn_group 4 does not divide the 6 images in a batch; choose one that does$",
    ):
        ours(values_of((6, 3)))


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_double_precision_stays(group: int, count: int) -> None:
    plain, ours = layers((8, 3), group)
    for net in (plain, ours):
        net.double()
    values = values_of((8, 3), kind=torch.float64)
    parts = torch.split(values, group or 8)
    expected = torch.cat([copy.deepcopy(plain)(part) for part in parts])

    def work(processes: Processes) -> tuple[Tensor, list[Tensor]]:
        own = copy.deepcopy(ours)
        shared(own, processes, trained=True)
        return own(values[Run(processes=processes).share(8)]).detach(), list(own.buffers())

    for found, buffers in [work(ALONE)] if count == 1 else [all_of(2, work)[0]]:
        assert found.dtype == torch.float64 and all(each.dtype != torch.float32 for each in buffers)
        torch.testing.assert_close(found, expected[: len(found)].detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 4, 2)])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_uneven_shares_are_normalised_by_the_whole_batch(
    shape: tuple[int, ...], count: int, momentum: float | None
) -> None:
    plain, ours = layers(shape, 0, momentum=momentum)
    for net in (plain, ours):
        net.double()
    values, factors = values_of(shape, kind=torch.float64), values_of(shape, 1, torch.float64)
    whole = passed(plain, values, factors)

    def work(processes: Processes) -> tuple[list[Tensor], dict[str, Any]]:
        own = copy.deepcopy(ours)
        shared(own, processes, trained=True)
        share = Run(processes=processes).share(7)
        mine = values[share].clone().requires_grad_()
        found = Run(processes=processes).gather(own(mine), 7)  # every process computes the loss of all
        (found * factors).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in own.parameters() if weight.grad is not None]
        processes.average(gradients)
        assert mine.grad is not None
        return [found.detach(), mine.grad / count, *gradients], own.state_dict()

    results = all_of(count, work)
    for found, state in results:
        torch.testing.assert_close(found[0], whole[0], rtol=1e-12, atol=1e-12)
        for one, other in zip(found[2:], whole[2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12)
            assert torch.equal(state[name], results[0][1][name])
    given = torch.cat([found[1] for found, _ in results])
    torch.testing.assert_close(given, whole[1], rtol=1e-12, atol=1e-12)


def test_groups_never_leave_a_process_and_statistics_are_of_all() -> None:
    _, ours = layers((8, 3), 2)
    values = values_of((8, 3))
    alone = copy.deepcopy(ours)
    expected = alone(values)

    def work(processes: Processes) -> tuple[Tensor, dict[str, Any]]:
        own = copy.deepcopy(ours)
        shared(own, processes, trained=True)
        return own(values[Run(processes=processes).share(8)]).detach(), own.state_dict()

    results = all_of(2, work)
    assert torch.equal(torch.cat([found for found, _ in results]), expected)
    for _, state in results:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value)

    def uneven(processes: Processes) -> None:
        own = copy.deepcopy(ours)
        shared(own, processes, trained=True)
        own(values[:3])

    with pytest.raises(RecipeError, match="bn_group 2 does not divide the 3 images on each of 2 processes; choose one"):
        all_of(2, uneven)


def test_statistics_kept_are_kept_with_several_processes_and_groups() -> None:
    for group in (0, 2):
        _, ours = layers((8, 3), group)

        def work(processes: Processes, ours: nn.Module = ours) -> bool:
            own = copy.deepcopy(ours)
            shared(own, processes, trained=True)
            before = {name: value.clone() for name, value in own.state_dict().items() if "running" in name}
            with statistics_kept(own):
                own(values_of((4, 3), processes.rank))
            kept = all(torch.equal(own.state_dict()[name], value) for name, value in before.items())
            own(values_of((4, 3), processes.rank))
            return kept and not any(torch.equal(own.state_dict()[name], value) for name, value in before.items())

        assert all_of(2, work) == [True, True]


# Where layers are replaced


def test_grouped_keeps_names_tensors_and_flags() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3, 1e-2, None), nn.ReLU()), nn.Flatten(),
        nn.BatchNorm1d(12, affine=False), nn.BatchNorm1d(12, track_running_stats=False),
    )  # fmt: skip
    net[1][0].eval()  # type: ignore[index]
    net[1][0].bias.requires_grad_(False)  # type: ignore[index]
    before = dict([*net.named_parameters(), *net.named_buffers()])
    flags = {name: module.training for name, module in net.named_modules()}
    grouped(net, 4)
    after = dict([*net.named_parameters(), *net.named_buffers()])
    assert list(after) == list(before) and all(after[name] is value for name, value in before.items())
    assert {name: module.training for name, module in net.named_modules()} == flags
    first = net.get_submodule("1.0")
    assert isinstance(first, BatchNorm2d) and (first.eps, first.momentum, first.group) == (1e-2, None, 4)
    assert not first.get_parameter("bias").requires_grad
    assert isinstance(net[3], BatchNorm1d) and isinstance(net[4], BatchNorm1d)
    assert net[3].track_running_stats and not net[4].track_running_stats
    made = list(net.modules())
    grouped(net, 2)  # another group: the same layers
    assert list(net.modules()) == made and {each.group for each in made if hasattr(each, "group")} == {2}
    assert list(map(id, batch_norms(net))) == [id(first), id(net[3]), id(net[4])]


def test_copies_have_the_same_group_and_processes() -> None:
    _, ours = layers((8, 3), 4)

    def work(processes: Processes) -> bool:
        own = copy.deepcopy(ours)
        shared(own, processes, trained=True)
        twin = copy.deepcopy(own)[0]
        assert isinstance(twin, BatchNorm1d)
        return (twin.processes, twin.group) == (processes, 4)

    assert all_of(2, work) == [True, True]


def test_encoders_have_layers_of_their_group() -> None:
    for group in (0, 4):
        spec = EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none", bn_group=group)
        encoder = build(spec)
        assert {layer.group for layer in batch_norms(encoder)} == {group}
    with pytest.raises(RecipeError, match="bn_group 1: one image has no variance; use at least 2, or 0 for the whole"):
        EncoderSpec(backbone="resnet_tiny", weights="none", bn_group=1)


def test_layers_that_cannot_be_shared_are_refused_where_they_are_trained() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))

    def work(processes: Processes) -> None:
        shared(net, processes, trained=False)
        shared(net, processes, trained=True)

    with pytest.raises(RecipeError, match="batch norm sees the images of one process alone; replace it by"):
        all_of(2, work)
    shared(net, ALONE, trained=True)
