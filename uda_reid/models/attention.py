"""Residual attention: feature maps are parted into what two domains share and what is specific to each."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from uda_reid.errors import RecipeError

Shape = Literal["spatial", "channel", "both"]
"""What an attention looks at: places, channels, or their sum."""

NARROWER = 16
"""How many times fewer channels there are between the two layers of either part."""


class Attention(nn.Module):
    """Maps F to the shared maps A * F and the specific maps F - A * F, with one attention A in (0, 1).

    A = sigmoid(S(F) + C(F)). S is one number for every place: a 1x1 convolution to a sixteenth of the channels, ReLU, a
    3x3 convolution to one. C is one for every channel: the mean over the map, a layer to a sixteenth, ReLU, a layer
    back. Either may be left out. The last layers start at zero, so A is 1/2 at the start.

    Args:
        channels: of the maps.
        shape: which of S and C there are.

    Raises:
        RecipeError: the shape is unknown.

    Source: that the shared maps are A * F and the specific ones the rest is from Huang et al. (arXiv:1905.10529, AAAI
    2020). How A is computed is not known; this is a choice, in the manner of squeeze-and-excitation and of CBAM.

    >>> import torch
    >>> shared, specific = Attention(32, "both")(torch.ones(1, 32, 4, 2))
    >>> shared.mean().item(), specific.mean().item()
    (0.5, 0.5)
    """

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        if shape not in get_args(Shape):
            raise RecipeError(f"attention {shape!r} is unknown; use {', '.join(get_args(Shape))}")
        between = max(channels // NARROWER, 1)
        self.places = self.channels = None
        if shape != "channel":
            last = nn.Conv2d(between, 1, 3, padding=1)
            self.places = _from_zero(nn.Conv2d(channels, between, 1), nn.ReLU(), last)
        if shape != "spatial":
            mean = nn.AdaptiveAvgPool2d(1)
            last = nn.Conv2d(between, channels, 1)
            self.channels = _from_zero(mean, nn.Conv2d(channels, between, 1), nn.ReLU(), last)

    def weights(self, maps: Tensor) -> Tensor:
        """Return A of maps (B, C, h, w): (B, C, h, w), (B, 1, h, w) of places alone, (B, C, 1, 1) of channels alone."""
        logits = [part(maps) for part in (self.places, self.channels) if part is not None]
        total: Tensor = logits[0] if len(logits) == 1 else logits[0] + logits[1]
        return total.sigmoid()

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shared and the specific maps, (B, C, h, w) each; their sum is `maps`."""
        shared = maps * self.weights(maps)  # in this order: the product keeps the memory layout of the maps
        return shared, maps - shared


def _from_zero(*layers: nn.Module) -> nn.Sequential:
    """Return the layers in a row, the last of them with all weights at 0."""
    for weight in layers[-1].parameters():
        nn.init.zeros_(weight)
    return nn.Sequential(*layers)
