from __future__ import annotations

import pytest
import torch

from uda_reid.ops.transfer import moved


def test_on_the_cpu_a_tensor_stays_where_it_is() -> None:
    tensor = torch.rand(3)
    assert moved(tensor, "cpu") is tensor
    assert moved(tensor, torch.device("cpu")) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_gpu_takes_what_it_is_given_without_being_waited_for() -> None:
    tensor = torch.rand(1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = moved(tensor, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), tensor)
