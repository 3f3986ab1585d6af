"""From pictures to embeddings: a torchvision trunk, pooling, an optional projection and a neck."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from uda_reid.errors import CheckpointError, DataError, RecipeError
from uda_reid.models.attention import Attention
from uda_reid.models.batch_norm import grouped
from uda_reid.models.weights import SUFFIXES, LoadReport, fill, find_imagenet, read
from uda_reid.options import suggest
from uda_reid.types import Encoder

# What torchvision's ImageNet weights were trained with: RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@plain_dataclass(frozen=True)
class Backbone:
    """How a trunk is made.

    Args:
        make: returns the trunk with fresh weights: named blocks in a row, (B, 3, H, W) to (B, width, h, w).
        width: channels that leave the trunk.
        last_stage: which of the trunk's blocks is the last one that halves the map.
        imagenet: whether torchvision publishes ImageNet weights under this name.
    """

    make: Callable[[], nn.Sequential]
    width: int
    last_stage: int
    imagenet: bool = True

    def __str__(self) -> str:
        start = "ImageNet weights of torchvision" if self.imagenet else "no ImageNet weights"
        return f"embeddings of {self.width} numbers; {start}"


def _residual(name: str) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        children = models.get_model(name, weights=None).named_children()
        return nn.Sequential(OrderedDict((child, block) for child, block in children if child not in ("avgpool", "fc")))

    return make


def _features(name: str) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        features: nn.Sequential = models.get_model(name, weights=None).features
        return features

    return make


TINY_WIDTHS = (32, 64, 96, 160)


def _tiny() -> nn.Sequential:
    # One BasicBlock a stage behind a 3x3 stem, no max-pooling: 64x32 become 4x2, or 8x4 with last stride 1.
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    blocks["conv1"] = nn.Conv2d(3, TINY_WIDTHS[0], kernel_size=3, stride=2, padding=1, bias=False)
    blocks["bn1"] = nn.BatchNorm2d(TINY_WIDTHS[0])
    blocks["relu"] = nn.ReLU(inplace=True)
    before = TINY_WIDTHS[0]
    for number, width in enumerate(TINY_WIDTHS, start=1):
        stride, shortcut = (1 if number == 1 else 2), None
        if number > 1:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        blocks[f"layer{number}"] = nn.Sequential(BasicBlock(before, width, stride, shortcut))
        before = width
    trunk = nn.Sequential(blocks)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk


BACKBONES: Mapping[str, Backbone] = {
    "resnet_tiny": Backbone(_tiny, TINY_WIDTHS[-1], last_stage=6, imagenet=False),
    "resnet18": Backbone(_residual("resnet18"), 512, last_stage=7),
    "resnet34": Backbone(_residual("resnet34"), 512, last_stage=7),
    "resnet50": Backbone(_residual("resnet50"), 2048, last_stage=7),
    "resnet101": Backbone(_residual("resnet101"), 2048, last_stage=7),
    "mobilenet_v2": Backbone(_features("mobilenet_v2"), 1280, last_stage=14),
    "mobilenet_v3_small": Backbone(_features("mobilenet_v3_small"), 576, last_stage=9),
    "mobilenet_v3_large": Backbone(_features("mobilenet_v3_large"), 960, last_stage=13),
    "efficientnet_b0": Backbone(_features("efficientnet_b0"), 1280, last_stage=6),
}
"""Name -> trunk; each has one last halving, which `last_stride=1` takes out."""

Pixels = Annotated[int, Field(ge=16, le=2048)]


# Without "forbid", pydantic's dataclasses drop a misspelt option in silence.
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EncoderSpec:
    """Which encoder; the defaults are the strong baseline of Luo et al. 2019 (1903.07071).

    Raises:
        RecipeError: the backbone or the kind of weights is unknown, or there are no such weights for it.

    >>> EncoderSpec(backbone="resnet5")
    Traceback (most recent call last):
    uda_reid.errors.RecipeError: backbone 'resnet5' is unknown; did you mean 'resnet50'?
    """

    backbone: str = "resnet50"  # a key of BACKBONES
    height: Pixels = 256  # of the input
    width: Pixels = 128
    pooling: Literal["average", "gem"] = "average"
    neck: Literal["none", "batchnorm"] = "batchnorm"  # section 3.5
    dim: Annotated[int, Field(ge=0)] = 0  # of the embedding, by a projection; 0: as wide as the trunk
    hidden: Annotated[int, Field(ge=0)] = 0  # units of a hidden layer, FC-BN-ReLU as Xiao et al. 2016; 0: none
    last_stride: Literal[1, 2] = 1  # section 3.4
    attention: Literal["none", "spatial", "channel", "both"] = "none"  # before the last stage (models.attention)
    weights: str = "imagenet"  # "imagenet", "none", or a .safetensors or .pth file
    bn_group: Annotated[int, Field(ge=0)] = 0  # images that batch norm takes together in training; 0: the whole batch

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise RecipeError(f"backbone {self.backbone!r} is unknown; {suggest(self.backbone, BACKBONES)}")
        if self.weights not in ("imagenet", "none") and Path(self.weights).suffix not in SUFFIXES:
            raise RecipeError(
                f"weights {self.weights!r} is unknown; use imagenet, none or a file ending in {', '.join(SUFFIXES)}"
            )
        if self.weights == "imagenet" and not BACKBONES[self.backbone].imagenet:
            raise RecipeError(f"weights 'imagenet' do not exist for {self.backbone}; use weights: none")
        if self.bn_group == 1:
            raise RecipeError("bn_group 1: one image has no variance; use at least 2, or 0 for the whole batch")
        if self.hidden and self.dim:
            raise RecipeError(f"dim {self.dim} and hidden {self.hidden} are both sizes of the embedding; give one")
        if self.hidden and self.neck == "none":
            raise RecipeError(f"neck 'none' leaves hidden {self.hidden} without its batch norm; use neck: batchnorm")


class GeM(nn.Module):
    """Generalised-mean pooling with a learnt exponent: 1 is the average, infinity the maximum.

    Source: Radenović et al. 2019 (1711.02512), equation 3; p = 3 at the start.
    """

    def __init__(self, p: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.floor = floor

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, h, w) to (B, C); values under `floor` count as `floor`: a power needs them positive."""
        return maps.clamp(min=self.floor).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AveragePooling(nn.Module):
    """The mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, h, w) to (B, C)."""
        return maps.mean((2, 3))


class Embedder(Encoder):
    """The encoder that `build` makes: normalisation, trunk, pooling, projection, neck.

    With `hidden` the last two are the linear layer and the batch norm of a hidden layer (Xiao et al. 2016, 1604.07528):
    images are searched by what leaves the batch norm, and classified by its ReLU, which `Classifier(rectified=True)`
    applies. `trunk` is a row of named blocks: `trunk[:last_stage]`, then the attention if there is one, whose shared
    maps enter `trunk[last_stage:]`. `load_report` says what became of the weights file, where there was one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        backbone = BACKBONES[spec.backbone]
        self.spec = asdict(spec)
        self.dim = spec.hidden or spec.dim or backbone.width
        self.last_stage = backbone.last_stage
        self.load_report: LoadReport | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.trunk = backbone.make()
        if spec.last_stride == 1:
            for module in self.trunk[self.last_stage].modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        self.attention: Attention | None = None
        if spec.attention != "none":
            layers = (layer for layer in self.trunk[self.last_stage].modules() if isinstance(layer, nn.Conv2d))
            self.attention = Attention(next(layers).in_channels, spec.attention)
        self.pooling = GeM() if spec.pooling == "gem" else AveragePooling()
        self.projection: nn.Module = nn.Identity()
        if spec.dim or spec.hidden:  # without biases: a batch norm behind takes any of them out again
            self.projection = nn.Linear(backbone.width, self.dim, bias=False)
        self.neck: nn.Module = nn.Identity()
        if spec.neck == "batchnorm":
            neck = nn.BatchNorm1d(self.dim)
            # Luo et al. 2019, section 3.5: no shift, so that decision surfaces pass through the origin. In a hidden
            # layer a ReLU follows, and the shift decides how often a unit is on.
            neck.bias.requires_grad_(bool(spec.hidden))
            self.neck = neck
        grouped(self, spec.bn_group)

    def compile_blocks(self) -> None:
        """Compile the trunk's blocks, in place; copies of the encoder are not compiled.

        Raises torch's limit on kinds of one function, for the whole process, and keeps the compiled code in the user's
        own cache folder, unless TORCHINDUCTOR_CACHE_DIR says where.
        """
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_code_folder())
        from torch._dynamo import config  # takes a second to import

        # Blocks count as one function, which torch stops compiling after 8 kinds: each has several (training,
        # evaluation, another batch size).
        config.recompile_limit = max(config.recompile_limit, 8 * len(self.trunk))
        for block in self.trunk:
            if block._compiled_call_impl is None:
                block.compile()

    def early(self, images: Tensor) -> Tensor:
        """Return the maps (B, C, h, w) before the last stage of images (B, 3, H, W) float in [0, 1], RGB.

        Raises:
            DataError: the images have another shape, or are not float (uint8 would be 255 times too bright).
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise DataError(
                f"images {tuple(images.shape)} {images.dtype} do not fit the encoder; "
                "give it (B, 3, H, W) float in [0, 1]"
            )
        normal = (images - self.mean) / self.std
        # Convolutions on the CPU are up to a third faster so; the weights keep their usual layout.
        maps: Tensor = self.trunk[: self.last_stage](normal.contiguous(memory_format=torch.channels_last))
        return maps

    def late(self, maps: Tensor) -> Tensor:
        """Return the embeddings before the neck, (B, dim) float32, of maps (B, C, h, w) that enter the last stage."""
        pooled: Tensor = self.projection(self.pooling(self.trunk[self.last_stage :](maps).float()))
        return pooled.float()

    def pooled(self, images: Tensor) -> Tensor:
        """Return the embeddings before the neck, (B, dim) float32: what a triplet loss compares."""
        maps = self.early(images)
        return self.late(maps if self.attention is None else self.attention(maps)[0])

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings after the neck, (B, dim) float32: what images are searched by."""
        embeddings: Tensor = self.neck(self.pooled(images))
        return embeddings


def _code_folder() -> Path:
    """Return a folder for compiled code into which no other user can put any.

    Torch's own choice is a fixed name in /tmp (seen in 2.14): any user may have made it, and what lies in it is run.
    """
    folder = Path(platformdirs.user_cache_dir("uda_reid")) / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # no home to write to
        return Path(tempfile.mkdtemp(prefix="uda-compiled-"))
    return folder


def build(spec: EncoderSpec, *, seed: int = 0, weights_folders: Sequence[Path] = ()) -> Embedder:
    """Return the encoder that `spec` describes, on the CPU; torch's global random state stays as it is.

    Args:
        spec: which encoder.
        seed: of the weights that no file fills.
        weights_folders: where ImageNet weights are looked for before torchvision's own cache and download.

    Returns:
        The encoder, in training mode; `load_report` lists the keys of a weights file that did not match.

    Raises:
        CheckpointError: the weights are not to be had, unreadable, ambiguous, or of another network.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators as well, outside this fork.
        torch.default_generator.manual_seed(seed)
        encoder = Embedder(spec)
    path = find_weights(spec, weights_folders)
    if path is not None:
        report = fill(encoder, read(path), backbone=spec.backbone, origin=str(path))
        if report.lack():
            raise CheckpointError(f"{path} does not hold {spec.backbone}: {report.lack()}")
        encoder.load_report = report
    return encoder


def find_weights(spec: EncoderSpec, folders: Sequence[Path] = ()) -> Path | None:
    """Return the file that the initial weights come from, downloaded if need be; None where they are random.

    Args:
        spec: which encoder.
        folders: where ImageNet weights are looked for before torchvision's own cache and download.

    Raises:
        CheckpointError: the file is missing, or ImageNet weights are neither there nor to be downloaded.
    """
    if spec.weights == "none":
        return None
    if spec.weights == "imagenet":
        # IMAGENET1K_V1: the weights behind published re-identification results; later ones differ.
        url: str = models.get_model_weights(spec.backbone)["IMAGENET1K_V1"].url
        return find_imagenet(spec.backbone, url, folders)
    path = Path(spec.weights).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")
    return path
