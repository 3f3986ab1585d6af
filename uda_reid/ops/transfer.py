"""From the CPU to another device, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device; a GPU takes it from pinned memory, in its turn.

    A plain `.to(device)` would wait until the GPU has done everything that was asked of it before.
    """
    device = torch.device(device)
    if device.type == "cpu" or tensor.device == device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
