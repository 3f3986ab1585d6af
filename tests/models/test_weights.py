from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from uda_reid.errors import CheckpointError
from uda_reid.models.encoder import Embedder, EncoderSpec, build
from uda_reid.models.weights import LoadReport, fill, find_imagenet, read

MOBILENET = Path(__file__).resolve().parents[2] / "../shared/data/weights/mobilenet_v2_imagenet.safetensors"


def spec(**options: Any) -> EncoderSpec:
    return EncoderSpec(**{"backbone": "resnet_tiny", "height": 64, "width": 32, "weights": "none", **options})


@pytest.mark.skipif(not MOBILENET.is_file(), reason="the shared data folder is not here")
def test_shared_imagenet_weights_load_in_full() -> None:
    encoder = build(spec(backbone="mobilenet_v2", weights="imagenet"), weights_folders=[MOBILENET.parent])
    report = encoder.load_report
    assert report is not None
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), ())
    assert report.loaded == 260
    stored = safetensors.torch.load_file(MOBILENET)
    assert torch.equal(encoder.trunk.get_parameter("18.0.weight"), stored["features.18.0.weight"])
    by_path = build(spec(backbone="mobilenet_v2", weights=str(MOBILENET)))
    own = encoder.trunk.state_dict()
    assert all(torch.equal(own[name], value) for name, value in by_path.trunk.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_torchvision_and_its_descendants_load_in_full(name: str, prefix: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {prefix + key: value for key, value in network.state_dict().items()}}, path)
    report = build(spec(backbone=name, weights=str(path))).load_report
    assert report is not None
    assert (report.missing, report.unexpected, report.wrong_shape) == ((), (), ())
    assert report.loaded == sum(not key.startswith(("fc.", "classifier.")) for key in network.state_dict())


def test_load_report_lists_the_keys_that_did_not_match() -> None:
    weights = build(spec(), seed=1).trunk.state_dict()
    del weights["layer2.0.conv1.weight"]
    weights["other.weight"] = torch.zeros(1)
    weights["layer4.7.conv1.weight"] = torch.zeros(1)
    weights["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    encoder = build(spec())
    fresh = encoder.trunk.state_dict()["layer1.0.conv1.weight"].clone()
    report = fill(encoder, weights, backbone="resnet_tiny", origin="partly.pth")
    assert report.missing == ("trunk.layer2.0.conv1.weight",)
    assert report.unexpected == ("other.weight",)
    assert report.wrong_shape == ("layer1.0.conv1.weight",)
    assert report.beyond == ("layer4.7.conv1.weight",)
    assert report.loaded == len(weights) - 3
    assert "1 missing: trunk.layer2.0.conv1.weight; 1 unexpected: other.weight; 1 of another shape" in str(report)
    assert torch.equal(encoder.state_dict()["trunk.layer1.0.conv1.weight"], fresh)
    assert torch.equal(encoder.trunk.get_parameter("conv1.weight"), weights["conv1.weight"])


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("resnet18", "resnet34", "missing or of another shape are trunk.layer1.2.conv1.weight"),
        ("resnet34", "resnet18", "too many are layer1.2.conv1.weight"),
        ("resnet50", "resnet34", "missing or of another shape are layer1.0.conv1.weight"),
        ("mobilenet_v3_small", "mobilenet_v3_large", "missing or of another shape are"),
    ],
)
def test_weights_of_a_relative_of_the_encoder_are_refused(
    given: str, wanted: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.get_model(given, weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=f"weights.pth does not hold {wanted}: .*{message}"):
        build(spec(backbone=wanted, weights=str(path)))


def test_imagenet_file_of_another_network_is_refused(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "resnet34_imagenet.safetensors")
    with pytest.raises(CheckpointError, match=r"does not hold resnet34: missing or of another shape are trunk"):
        build(spec(backbone="resnet34", weights="imagenet"), weights_folders=[tmp_path])


def test_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    safetensors.torch.save_file(build(spec()).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"source.safetensors does not hold resnet18: missing or"):
        build(spec(backbone="resnet18", weights=str(path)))


def test_weights_in_which_nothing_matches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"embedding.table": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors fits resnet_tiny; they are called embedding"):
        build(spec(weights=str(path)))


def test_missing_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such weights file"):
        build(spec(weights=str(tmp_path / "nowhere.pth")))


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(build(spec()), path)
    with pytest.raises(CheckpointError, match="objects are never unpickled"):
        build(spec(weights=str(path)))


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_weights_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    weights = build(spec()).trunk.state_dict()
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    content = buffer.getvalue() if name.endswith("pth") else safetensors.torch.save(weights)
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"{name} is no readable file of weights alone"):
        build(spec(weights=str(path)))


def test_unreachable_imagenet_weights_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"resnet50_imagenet.safetensors.* --weights DIR") as caught:
        build(spec(backbone="resnet50", weights="imagenet"), weights_folders=[tmp_path])
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "cache") in message and "no route to host" in message and "weights: none" in message


def test_imagenet_weights_are_found_in_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), cached)
    encoder: Embedder = build(spec(backbone="resnet18", weights="imagenet"))
    assert encoder.load_report is not None and encoder.load_report.origin == str(cached)
    assert torch.equal(encoder.trunk.get_parameter("conv1.weight"), network.conv1.weight)


@pytest.mark.parametrize("terminal", [True, False])
def test_download_shows_its_progress_only_to_a_terminal(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    asked: dict[str, Any] = {}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **options: asked.update(options))
    path = find_imagenet("net", "https://example.org/net-0123abcd.pth")
    assert path == tmp_path / "hub" / "checkpoints" / "net-0123abcd.pth"
    assert asked == {"hash_prefix": "0123abcd", "progress": terminal}


@pytest.mark.parametrize("other", ["module.conv1.weight", "backbone.conv1.weight", "trunk.conv1.weight"])
def test_two_tensors_for_one_place_are_refused(other: str, tmp_path: Path) -> None:
    weights = build(spec(), seed=1).trunk.state_dict()
    path = tmp_path / "two.pth"
    torch.save({**weights, other: torch.zeros_like(weights["conv1.weight"])}, path)
    with pytest.raises(CheckpointError, match=rf"conv1.weight and {other} both are weights of trunk.conv1.weight"):
        build(spec(weights=str(path)))


def test_tensors_without_a_place_may_share_a_name(tmp_path: Path) -> None:
    weights = build(spec(), seed=1).trunk.state_dict()
    path = tmp_path / "heads.pth"
    foreign = {name: torch.zeros(1) for name in ("fc.bias", "base.fc.bias", "other", "module.other")}
    torch.save({**weights, **foreign}, path)
    report = build(spec(weights=str(path))).load_report
    assert report is not None and report.loaded == len(weights)
    assert report.unexpected == ("other", "module.other")


def test_lack_names_the_first_few_tensors() -> None:
    assert LoadReport("file", 3, unexpected=("x",)).lack() == ""
    short = LoadReport("file", 3, missing=("a", "b"), wrong_shape=("c", "d", "e")).lack()
    assert short == "missing or of another shape are a, b, c and 2 more"


def test_a_checkpoint_with_other_objects_is_said_in_our_words(tmp_path: Path) -> None:
    """torchreid keeps a NumPy number beside the weights; torch's text ends within an escape sequence."""
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}, "rank1": np.float64(0.8)}, path)
    with pytest.raises(CheckpointError) as raised:
        read(path)
    text = str(raised.value)
    assert text.isprintable() and "weights_only" not in text and "torch.save(model.state_dict(), path)" in text
    torch.save(torch.load(path, weights_only=False)["state_dict"], path)  # the remedy
    assert list(read(path)) == ["conv1.weight"]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x00" * 100, b"text"])
def test_no_other_library_s_text_is_passed_on(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read(tmp_path / name)
    text = str(raised.value).removeprefix(str(tmp_path))
    assert text.isprintable()
    assert not any(
        word in text for word in ("weights_only", "PytorchStreamReader", "HeaderToo", "Weights only", "Ran out")
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_whose_file_is_cut_off_later_stay_as_they_were_read(tmp_path: Path, suffix: str) -> None:
    path, tensor = tmp_path / f"x{suffix}", torch.rand(100, 100)
    if suffix == ".pth":
        torch.save({"x": tensor}, path)
    else:
        safetensors.torch.save_file({"x": tensor}, path)
    found = read(path)
    os.truncate(path, 0)  # where the file is mapped, what follows is a bus error
    assert torch.equal(found["x"], tensor)
