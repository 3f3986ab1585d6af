"""Batch norm by whole batches or by groups, whoever holds the images, and by domains of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uda_reid.errors import RecipeError
from uda_reid.sharing import ALONE, Processes

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class _Grouped(nn.modules.batchnorm._BatchNorm):
    """Batch norm that depends on the batch alone, and not on how many processes hold it.

    In training, images are normalised by the whole batch (`group` 0), to which every process adds its share, or by
    groups of so many images that follow one another, which never leave a process. Either way the running statistics
    see all groups of all processes, and are the same everywhere. With one process and no groups this is torch's layer.
    """

    group = 0
    processes: Processes = ALONE

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, C, ...) normalised values.

        Raises:
            RecipeError: the images of this process do not divide into groups.
        """
        if not self.training or (not self.group and self.processes.count == 1):
            return super().forward(values)
        if not self.group:
            return self._by_all(values)
        if len(values) % self.group:
            where = f"on each of {self.processes.count} processes" if self.processes.count > 1 else "in a batch"
            raise RecipeError(
                f"encoder.bn_group {self.group} does not divide the {len(values)} images {where}; choose one that does"
            )
        return self._by_groups(values)

    def _by_groups(self, values: Tensor) -> Tensor:
        found, means, variances = [], [], []
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        for part in torch.split(values, self.group):
            # With a momentum of 1 the layer's own kernel leaves a group's statistics here.
            mean, variance = values.new_zeros(2, self.num_features, dtype=wide).unbind()
            found.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(variance)
        moments = [torch.stack(means).mean(0), torch.stack(variances).mean(0)]
        self.processes.average(moments)
        self._keep(*moments)
        return torch.cat(found)

    def _by_all(self, values: Tensor) -> Tensor:
        others = [0, *range(2, values.ndim)]
        with torch.no_grad():
            wide = values if values.dtype == torch.float64 else values.float()
            variance, mean = torch.var_mean(wide, others, correction=0)
            count = torch.full_like(mean, values.numel() // values.shape[1])
            shares = self.processes.gather(torch.stack([count, mean, variance])[None], self.processes.count)
            counts, means, variances = shares.unbind(1)
            total = counts.sum(0)
            mean = (counts * means).sum(0) / total
            variance = (counts * (variances + (means - mean).square())).sum(0) / total
            self._keep(mean, variance * total / (total - 1))
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        found: Tensor = _WholeBatch.apply(values, weight, self.bias, mean, variance, total, self.eps, self.processes)
        return found

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
                kept.mul_(1 - share).add_(new, alpha=share)


class _WholeBatch(torch.autograd.Function):
    """Normalisation by the statistics of a batch of which this process has a share.

    Every image of every process moves the mean and the variance. So the gradient that reaches values is that of fixed
    statistics, which torch's kernel gives, less what all images do through them: two sums over all processes.
    """

    @staticmethod
    def forward(
        context: Any, values: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, variance: Tensor,
        total: Tensor, eps: float, processes: Processes,
    ) -> Tensor:  # fmt: skip
        context.save_for_backward(values, weight, mean, variance, total)
        context.eps, context.processes = eps, processes
        return F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, total = context.saved_tensors
        fixed, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, mean, variance, None, None, False, context.eps, [True, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        context.processes.average([sums])
        through_variance, through_mean = sums * (context.processes.count / total)
        inverse = (variance + context.eps).rsqrt()
        slope = weight * inverse.square() * through_variance
        offset = weight * inverse * through_mean - mean * slope
        view = (1, -1) + (1,) * (values.ndim - 2)
        moved = fixed - (values * slope.view(view) + offset.view(view))
        return moved.to(values.dtype), by_weight, by_bias, None, None, None, None, None


class BatchNorm1d(_Grouped, nn.BatchNorm1d):
    """Batch norm of (B, C) or (B, C, L) values; see `grouped`."""


class BatchNorm2d(_Grouped, nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) maps; see `grouped`."""


def grouped(module: nn.Module, group: int = 0) -> None:
    """Replace a module's batch norm layers, in place, by ones that do not depend on how many processes hold a batch.

    Their weights and statistics stay the same tensors, under the same names; hooks on the layers do not stay.

    Args:
        module: the module; it is no batch norm layer itself.
        group: images that are normalised together, one after the other in the batch; 0 for the whole batch.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> grouped(net, 2)
    >>> net(torch.tensor([[0.0], [2.0], [5.0], [7.0]])).flatten().round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(layer, _Grouped):
                kind = BatchNorm1d if isinstance(layer, nn.BatchNorm1d) else BatchNorm2d
                own = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
                own._parameters, own._buffers = layer._parameters, layer._buffers
                setattr(parent, name, own.train(layer.training))
                layer = own
            if isinstance(layer, _Grouped):
                layer.group = group


def shared(module: nn.Module, processes: Processes, *, trained: bool) -> None:
    """Let a module's batch norm layers look at the images of all processes.

    Raises:
        RecipeError: the module is to be trained and a layer cannot: its statistics would be others on every process.
    """
    for layer in batch_norms(module):
        if isinstance(layer, _Grouped):
            layer.processes = processes
        elif trained and processes.count > 1:
            raise RecipeError(
                "the encoder's batch norm sees the images of one process alone; "
                "replace it by models.batch_norm.grouped, or use one process"
            )


def batch_norms(module: nn.Module) -> list[BatchNorm]:
    """Return the batch norm layers of a module, in the order of its modules."""
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def group_of(module: nn.Module) -> int:
    """Return how many images the batch norm layers of a module take together in training; 0: the whole batch."""
    return next((layer.group for layer in module.modules() if isinstance(layer, _Grouped)), 0)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, layers in training mode normalise by their batch and leave their running statistics as they are.

    >>> import torch
    >>> layer = nn.BatchNorm1d(1)
    >>> with statistics_kept(layer):
    ...     normal = layer(torch.tensor([[10.0], [20.0]]))
    >>> [round(value) for value in normal.flatten().tolist()], float(layer.running_mean)
    ([-1, 1], 0.0)
    """
    layers = batch_norms(module)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
