"""From images to embeddings, in row order."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.ops.noise import keys
from uda_reid.ops.transfer import moved
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import in_time, readable
from uda_reid.training.faults import told_when_full
from uda_reid.types import Encoder, Images

BATCH = 128
"""Images per forward pass: fixed, because another number changes the last bits of the features."""
TOO_LARGE = f"blocks of {BATCH} images do not fit into memory; use smaller images or another device"


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
    seed, processes = run.seed_for("features"), run.processes
    found: list[Tensor] = []
    try:
        with torch.inference_mode(), run.autocast(), told_when_full(f"{description}: {TOO_LARGE}"):
            blocks = torch.split(rows, BATCH)
            # One block for each process at a time: whoever embeds it, a block is the same, to the last bit.
            pixels = in_time(
                partial(readable, images, size=size, run=run), blocks[processes.rank :: processes.count], run
            )
            rounds = range(0, len(blocks), processes.count)
            for first in run.progress(rounds, description, len(rounds)):
                embeddings = torch.zeros(0, encoder.dim, device=run.device)
                if first + processes.rank < len(blocks):
                    mine = keys(seed, blocks[first + processes.rank])
                    embeddings = encoder(augment(moved(next(pixels), run.device), augmentation, mine)).float()
                found.append(embeddings if processes.count == 1 else _in_order(embeddings, blocks, first, run))
                if len(found) > 1:  # the one before: the device has work while this one is brought
                    found[-2] = found[-2].cpu()
    finally:
        for module in training:
            module.training = True
    return torch.cat([part.cpu() for part in found]) if found else torch.zeros(0, encoder.dim)


def _in_order(embeddings: Tensor, blocks: tuple[Tensor, ...], first: int, run: Run) -> Tensor:
    """Return the embeddings of the blocks from `first` on, one of every process."""
    count = run.processes.count
    whole = embeddings.new_zeros(BATCH, embeddings.shape[1])
    whole[: len(embeddings)] = embeddings
    everyone = torch.split(run.gather(whole, count * BATCH), BATCH)
    wave = zip(everyone, blocks[first : first + count], strict=False)
    return torch.cat([part[: len(block)] for part, block in wave])
