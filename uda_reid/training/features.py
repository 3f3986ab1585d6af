"""From images to embeddings, in row order."""

from __future__ import annotations

import torch
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.run import QUIET, Run
from uda_reid.types import Encoder, Images

BATCH = 128
"""Images per forward pass: fixed, because another number changes the last bits of the features."""


def extract(
    encoder: Encoder,
    images: Images,
    *,
    rows: Tensor | None = None,
    augmentation: str = "none",
    run: Run = QUIET,
    description: str = "features",
) -> Tensor:
    """Return the test embeddings of `images`, computed in evaluation mode.

    Args:
        encoder: the encoder; its training flags are as before when this returns.
        images: where pictures come from; read at the size that `encoder.spec` names.
        rows: (M,) int64 rows to embed (default: all, in order).
        augmentation: a name from `data.images.AUGMENTATIONS`; the random numbers are the same for every encoder.
        run: the surroundings.
        description: what the progress bar says.

    Returns:
        (M, dim) float32 on the CPU, not normalised.
    """
    rows = torch.arange(len(images)) if rows is None else rows
    size = int(encoder.spec["height"]), int(encoder.spec["width"])
    run.prepare(encoder)
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    generator = run.stream("features")
    found = []
    try:
        with torch.inference_mode(), run.autocast():
            blocks = torch.split(rows, BATCH)
            for block in run.progress(blocks, description, len(blocks)):
                pictures = augment(images.read(block, *size).to(run.device), augmentation, generator)
                found.append(run.gather(encoder(pictures)).float().cpu())
    finally:
        for module in training:
            module.training = True
    return torch.cat(found) if found else torch.zeros(0, encoder.dim)
