from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from statistics import median_low

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from tests.threads import all_of
from uda_reid.errors import DataError, RecipeError
from uda_reid.run import Run
from uda_reid.sharing import Processes
from uda_reid.strategies.adabn import AdaBN, Moments
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Source, Target


def norms(encoder: nn.Module) -> dict[str, nn.BatchNorm2d | nn.BatchNorm1d]:
    return {
        name: module for name, module in encoder.named_modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
    }


def pictures(target: Target) -> Tensor:
    return target.images.read(torch.arange(len(target.images)), HEIGHT, WIDTH).float() / 255


def inputs_of(layer: nn.Module, encoder: nn.Module, batches: list[Tensor]) -> Tensor:
    """What reaches a layer in a forward pass, as (values, channels) float64."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].double()))
    with torch.no_grad():
        for batch in batches:
            encoder(batch)
    handle.remove()
    return torch.cat([values.movedim(1, -1).flatten(0, -2) for values in seen])


def check_statistics(layer: nn.BatchNorm2d | nn.BatchNorm1d, values: Tensor, *, tolerance: float = 1e-5) -> None:
    assert layer.running_mean is not None and layer.running_var is not None
    torch.testing.assert_close(layer.running_mean.double(), values.mean(0), atol=tolerance, rtol=tolerance)
    spread = (values - values.mean(0)).square().mean(0)  # divided by the number of values, not one less
    torch.testing.assert_close(layer.running_var.double(), spread, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("passes", [1, 3])
def test_adabn_keeps_every_promise_of_a_strategy(passes: int) -> None:
    check_strategy(AdaBN(passes=passes, batch=8), without_training=AdaBN(passes=0))


# The statistics, against plain torch


@pytest.mark.parametrize("batch", [5, 24])
def test_one_pass_takes_the_moments_of_all_inputs_with_layers_normalising_by_the_batch(
    source: Source, target: Target, batch: int
) -> None:
    adapted = AdaBN(batch=batch).adapt(source, target, run=Run(seed=3)).encoder
    order = torch.randperm(24, generator=Run(seed=3).stream("adabn/rows/0"))
    plan = [order] if batch == 24 else [order[:6], order[6:12], order[12:18], order[18:]]
    training = copy.deepcopy(source.encoder).train()
    everything = pictures(target)
    for name, layer in norms(training).items():
        values = inputs_of(layer, training, [everything[rows] for rows in plan])
        check_statistics(norms(adapted)[name], values)


def test_as_many_passes_as_layers_give_every_layer_the_statistics_of_the_adapted_network(
    source: Source, target: Target
) -> None:
    layers = len(norms(source.encoder))
    results = [
        AdaBN(passes=layers, batch=batch).adapt(source, target, run=Run(seed=seed)).encoder
        for seed, batch in ((0, 4), (1, 12))
    ]
    # Whatever the seed and the batches, it is what one layer after the other would be given by hand.
    by_hand = copy.deepcopy(source.encoder).eval()
    for layer in norms(by_hand).values():
        values = inputs_of(layer, by_hand, [pictures(target)])
        layer.running_mean = values.mean(0).float()
        layer.running_var = values.var(0, correction=0).float()
    features = extract(by_hand, target.images)
    for encoder in results:
        for name, layer in norms(encoder).items():
            check_statistics(layer, inputs_of(norms(by_hand)[name], by_hand, [pictures(target)]), tolerance=1e-4)
        torch.testing.assert_close(extract(encoder, target.images), features, atol=1e-3, rtol=1e-3)


def test_one_pass_depends_on_the_batches_a_little(source: Source, target: Target) -> None:
    few = [AdaBN(batch=4).adapt(source, target, run=Run(seed=seed)).encoder for seed in (0, 1)]
    assert fingerprint(few[0]) != fingerprint(few[1])
    whole = [AdaBN(batch=24).adapt(source, target, run=Run(seed=seed)).encoder for seed in (0, 1)]
    for name, value in whole[0].state_dict().items():
        torch.testing.assert_close(whole[1].state_dict()[name], value, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_are_those_of_everything_together(sizes: list[int], seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, 3, 2, 2, generator=numbers) + 5 * torch.randn(1, generator=numbers) for size in sizes]
    moments = Moments(3)
    for batch in batches:
        mean, variance = moments.add(batch)
        torch.testing.assert_close(mean, batch.mean((0, 2, 3)))
        torch.testing.assert_close(variance, batch.var((0, 2, 3), correction=0))
    together = torch.cat(batches).double()
    assert moments.count == 4 * sum(sizes)
    torch.testing.assert_close(moments.mean, together.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moments.variance, together.var((0, 2, 3), correction=0), atol=1e-5, rtol=1e-5)


# What changes and what does not


def test_nothing_but_running_statistics_changes(source: Source, target: Target) -> None:
    result = AdaBN().adapt(source, target)
    before, after = source.encoder.state_dict(), result.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.running_{what}" for name in norms(source.encoder) for what in ("mean", "var")}
    assert not any(module.training for module in result.encoder.modules())
    assert not any(module._forward_pre_hooks for module in result.encoder.modules())
    assert result.facts["batch norm layers with target statistics"] == len(norms(source.encoder)) == 13
    assert result.facts["target images in batch norm"] is True


def test_the_neck_can_keep_the_statistics_of_the_source(source: Source, target: Target) -> None:
    adapted = norms(AdaBN(neck=False).adapt(source, target).encoder)
    whole = norms(AdaBN().adapt(source, target).encoder)
    for name, layer in norms(source.encoder).items():
        kept = fingerprint(adapted[name]) == fingerprint(layer)
        assert kept == (name == "neck")
        assert (fingerprint(adapted[name]) == fingerprint(whole[name])) == (name != "neck")


def test_a_rest_is_dealt_out_so_that_no_batch_is_small(source: Source, target: Target) -> None:
    # 24 images in batches of at least 23 are one batch, and a batch larger than the target is the target.
    one = fingerprint(AdaBN(batch=24).adapt(source, target).encoder)
    for batch in (13, 23, 1000):
        assert fingerprint(AdaBN(batch=batch).adapt(source, target).encoder) == one
    assert fingerprint(AdaBN(batch=12).adapt(source, target).encoder) != one


def test_history_and_probe_have_one_entry_per_pass(source: Source, target: Target) -> None:
    steps: list[int] = []
    run = Run(prober=lambda encoder, step, labels: steps.append(step))
    result = AdaBN(passes=2).adapt(source, target, run=run)
    assert steps == [1, 2]
    assert [entry["images"] for entry in result.history] == [24.0, 24.0]
    old, new = norms(source.encoder), norms(AdaBN().adapt(source, target).encoder)
    shifts, ratios = [], []
    for name, layer in old.items():
        assert layer.running_mean is not None and layer.running_var is not None
        after = new[name].state_dict()
        shifts.append((after["running_mean"] - layer.running_mean).abs() / (layer.running_var + layer.eps).sqrt())
        ratios.append(((after["running_var"] + layer.eps) / (layer.running_var + layer.eps)).sqrt())
    typical = [median_low(torch.cat(values).tolist()) for values in (shifts, ratios)]
    assert [result.history[0][name] for name in ("mean shift", "deviation ratio")] == pytest.approx(typical, rel=1e-4)
    assert result.history[1]["mean shift"] < 0.1 * result.history[0]["mean shift"]


class Painted:
    """Images in memory, (N, 3, H, W) uint8."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        assert self.images.shape[2:] == (height, width)
        return self.images[rows]


class Pointwise(Encoder):
    """A 1x1 convolution, dropout, perhaps batch norm, and the mean over the map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.dim, self.spec = 4, {"height": 6, "width": 5}
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), norm, nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images).mean((2, 3))
        return features


@pytest.fixture
def painted() -> Iterator[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield torch.randint(0, 100, (10, 3, 6, 5), dtype=torch.uint8)


def test_light_that_changes_alike_everywhere_is_undone(source: Source, painted: Tensor) -> None:
    # Behind a pointwise convolution, gain and offset are an affine change of every channel: exactly what is replaced.
    encoder = AdaBN().adapt(replace(source, encoder=Pointwise(nn.BatchNorm2d(4))), Target("dark", Painted(painted)))
    dark = extract(encoder.encoder, Painted(painted))
    bright = 2 * painted + 17
    again = AdaBN().adapt(replace(source, encoder=encoder.encoder), Target("bright", Painted(bright))).encoder
    assert not torch.allclose(extract(encoder.encoder, Painted(bright)), dark, atol=0.1)
    torch.testing.assert_close(extract(again, Painted(bright)), dark, atol=2e-4, rtol=1e-3)


# What is refused


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)])
def test_an_encoder_without_batch_norm_is_refused(source: Source, painted: Tensor, norm: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"^adabn: the encoder Pointwise has no batch norm; take another"):
        AdaBN().adapt(replace(source, encoder=Pointwise(norm)), Target("any", Painted(painted)))


def test_batch_norm_in_the_neck_alone_is_refused_where_the_neck_is_left_out(source: Source, target: Target) -> None:
    bare = copy.deepcopy(source.encoder)
    for layer in norms(bare).values():
        if layer is not bare.neck:
            layer.running_var = None
    with pytest.raises(RecipeError, match=r"^adabn: the encoder resnet_tiny has no batch norm before its neck; "):
        AdaBN(neck=False).adapt(replace(source, encoder=bare), target)


@pytest.mark.parametrize("images", [0, 1])
def test_a_target_without_a_spread_is_refused(source: Source, painted: Tensor, images: int) -> None:
    with pytest.raises(DataError, match=rf"^lone: {images} image has no variance; AdaBN needs at least 2$"):
        AdaBN().adapt(source, Target("lone", Painted(painted[:images])))


@pytest.mark.parametrize("option", [{"passes": -1}, {"batch": 1}, {"momentum": 0.1}])
def test_adabn_refuses_options_out_of_range(option: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        AdaBN(**option)  # type: ignore[arg-type]


class WithAuxiliary(Encoder):
    """An encoder with a batch norm that only training passes through, and no neck that anybody knows."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.dim, self.spec = inner, inner.dim, inner.spec
        self.auxiliary = nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.inner(images)
        return features


def test_layers_that_no_image_reaches_keep_their_statistics(source: Source, target: Target) -> None:
    encoder = WithAuxiliary(copy.deepcopy(source.encoder))
    result = AdaBN().adapt(replace(source, encoder=encoder), target)
    auxiliary = result.encoder.get_submodule("auxiliary")
    assert torch.equal(auxiliary.get_buffer("running_var"), torch.ones(4))
    known = norms(AdaBN().adapt(source, target).encoder)
    for name, layer in norms(result.encoder.get_submodule("inner")).items():
        assert torch.equal(layer.get_buffer("running_mean"), known[name].get_buffer("running_mean"))


def test_an_unknown_neck_cannot_be_left_out(source: Source, target: Target) -> None:
    with pytest.raises(RecipeError, match="neck false: the encoder WithAuxiliary has no known neck"):
        AdaBN(neck=False).adapt(replace(source, encoder=WithAuxiliary(source.encoder)), target)


# Several processes


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 5))
def test_moments_are_mixed_to_those_of_all_values(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, 3, generator=generator, dtype=torch.float64) * 3 + 10 for size in sizes]
    every = Moments(3)
    for part in parts:
        empty = torch.zeros(3, dtype=torch.float64)
        every.mix(len(part), *(part.mean(0), part.var(0, correction=0)) if len(part) else (empty, empty))
    values = torch.cat(parts)
    assert every.count == len(values)
    if every.count:
        torch.testing.assert_close(every.mean, values.mean(0))
        torch.testing.assert_close(every.variance, values.var(0, correction=0))
    else:
        assert not every.mean.any() and not every.variance.any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_moments_of_all_processes_are_the_same_on_each(count: int) -> None:
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * 2 - 5

    def work(processes: Processes) -> Moments:
        mine = Moments(3)
        for part in torch.split(values, [4, 5])[
            processes.rank :: processes.count
        ]:  # of three processes one has nothing
            mine.add(part)
        return mine.of_all(Run(processes=processes))

    for found in all_of(count, work):
        assert found.count == 9
        torch.testing.assert_close(found.mean, values.double().mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.variance, values.double().var(0, correction=0), rtol=1e-5, atol=1e-6)
