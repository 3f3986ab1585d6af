from __future__ import annotations

import pytest
import torch

from uda_reid.errors import RecipeError
from uda_reid.training.devices import environment, pick_device, use_threads


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


def test_unknown_and_missing_devices_are_refused() -> None:
    with pytest.raises(RecipeError, match="device 'warp' is unknown; use auto, cpu, cuda or cuda:N"):
        pick_device("warp")
    with pytest.raises(RecipeError, match="device 'meta' is not supported"):
        pick_device("meta")
    with pytest.raises(RecipeError, match="device 'cuda:99' is not there"):
        pick_device("cuda:99")


def test_threads_are_set_and_zero_leaves_them() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
        use_threads(0)
        assert torch.get_num_threads() == 1
    finally:
        use_threads(before)


def test_far_too_many_threads_are_refused() -> None:
    with pytest.raises(RecipeError, match="100000 threads are too many"):
        use_threads(100_000)


def test_environment_names_what_bit_identity_depends_on() -> None:
    found = environment("cpu")
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
