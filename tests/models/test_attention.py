from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uda_reid.errors import RecipeError
from uda_reid.models.attention import Attention, Shape

SHAPES: tuple[Shape, ...] = ("spatial", "channel", "both")


def made(shape: Shape, channels: int = 32, *, started: bool = True) -> Attention:
    """An attention whose last layers have moved from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = Attention(channels, shape)
        if started:
            for weight in attention.parameters():
                torch.nn.init.normal_(weight, std=0.3)
    return attention


def maps(channels: int = 32) -> Tensor:
    return torch.randn(3, channels, 4, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_add_up_to_the_maps(shape: Shape) -> None:
    attention, everything = made(shape), maps()
    shared, specific = attention(everything)
    torch.testing.assert_close(shared + specific, everything, rtol=2**-23, atol=0)
    weights = attention.weights(everything)
    assert bool(((weights > 0) & (weights < 1)).all())
    assert float(weights.detach().std()) > 0.01
    torch.testing.assert_close(shared, weights * everything, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_either_part_is_half(shape: Shape) -> None:
    attention, everything = made(shape, started=False), maps()
    assert bool((attention.weights(everything) == 0.5).all())
    for part in attention(everything):
        assert torch.equal(part, everything / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_pulls_both_parts_alike_pulls_the_maps_and_not_the_attention(shape: Shape) -> None:
    attention, everything = made(shape), maps().requires_grad_()
    upstream = torch.randn(everything.shape, generator=torch.Generator().manual_seed(2))
    shared, specific = attention(everything)
    ((shared + specific) * upstream).sum().backward()
    assert everything.grad is not None
    torch.testing.assert_close(everything.grad, upstream, rtol=1e-4, atol=1e-5)
    for weight in attention.parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.zeros_like(weight), rtol=0, atol=2e-5)


def slow_weights(attention: Attention, everything: Tensor) -> Tensor:
    """The formula, place by place."""
    named: dict[str, Any] = dict(attention.named_parameters())
    batch, channels, height, width = everything.shape
    logits = torch.zeros(batch, channels, height, width)
    if "places.0.weight" in named:
        between = torch.einsum("bchw,kc->bkhw", everything, named["places.0.weight"][:, :, 0, 0])
        between = F.pad((between + named["places.0.bias"][:, None, None]).clamp(min=0), (1, 1, 1, 1))
        for row in range(height):
            for column in range(width):
                window = between[:, :, row : row + 3, column : column + 3]
                place = (window * named["places.2.weight"]).sum((1, 2, 3)) + named["places.2.bias"]
                logits[:, :, row, column] += place[:, None]
    if "channels.1.weight" in named:
        hidden = everything.mean((2, 3)) @ named["channels.1.weight"][:, :, 0, 0].T + named["channels.1.bias"]
        each = hidden.clamp(min=0) @ named["channels.3.weight"][:, :, 0, 0].T + named["channels.3.bias"]
        logits = logits + each[:, :, None, None]
    return 1 / (1 + (-logits).exp())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [32, 5])
def test_attention_is_its_formula(shape: Shape, channels: int) -> None:
    attention = made(shape, channels)
    everything = maps(channels)
    found = attention.weights(everything).expand_as(everything)
    torch.testing.assert_close(found, slow_weights(attention, everything), rtol=1e-5, atol=1e-6)


def test_spatial_attention_is_one_number_a_place_and_channel_attention_one_a_channel() -> None:
    assert made("spatial").weights(maps()).shape == (3, 1, 4, 2)
    assert made("channel").weights(maps()).shape == (3, 32, 1, 1)
    assert made("both").weights(maps()).shape == (3, 32, 4, 2)


def test_products_keep_the_memory_layout_of_the_maps() -> None:
    everything = maps().contiguous(memory_format=torch.channels_last)
    for part in made("both")(everything):
        assert part.is_contiguous(memory_format=torch.channels_last)


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^attention 'wide' is unknown; use spatial, channel, both$"):
        Attention(8, "wide")  # type: ignore[arg-type]
