from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from uda_reid.errors import CheckpointError
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.training.checkpoint import load, save

SPEC = EncoderSpec(backbone="resnet_tiny", height=64, width=32, weights="none", dim=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def round_trip(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    save(folder / "state.safetensors", state, kind="test")
    return load(folder / "state.safetensors", kind="test")


def test_plain_values_come_back_with_their_types_and_order(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "zeta": [1, 2.5, True, None, "text", "", "ü\n"],
        "alpha": (1, (2, [3])),
        "numbers": {3: "three", -1: {"x": ()}, 10**30: 2},
        "tenth": 0.1,
        "infinite": -math.inf,
        "huge": 2**127 + 1,
        "empty": {},
        "none": [],
    }
    again = round_trip(tmp_path, state)
    assert again == state
    assert list(again) == list(state)
    assert [type(item) for item in again["zeta"]] == [type(item) for item in state["zeta"]]
    assert isinstance(again["alpha"], tuple) and isinstance(again["alpha"][1], tuple)
    assert math.isnan(round_trip(tmp_path, {"x": math.nan})["x"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.float64).view(2, 3).t(),
        torch.tensor(3),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.randn(3, generator=generator()).bfloat16(),
        torch.arange(5)[1:4],
        torch.ones(1).expand(4),
        torch.rand(2, 3, 4, 5, generator=generator()).to(memory_format=torch.channels_last),
        nn.Parameter(torch.ones(2)),
    ],
    ids=str,
)
def test_tensors_come_back_bit_by_bit(tensor: Tensor, tmp_path: Path) -> None:
    again = round_trip(tmp_path, {"a": {"b": [tensor]}})["a"]["b"][0]
    assert again.dtype == tensor.dtype and again.shape == tensor.shape
    assert torch.equal(
        again.contiguous().view(-1).view(torch.uint8), tensor.detach().contiguous().view(-1).view(torch.uint8)
    )


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3)[:, ::-1],
        np.array(2.5),
        np.arange(3, dtype=">f4"),
        np.array([1, 2**64 - 1], dtype=np.uint64),
        np.zeros((0, 2), dtype=bool),
    ],
    ids=str,
)
def test_arrays_come_back_as_arrays(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    again = round_trip(tmp_path, {"array": array})["array"]
    assert isinstance(again, np.ndarray)
    assert again.dtype == array.dtype.newbyteorder("=") and again.shape == array.shape
    np.testing.assert_array_equal(again, array)


def test_numpy_scalars_come_back_as_numbers(tmp_path: Path) -> None:
    again = round_trip(tmp_path, {"a": np.float64(0.1), "b": np.int32(4), "c": np.bool_(True)})
    assert again == {"a": 0.1, "b": 4, "c": True}
    assert [type(value) for value in again.values()] == [float, int, bool]


def test_tensors_that_share_storage_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    again = round_trip(tmp_path, {"whole": whole, "part": whole[2:], "same": whole})
    again["whole"].zero_()
    assert torch.equal(again["part"], whole[2:]) and torch.equal(again["same"], whole)


def test_names_that_flatten_alike_stay_apart(tmp_path: Path) -> None:
    one, two, three = (torch.full((2,), value) for value in (1.0, 2.0, 3.0))
    again = round_trip(tmp_path, {"a": {"b": one}, "a/b": two, "__metadata__": three})
    assert torch.equal(again["a"]["b"], one) and torch.equal(again["a/b"], two)
    assert torch.equal(again["__metadata__"], three)


def test_random_states_come_back_and_go_on(tmp_path: Path) -> None:
    stream, numbers, old = generator(3), np.random.default_rng(4), np.random.Generator(np.random.MT19937(5))
    torch.randn(7, generator=stream), numbers.normal(size=7), old.normal(size=7)
    states = {"torch": stream.get_state(), "pcg": numbers.bit_generator.state, "mt": old.bit_generator.state}
    again = round_trip(tmp_path, states)
    expected = torch.randn(5, generator=stream), numbers.normal(size=5), old.normal(size=5)
    stream.set_state(again["torch"])
    numbers.bit_generator.state = again["pcg"]
    old.bit_generator.state = again["mt"]
    assert torch.equal(torch.randn(5, generator=stream), expected[0])
    np.testing.assert_array_equal(numbers.normal(size=5), expected[1])
    np.testing.assert_array_equal(old.normal(size=5), expected[2])


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_goes_on_bit_by_bit_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    def start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = build(SPEC, seed=seed)
        return model, OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            loss = model(torch.rand(4, 3, 32, 16, generator=generator(number))).pow(3).sum()
            loss.backward()
            optimizer.step()

    model, optimizer = start(0)
    steps(model, optimizer, range(3))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved = round_trip(tmp_path, state)
    steps(model, optimizer, range(3, 6))
    resumed, resumed_optimizer = start(1)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    steps(resumed, resumed_optimizer, range(3, 6))
    for key, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    ends = [
        {"model": m.state_dict(), "optimizer": o.state_dict()}
        for m, o in ((model, optimizer), (resumed, resumed_optimizer))
    ]
    for number, end in enumerate(ends):
        save(tmp_path / str(number), end, kind="test")
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        state = {
            "m": build(SPEC).state_dict(),
            "b": {str(k): k for k in range(50)},
            "a": OrderedDict(x=torch.ones(3)),
        }
        save(tmp_path / name, state, kind="test")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, Path("x"), np.array(["text"])])
def test_values_without_a_place_in_the_file_are_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state entry a/b/0: an? .* cannot be saved"):
        save(tmp_path / "state", {"a": {"b": [value]}}, kind="test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mapping", [{1: 0, "1": 0}, {1.5: 0}, {True: 0}, {(1, 2): 0}])
def test_mappings_with_other_keys_are_refused(mapping: dict[Any, int], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="state entry a: a mapping has keys other than"):
        save(tmp_path / "state", {"a": mapping}, kind="test")


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_storage_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="state entry a: a tensor without plain storage"):
        save(tmp_path / "state", {"a": tensor}, kind="test")
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(path, {"x": torch.arange(20), "y": "text", "z": {1: torch.ones(2, 2)}}, kind="test")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"state\.safetensors is truncated or no checkpoint"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="is truncated or no checkpoint"):
        load(path)


def test_file_in_which_any_byte_has_changed_is_refused_or_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(path, {"x": torch.arange(6, dtype=torch.float32), "epoch": 17, "names": ["a", "b"]}, kind="test")
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = load(path)
        except CheckpointError:
            refused += 1
            continue
        assert torch.equal(found["x"], torch.arange(6.0)) and (found["epoch"], found["names"]) == (17, ["a", "b"])
    assert refused > 0.9 * len(whole)


def test_file_from_before_there_was_a_checksum_still_loads(tmp_path: Path) -> None:
    header = {"format": 1, "kind": "test", "state": {"named": {"x": {"tensor": "x"}}}}
    path = tmp_path / "state.safetensors"
    path.write_bytes(safetensors.torch.save({"x": torch.ones(2)}, metadata={"uda_reid": json.dumps(header)}))
    assert torch.equal(load(path)["x"], torch.ones(2))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(safetensors.torch.save({"x": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="a safetensors file, but no checkpoint of uda-reid"):
        load(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        load(path)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "mark")
    for protocol in range(2, 6):
        (tmp_path / "state").write_bytes(pickle.dumps(trap, protocol=protocol))
        with pytest.raises(CheckpointError, match="a PyTorch or pickle file, which is never read"):
            load(tmp_path / "state")
    torch.save({"x": trap}, tmp_path / "state")
    with pytest.raises(CheckpointError, match="a PyTorch or pickle file, which is never read"):
        load(tmp_path / "state")
    assert not trap.mark.exists()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            {"format": 2, "kind": "test", "state": {"named": {}}},
            "has format 2; this version of uda-reid reads 1",
        ),
        ({"format": 1, "kind": "other", "state": {"named": {}}}, "holds 'other', not 'test'"),
        ({"format": 1, "kind": "test", "state": {"named": {"x": {"tensor": "gone"}}}}, "is damaged"),
        ({"format": 1, "kind": "test", "state": {"pickle": "x"}}, "is damaged"),
        ({"kind": "test"}, "is damaged"),
        ([], "is damaged"),
    ],
)
def test_headers_of_another_kind_are_refused(header: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(safetensors.torch.save({"x": torch.ones(1)}, metadata={"uda_reid": json.dumps(header)}))
    with pytest.raises(CheckpointError, match=reason):
        load(path, kind="test")
