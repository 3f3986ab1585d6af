"""Batch norm where a batch is of one domain and the running statistics are to be of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(module: nn.Module) -> list[BatchNorm]:
    """Return the batch norm layers of a module, in the order of its modules."""
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


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
