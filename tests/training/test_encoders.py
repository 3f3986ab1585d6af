from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uda_reid.errors import CheckpointError
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.training.checkpoint import load, save
from uda_reid.training.encoders import load_encoder, save_encoder

SPEC = EncoderSpec(backbone="resnet_tiny", height=64, width=32, weights="none", dim=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_encoder_comes_back_from_file_stem_and_run_folder(tmp_path: Path) -> None:
    encoder = build(SPEC, seed=3)
    encoder(torch.rand(4, 3, 64, 32, generator=generator()))  # moves the running statistics
    path = save_encoder(tmp_path / "adapted", encoder.eval(), facts={"seed": 3})
    assert path == tmp_path / "adapted.safetensors"
    assert load(path, kind="encoder")["facts"] == {"seed": 3}
    images = torch.rand(2, 3, 64, 32, generator=generator(1))
    for given in (path, tmp_path / "adapted", tmp_path):
        again = load_encoder(given)
        assert not again.training
        assert again.spec == encoder.spec and again.dim == 8
        assert torch.equal(again(images), encoder(images))


def test_saved_encoder_serves_as_weights_of_another(tmp_path: Path) -> None:
    encoder = build(SPEC, seed=3)
    path = save_encoder(tmp_path / "adapted", encoder)
    started = build(EncoderSpec(**{**encoder.spec, "weights": str(path)}), seed=4)
    assert all(torch.equal(value, started.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert started.load_report is not None and not started.load_report.missing


def test_encoder_saved_before_there_were_hidden_layers_still_loads(tmp_path: Path) -> None:
    encoder = build(SPEC, seed=3).eval()
    path = save_encoder(tmp_path / "adapted", encoder)
    rewrite(path, lambda state: state["spec"].pop("hidden"))
    images = torch.rand(2, 3, 64, 32, generator=generator(1))
    again = load_encoder(path)
    assert "hidden" not in again.spec and torch.equal(again(images), encoder(images))


def test_encoder_with_a_hidden_layer_comes_back(tmp_path: Path) -> None:
    encoder = build(replace(SPEC, dim=0, hidden=8), seed=3)
    encoder.neck.get_parameter("bias").data.fill_(0.5)
    images = torch.rand(2, 3, 64, 32, generator=generator(1))
    again = load_encoder(save_encoder(tmp_path / "adapted", encoder.eval()))
    assert torch.equal(again(images), encoder(images))


def test_missing_encoder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapted.safetensors: there is no such checkpoint"):
        load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match=r"v1.2.safetensors: there is no such checkpoint"):
        load_encoder(tmp_path / "v1.2")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = load(path)
    change(state)
    save(path, state, kind="encoder")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state["spec"].update(dim=9), "5 of another shape: projection.weight"),
        (lambda state: state["spec"].update(dim=0), "1 unexpected: projection.weight"),
        (lambda state: state["weights"].pop("neck.weight"), "1 missing: neck.weight"),
        (lambda state: state["spec"].update(backbone="resnet_large"), "'resnet_large' is unknown"),
        (lambda state: state["spec"].update(height=-1), "does not describe an encoder of this version"),
        (lambda state: state["spec"].update(colour="red"), "does not describe an encoder of this version"),
        (lambda state: state["weights"].update({"neck.weight": 1.0}), "its weights are not all tensors"),
        (lambda state: state["weights"].update({"neck.weight": np.ones(8)}), "its weights are not all tensors"),
        (lambda state: state.update(weights=3), "does not describe an encoder of this version"),
        (lambda state: state.pop("spec"), "does not describe an encoder of this version"),
    ],
)
def test_encoder_whose_spec_and_weights_disagree_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    path = save_encoder(tmp_path / "adapted", build(SPEC))
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_encoder(path)
    assert "\n" not in str(caught.value)


def test_checkpoint_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "adapted.safetensors", {}, kind="state pul")
    with pytest.raises(CheckpointError, match="holds 'state pul', not 'encoder'"):
        load_encoder(tmp_path)
