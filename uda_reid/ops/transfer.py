"""From the CPU to another device, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU in memory that a GPU can take it from by itself; for the CPU, as it is."""
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory()


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device; a GPU takes it from pinned memory, in its turn.

    A plain `.to(device)` would wait until the GPU has done everything that was asked of it before.
    """
    device = torch.device(device)
    if device.type == "cpu" or tensor.device == device:
        return tensor
    return pinned(tensor, device).to(device, non_blocking=True)
