from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from uda_reid.errors import DataError, RecipeError
from uda_reid.models.encoder import BACKBONES, AveragePooling, EncoderSpec, GeM, build


def spec(**options: Any) -> EncoderSpec:
    given = {"backbone": "resnet_tiny", "height": 64, "width": 32, "weights": "none", **options}
    return EncoderSpec(**given)


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_encoder_has_its_backbones_width_and_last_stride_1_doubles_the_map(name: str) -> None:
    finer, coarser = (build(spec(backbone=name, last_stride=stride)).eval() for stride in (1, 2))
    with torch.no_grad():
        embeddings = finer(pictures())
        fine, coarse = finer.trunk(pictures()), coarser.trunk(pictures())
        entering = finer.early(pictures())
        stages = finer.trunk[finer.last_stage :](entering)
    assert embeddings.shape == (2, BACKBONES[name].width) == (2, finer.dim)
    assert bool(torch.isfinite(embeddings).all())
    assert (coarse.shape[2] * 2, coarse.shape[3] * 2) == tuple(fine.shape[2:])
    assert stages.shape == fine.shape
    assert entering.shape[2:] == fine.shape[2:]
    assert sum(p.numel() for p in finer.parameters()) == sum(p.numel() for p in coarser.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_encoder_computes_what_torchvision_does(name: str) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    encoder = build(spec(backbone=name, last_stride=2, neck="none")).eval()
    for own, theirs in zip(encoder.trunk.state_dict().values(), network.state_dict().values(), strict=False):
        own.copy_(theirs)
    removed = "fc" if name == "resnet18" else "classifier"
    setattr(network, removed, nn.Identity())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network((pictures() - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(encoder(pictures()), expected, rtol=1e-4, atol=1e-5)


def test_backbones_describe_themselves() -> None:
    assert str(BACKBONES["resnet50"]) == "embeddings of 2048 numbers; ImageNet weights of torchvision"
    assert str(BACKBONES["resnet_tiny"]) == "embeddings of 160 numbers; no ImageNet weights"


def test_resnet_tiny_fits_three_megabytes() -> None:
    encoder = build(spec())
    assert encoder.dim == 160
    assert sum(p.numel() for p in encoder.parameters()) <= 750_000
    assert len(safetensors.torch.save(encoder.state_dict())) <= 3_000_000
    assert encoder.trunk(pictures()).shape == (2, 160, 8, 4)


def test_every_trainable_weight_of_the_encoder_gets_a_gradient() -> None:
    encoder = build(spec(pooling="gem", dim=24))
    encoder(pictures(4)).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad] == ["neck.bias"]


def test_neck_normalises_the_pooled_embedding() -> None:
    encoder = build(spec(dim=24))
    pooled = encoder.pooled(pictures(8))
    assert pooled.shape == (8, 24) and encoder.dim == 24
    expected = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(encoder(pictures(8)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.neck(pooled), expected, rtol=1e-4, atol=1e-4)


def test_without_neck_embedding_and_pooled_are_equal() -> None:
    encoder = build(spec(neck="none")).eval()
    assert torch.equal(encoder(pictures()), encoder.pooled(pictures()))
    assert torch.equal(encoder.neck(pictures()), pictures())


def test_hidden_layer_is_searched_before_its_relu_and_learns_its_shift() -> None:
    encoder = build(spec(hidden=24))
    encoder.neck.get_parameter("bias").data.copy_(torch.linspace(-1, 1, 24))
    assert encoder.dim == 24
    images, pooled = pictures(8), encoder.pooled(pictures(8))
    averages = encoder.trunk[encoder.last_stage :](encoder.early(images)).mean((2, 3))
    torch.testing.assert_close(pooled, averages @ encoder.projection.get_parameter("weight").T, rtol=1e-4, atol=1e-5)
    normal = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    embeddings = encoder(images)
    torch.testing.assert_close(embeddings, normal + torch.linspace(-1, 1, 24), rtol=1e-4, atol=1e-4)
    assert float(embeddings.detach().min()) < -1
    embeddings.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad or p.grad is None] == []


def test_hidden_layer_and_projection_have_the_same_weights_of_one_seed() -> None:
    hidden, projected = build(spec(hidden=24), seed=3), build(spec(dim=24), seed=3)
    assert hidden.state_dict().keys() == projected.state_dict().keys()
    assert all(torch.equal(value, projected.state_dict()[name]) for name, value in hidden.state_dict().items())


def test_spec_refuses_a_hidden_layer_beside_a_projection_or_without_batch_norm() -> None:
    with pytest.raises(RecipeError, match=r"^dim 8 and hidden 24 are both sizes of the embedding; give one$"):
        spec(dim=8, hidden=24)
    with pytest.raises(RecipeError, match=r"^neck 'none' leaves hidden 24 without its batch norm; use neck: batchnorm"):
        spec(neck="none", hidden=24)


def test_embeddings_are_float32_under_autocast() -> None:
    encoder = build(spec(dim=24)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(pictures())
    assert half.dtype == torch.float32
    with torch.no_grad():
        whole = encoder(pictures())
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.1)


def test_gem_is_the_average_at_one_and_the_maximum_at_infinity() -> None:
    maps = torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(GeM(p=1.0)(maps), AveragePooling()(maps))
    torch.testing.assert_close(GeM(p=500.0)(maps / maps.amax()) * maps.amax(), maps.amax((2, 3)), rtol=0.01, atol=0)
    cubes = [[sum(float(v) ** 3 for v in m.flatten()) / 12 for m in picture] for picture in maps]
    torch.testing.assert_close(GeM()(maps), torch.tensor(cubes) ** (1 / 3))


def test_gem_has_finite_gradients_on_dead_channels() -> None:
    maps = torch.zeros(1, 2, 2, 2, requires_grad=True)
    pooling = GeM()
    pooling(maps).sum().backward()
    assert maps.grad is not None and pooling.p.grad is not None
    assert bool(torch.isfinite(maps.grad).all()) and bool(torch.isfinite(pooling.p.grad).all())


def test_build_depends_on_its_seed_and_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (build(spec(dim=8), seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["trunk.layer1.0.conv1.weight"], other["trunk.layer1.0.conv1.weight"])
    assert not torch.equal(first["projection.weight"], other["projection.weight"])


def test_spec_of_an_encoder_rebuilds_it() -> None:
    encoder = build(spec(pooling="gem", hidden=24, last_stride=2))
    again = build(EncoderSpec(**{**encoder.spec, "weights": "none"}))
    again.load_state_dict(encoder.state_dict())
    assert again.spec == encoder.spec
    assert torch.equal(again.eval()(pictures()), encoder.eval()(pictures()))


def test_a_copy_of_the_encoder_is_independent_and_equal() -> None:
    encoder = build(spec()).eval()
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(pictures()), encoder(pictures()))
    assert not copied.neck.get_parameter("bias").requires_grad
    nn.init.zeros_(copied.trunk.get_parameter("conv1.weight"))
    assert not torch.equal(copied(pictures()), encoder(pictures()))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 64, 32, dtype=torch.uint8), torch.zeros(3, 64, 32), torch.zeros(2, 1, 64, 32)],
)
def test_encoder_refuses_what_is_no_batch_of_colour_pictures(images: Tensor) -> None:
    with pytest.raises(DataError, match=r"give it \(B, 3, H, W\) float"):
        build(spec())(images)


def test_spec_refuses_an_unknown_backbone_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="'mobilenetv2' is unknown; did you mean 'mobilenet_v2'"):
        spec(backbone="mobilenetv2")
    with pytest.raises(RecipeError, match=r"'vgg' is unknown; known are resnet_tiny, resnet18"):
        spec(backbone="vgg")


def test_spec_refuses_unknown_weights() -> None:
    with pytest.raises(RecipeError, match="'imagnet' is unknown; use imagenet, none or a file"):
        spec(weights="imagnet")


def test_spec_refuses_imagenet_weights_that_nobody_made() -> None:
    with pytest.raises(RecipeError, match="weights 'imagenet' do not exist for resnet_tiny; use weights: none"):
        spec(weights="imagenet")


@pytest.mark.parametrize(
    "options",
    [
        {"height": 8},
        {"width": 0},
        {"dim": -1},
        {"hidden": -1},
        {"last_stride": 3},
        {"pooling": "max"},
        {"neck": "bn"},
        {"colour": 1},
    ],
)
def test_spec_refuses_unknown_options_and_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        spec(**options)


def test_compiled_code_is_kept_where_no_other_user_can_put_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = build(EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    encoder.compile_blocks()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    encoder.compile_blocks()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == tmp_path / "uda_reid" / "compiled" and folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "file" / name))
    encoder.compile_blocks()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.name.startswith("uda-compiled-") and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
