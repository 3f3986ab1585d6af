"""AdaBN: batch norm forgets the source's statistics and takes the target's; nothing is learned.

Li, Wang, Shi, Liu and Hou: Revisiting Batch Normalization For Practical Domain Adaptation, arXiv:1603.04779; as
Adaptive Batch Normalization in Pattern Recognition 80, 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.errors import DataError, RecipeError
from uda_reid.models.batch_norm import BatchNorm, batch_norms
from uda_reid.models.encoder import Embedder
from uda_reid.run import QUIET, Run
from uda_reid.types import AdaptationResult, Encoder, Images, Source, Target


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AdaBN:
    """Give every batch norm layer the mean and variance of its inputs over all target images.

    What a layer's inputs are depends on the statistics of the layers before it. In the first pass every layer
    normalises a batch by that batch, as in training: all layers move at once, and how the images are dealt into batches
    leaves a trace. In every further pass it normalises by what the last pass has found: the first layer is then exact
    after one pass, the second after two, and with as many passes as layers nothing depends on the batches any more.
    """

    passes: Annotated[int, Field(ge=0)] = 1  # over the target images; algorithm 1: once
    batch: Annotated[int, Field(gt=1)] = 128  # least images in a batch; the paper leaves it open
    neck: bool = True  # the batch norm behind the pooling too; algorithm 1: every layer

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the encoder with the target's statistics; every pass is one step for the probe."""
        encoder = copy.deepcopy(source.encoder).eval()
        layers = self._layers(encoder)
        if len(target.images) < 2:
            raise DataError(f"{target.name}: {len(target.images)} image has no variance; AdaBN needs at least 2")
        history: list[dict[str, float]] = []
        saved = run.restore("adabn")
        if saved is not None:
            encoder.load_state_dict(saved["encoder"])
            history = saved["history"]
        run.prepare(encoder)
        for number in range(len(history), self.passes):
            order = torch.randperm(len(target.images), generator=run.stream(f"adabn/rows/{number}"))
            # Parts that differ by at most one image: a last batch of a few would be normalised by those few.
            plan = torch.tensor_split(order, max(1, len(order) // self.batch))
            before = copy.deepcopy([_statistics(layer) for layer in layers])
            title = f"adabn: pass {number + 1}/{self.passes}"
            found = _measure(encoder, layers, target.images, plan, by_batch=number == 0, title=title, run=run)
            for layer, moments in zip(layers, found, strict=True):
                if moments.count:  # a layer that only training passes through keeps its statistics
                    _put(layer, moments.mean, moments.variance)
            history.append({"images": float(len(order)), **_moved(before, layers)})
            moved = ", ".join(f"{name} {value:.3f}" for name, value in history[-1].items() if name != "images")
            run.log(f"{title}: {len(layers)} layers, {len(order)} images, {moved}")
            run.probe(encoder, number + 1)
            run.save("adabn", {"encoder": encoder.state_dict(), "history": history})
        return AdaptationResult(encoder, tuple(history), self._facts(len(layers)))

    def _layers(self, encoder: Encoder) -> list[BatchNorm]:
        if not self.neck and not isinstance(encoder, Embedder):
            raise RecipeError(f"neck false: the encoder {type(encoder).__name__} has no known neck; leave neck true")
        left_out = set(encoder.neck.modules()) if isinstance(encoder, Embedder) and not self.neck else set()
        layers = [
            layer
            for layer in batch_norms(encoder)
            # Without running statistics a layer normalises by the batch at all times: there is nothing to replace.
            if layer.running_var is not None and layer not in left_out
        ]
        if not layers:
            what = encoder.spec.get("backbone", type(encoder).__name__)
            where = "" if self.neck else " before its neck"
            raise RecipeError(f"adabn: the encoder {what} has no batch norm{where}; take another strategy or encoder")
        return layers

    def _facts(self, layers: int) -> dict[str, Any]:
        return {
            "target images used": "all, without labels" if self.passes else "none",
            "target images in batch norm": self.passes > 0,
            "batch norm layers with target statistics": layers if self.passes else 0,
            "camera ids used": False,
            "checkpoint": "last",
        }


class Moments:
    """Mean and variance, for each of C channels, of everything that was added, in batches of any size.

    Source: equation 2 of the paper. Averaging the variances of the batches alone would miss how their means differ.

    >>> moments = Moments(1)
    >>> for batch in ([[1.0], [3.0]], [[8.0]]):
    ...     _ = moments.add(torch.tensor(batch))
    >>> moments.mean.item(), round(moments.variance.item(), 6)  # of 1, 3, 8; divided by 3, not by 2
    (4.0, 8.666667)
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.variance = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a batch (B, C, ...) floating, and return its own mean and variance, (C,) float32 each."""
        others = [0, *range(2, values.ndim)]
        variance, mean = torch.var_mean(values.float(), others, correction=0)
        self.mix(values.numel() // values.shape[1], mean.double(), variance.double())
        return mean, variance

    def mix(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Take in `count` values per channel by their moments, (C,) float64 each."""
        self.count += count
        share = count / max(self.count, 1)
        difference = mean - self.mean
        self.mean += share * difference
        self.variance += share * (variance - self.variance) + share * (1 - share) * difference.square()

    def of_all(self, run: Run) -> Moments:
        """Return the moments of what all processes have added."""
        every = Moments(len(self.mean), self.mean.device)
        mine = torch.stack([torch.full_like(self.mean, self.count), self.mean, self.variance])[None]
        for count, mean, variance in run.gather(mine, run.processes.count):
            every.mix(int(count[0]), mean, variance)
        return every


def _measure(
    encoder: Encoder,
    layers: Sequence[BatchNorm],
    images: Images,
    plan: Sequence[Tensor],
    *,
    by_batch: bool,
    title: str,
    run: Run,
) -> list[Moments]:
    """Return the moments of every layer's inputs over the planned batches, in the order of `layers`."""
    size = int(encoder.spec["height"]), int(encoder.spec["width"])
    mine = plan[run.processes.rank :: run.processes.count]
    with _watched(layers, by_batch=by_batch) as found, torch.no_grad():
        for rows in run.progress(mine, title, len(mine)):
            pictures = augment(images.read(rows, *size).to(run.device), "none")
            with run.autocast():
                encoder(pictures)
    return [moments.of_all(run) for moments in found]


@contextmanager
def _watched(layers: Sequence[BatchNorm], *, by_batch: bool) -> Iterator[list[Moments]]:
    """Inside, the inputs of every layer add to its moments; `by_batch`: and are normalised by their own."""
    found = [Moments(layer.num_features, _statistics(layer)[0].device) for layer in layers]

    def look(layer: BatchNorm, moments: Moments, inputs: tuple[Tensor]) -> None:
        mean, variance = moments.add(inputs[0])
        if by_batch:
            _put(layer, mean, variance)

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, layer=layer, moments=moments: look(layer, moments, inputs))
        for layer, moments in zip(layers, found, strict=True)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _statistics(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")


def _put(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    for kept, new in zip(_statistics(layer), (mean, variance), strict=True):
        kept.copy_(new)


def _moved(before: Sequence[tuple[Tensor, Tensor]], layers: Sequence[BatchNorm]) -> Mapping[str, float]:
    """Return how far the statistics moved: of a typical channel, the mean in old deviations, the deviation as a ratio.

    The first pass tells how far target and source are apart, later ones how much the one before still left.
    """
    shifts, ratios = [], []
    for (old_mean, old_variance), layer in zip(before, layers, strict=True):
        mean, variance = _statistics(layer)
        old, new = (old_variance + layer.eps).sqrt(), (variance + layer.eps).sqrt()
        shifts.append((mean - old_mean).abs() / old)
        ratios.append(new / old)
    return {"mean shift": float(torch.cat(shifts).median()), "deviation ratio": float(torch.cat(ratios).median())}
