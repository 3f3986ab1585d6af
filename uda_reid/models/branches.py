"""A branch for what two domains share and one for what is specific to each, made of an encoder's last stage."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uda_reid.errors import RecipeError
from uda_reid.models.attention import Shape
from uda_reid.models.encoder import Embedder, EncoderSpec
from uda_reid.types import Encoder


class Parted(NamedTuple):
    """What `TwoBranches` makes of B images; all float32."""

    pooled: Tensor
    """(B, dim) shared embeddings before the neck."""
    embeddings: Tensor
    """(B, dim) the same behind it: what images are searched by."""
    specific: Tensor
    """(B, dim) specific embeddings, which have no neck."""
    share: Tensor
    """(B,) without gradient: how much of an image's maps the attention took for shared, in [0, 1]."""


class TwoBranches(nn.Module):
    """An encoder with an attention, and a second copy of its last stage for the maps that the attention leaves.

    Args:
        encoder: the shared branch; it does not depend on the other one and is used without it later.
    """

    def __init__(self, encoder: Embedder) -> None:
        super().__init__()
        self.encoder = encoder
        last = encoder.trunk[encoder.last_stage :], encoder.pooling, encoder.projection
        self.specific = nn.Sequential(*copy.deepcopy(last))

    def forward(self, images: Tensor) -> Parted:
        """Return the embeddings of images (B, 3, H, W) float in [0, 1]."""
        if self.encoder.attention is None:
            raise RecipeError("the encoder has no attention to part its maps with; make it by with_attention")
        maps = self.encoder.early(images)
        shared, specific = self.encoder.attention(maps)
        pooled = self.encoder.late(shared)
        stage, pooling, projection = self.specific
        left = projection(pooling(stage(specific).float())).float()  # as `Embedder.late`
        with torch.no_grad():
            share = shared.float().abs().sum((1, 2, 3)) / maps.float().abs().sum((1, 2, 3)).clamp_min(1e-12)
        return Parted(pooled, self.encoder.neck(pooled).float(), left, share)


def with_attention(encoder: Encoder, shape: Shape, *, seed: int = 0) -> Embedder:
    """Return a copy of `encoder` with an attention before its last stage, which embeds every image as before.

    A fresh attention halves the maps, and the layers that read them get weights twice as large: both are exact in
    floating point. An encoder that has this attention already is copied as it is.

    Args:
        encoder: the encoder.
        shape: what the attention looks at.
        seed: of the attention's weights.

    Raises:
        RecipeError: the encoder was not made by `build`, or has an attention of another shape.
    """
    if not isinstance(encoder, Embedder):
        kind = type(encoder).__name__
        raise RecipeError(f"the encoder {kind} has no known last stage to part; use one of models.encoder.BACKBONES")
    own = encoder.spec.get("attention", "none")
    if own == shape:
        return copy.deepcopy(encoder)
    if own != "none":
        raise RecipeError(f"the encoder has attention {own!r} already, not {shape!r}; use one for both")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        parted = Embedder(EncoderSpec(**{**encoder.spec, "attention": shape, "weights": "none"}))
    parted.spec = {**encoder.spec, "attention": shape}
    parted.load_state_dict({**parted.state_dict(), **encoder.state_dict()})
    for name, weight in encoder.named_parameters():
        parted.get_parameter(name).requires_grad_(weight.requires_grad)
    with torch.no_grad():
        for layer in _readers(parted):
            layer.weight.mul_(2)
    return parted.to(encoder.mean.device).train(encoder.training)


def _readers(encoder: Embedder) -> list[nn.Conv2d]:
    """Return the layers of the last stage that its maps enter by."""
    stage = encoder.trunk[encoder.last_stage :].eval()
    layers = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    maps, found = torch.zeros(1, layers[0].in_channels, 4, 4), []

    def look(layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        if inputs[0] is maps:
            found.append(layer)

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    stage(maps)
    for handle in handles:
        handle.remove()
    return found
