from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import RecipeError
from uda_reid.models.attention import Shape
from uda_reid.models.branches import TwoBranches, with_attention
from uda_reid.models.encoder import BACKBONES, Embedder, EncoderSpec, build
from uda_reid.testing import fingerprint
from uda_reid.training.encoders import load_encoder, save_encoder
from uda_reid.types import Encoder

PICTURES = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def made(backbone: str = "resnet_tiny", **options: Any) -> Embedder:
    """An encoder whose batch norm layers have something to say."""
    encoder = build(EncoderSpec(backbone=backbone, height=64, width=32, weights="none", **options), seed=3)
    numbers = torch.Generator().manual_seed(4)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.get_buffer("running_mean"), std=0.1, generator=numbers)
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2.0, generator=numbers)
    return encoder.eval()


def embedded(encoder: nn.Module) -> Tensor:
    with torch.inference_mode():
        embeddings: Tensor = encoder(PICTURES)
    return embeddings


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("resnet34", "resnet101")])
def test_fresh_attention_changes_no_embedding_by_a_bit(backbone: str) -> None:
    encoder = made(backbone)
    parted = with_attention(encoder, "both")
    assert torch.equal(embedded(parted), embedded(encoder))
    assert float(embedded(encoder).std()) > 0


@pytest.mark.parametrize("shape", ["spatial", "channel"])
def test_fresh_attention_of_either_shape_changes_nothing(shape: Shape) -> None:
    encoder = made(dim=24, pooling="gem")
    before = fingerprint(encoder)
    assert torch.equal(embedded(with_attention(encoder, shape)), embedded(encoder))
    assert fingerprint(encoder) == before


def test_seed_draws_the_attention_and_leaves_torch_alone() -> None:
    encoder, state = made(), torch.get_rng_state()
    one, other, again = (with_attention(encoder, "both", seed=seed) for seed in (1, 2, 1))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_is_taken_over_where_there_is_one_and_not_exchanged() -> None:
    parted = with_attention(made(), "spatial")
    again = with_attention(parted, "spatial")
    assert fingerprint(again) == fingerprint(parted) and again is not parted
    with pytest.raises(RecipeError, match=r"^the encoder has attention 'spatial' already, not 'both'"):
        with_attention(parted, "both")


class Foreign(Encoder):
    """An encoder of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.spec = 3, dict[str, Any]()


def test_encoder_without_known_stages_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^the encoder Foreign has no known last stage to part"):
        with_attention(Foreign(), "both")
    with pytest.raises(RecipeError, match=r"^the encoder has no attention to part its maps with"):
        TwoBranches(made())(PICTURES)


def test_attention_of_one_is_the_plain_network_and_leaves_the_specific_branch_nothing() -> None:
    plain = made(neck="none")
    parted = made(neck="none", attention="both")
    parted.load_state_dict({**parted.state_dict(), **plain.state_dict()})
    assert parted.attention is not None and parted.attention.channels is not None
    nn.init.constant_(parted.attention.channels[-1].bias, 1e4)  # type: ignore[arg-type]
    assert torch.equal(embedded(parted), embedded(plain))
    with torch.inference_mode():
        maps = parted.early(PICTURES)
        assert not parted.attention(maps)[1].any()
        assert torch.equal(TwoBranches(parted).eval()(PICTURES).share, torch.ones(3))


def test_both_branches_start_as_the_source_stage() -> None:
    encoder = made(dim=24)
    with torch.inference_mode():
        found = TwoBranches(with_attention(encoder, "both")).eval()(PICTURES)
        assert torch.equal(found.pooled, encoder.pooled(PICTURES))
        assert torch.equal(found.specific, found.pooled)
        assert torch.equal(found.embeddings, encoder(PICTURES))
    assert torch.equal(found.share, torch.full((3,), 0.5))


def test_shared_embedding_needs_nothing_of_the_specific_branch() -> None:
    net = TwoBranches(with_attention(made(), "both")).eval()
    alone = copy.deepcopy(net.encoder)
    for weight in net.specific.parameters():
        nn.init.constant_(weight, torch.nan)
    with torch.inference_mode():
        assert torch.equal(net(PICTURES).embeddings, alone(PICTURES))


def test_branches_are_equal_at_the_start_in_half_precision_too() -> None:
    net = TwoBranches(with_attention(made(), "both")).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(PICTURES)
    assert torch.equal(found.specific, found.pooled)
    assert found.specific.dtype == torch.float32


def test_weights_that_were_fixed_stay_fixed() -> None:
    encoder = made()
    encoder.trunk[0].weight.requires_grad_(False)
    parted = with_attention(encoder, "both")
    assert not parted.trunk[0].weight.requires_grad
    assert not parted.neck.bias.requires_grad
    assert parted.neck.weight.requires_grad


def test_branches_share_no_weight() -> None:
    net = TwoBranches(with_attention(made(), "both"))
    shared = {id(weight) for weight in net.encoder.parameters()}
    assert not shared & {id(weight) for weight in net.specific.parameters()}
    net.eval()(PICTURES).specific.sum().backward()
    late = net.encoder.trunk[net.encoder.last_stage :]
    assert all(weight.grad is None for weight in late.parameters())
    assert all(weight.grad is not None for weight in net.encoder.trunk[0].parameters())


def test_encoder_with_attention_is_saved_and_loaded(tmp_path: Path) -> None:
    parted = with_attention(made(), "both", seed=5)
    for weight in parted.parameters():
        nn.init.normal_(weight, std=0.1)
    loaded = load_encoder(save_encoder(tmp_path / "parted", parted))
    assert torch.equal(embedded(loaded), embedded(parted))
    spec: Mapping[str, Any] = loaded.spec
    assert spec["attention"] == "both"
