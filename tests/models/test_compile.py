from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from uda_reid.models.encoder import Embedder, EncoderSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler"),
    # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def test_compiled_blocks_embed_and_learn_as_plain_ones_and_all_of_them_are_compiled() -> None:
    """In about a minute: every block, in training, in evaluation, and for a last batch that is smaller."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    plain = Embedder(EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none"))
    compiled = copy.deepcopy(plain)
    for _ in range(2):  # a second call changes nothing
        compiled.compile_blocks()
    images = torch.rand(6, 3, 32, 16)

    for count in (6, 5):
        for encoder in (plain, compiled):
            encoder.train()
            encoder(images[:count]).square().sum().backward()
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
        with torch.inference_mode():
            torch.testing.assert_close(
                plain.eval()(images[:count]), compiled.eval()(images[:count]), atol=1e-4, rtol=1e-4
            )

    frames, blocks = counters["frames"], len(compiled.trunk)
    assert frames["ok"] == frames["total"] >= 2 * blocks, dict(counters["unimplemented"])
    assert all(isinstance(block, nn.Module) and block._compiled_call_impl is not None for block in compiled.trunk)
