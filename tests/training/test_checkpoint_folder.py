"""States by name, and the ones before them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from uda_reid.errors import CheckpointError
from uda_reid.reading import open_file
from uda_reid.run import Store
from uda_reid.training.checkpoint import CheckpointFolder, load, save


def test_checkpoint_folder_keeps_states_by_name(tmp_path: Path) -> None:
    store: Store = CheckpointFolder(tmp_path / "states")
    assert store.restore("pul/round") is None
    for name in ("pul/round", "pul+round", "pul%2Fround", "../pul"):
        store.save(name, {"name": name})
    store.save("pul/round", {"name": "newer", "x": torch.ones(2)})
    newer = store.restore("pul/round")
    assert newer is not None and newer["name"] == "newer" and torch.equal(newer["x"], torch.ones(2))
    for name in ("pul+round", "pul%2Fround", "../pul"):
        assert store.restore(name) == {"name": name}
    assert {path.parent for path in tmp_path.rglob("*.*")} == {tmp_path / "states"}


def test_checkpoint_folder_refuses_a_truncated_state(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    store.save("pul", {"x": torch.ones(9)})
    store.path("pul").write_bytes(store.path("pul").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"pul\.safetensors is truncated"):
        store.restore("pul")


@pytest.mark.parametrize("linked", [True, False])
def test_damaged_state_gives_way_to_the_one_before_it_with_a_warning(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", none)
    said: list[str] = []
    store = CheckpointFolder(tmp_path, log=said.append)
    for epoch in (1, 2, 3):
        store.save("pul", {"epoch": epoch, "x": torch.full((9,), float(epoch))})
    assert store.restore("pul") is not None and not said
    whole = store.path("pul").read_bytes()
    store.path("pul").write_bytes(whole[:-4] + bytes(4))
    found = store.restore("pul")
    assert found is not None and found["epoch"] == 2 and torch.equal(found["x"], torch.full((9,), 2.0))
    (line,) = said
    assert line.startswith("warning: ") and "pul.safetensors is damaged" in line and "the state before it" in line
    # A write that fails half-way leaves the state that was used, and so does the next damage.
    with pytest.raises(CheckpointError, match="cannot be saved"):
        store.save("pul", {"epoch": object()})
    again = store.restore("pul")
    assert again is not None and again["epoch"] == 2 and len(said) == 1  # told once
    store.save("pul", {"epoch": 3})
    store.path("pul").write_bytes(b"nothing")
    third = store.restore("pul")
    assert third is not None and third["epoch"] == 2 and len(said) == 2
    store.save("step", {"epoch": 3})
    store.drop_previous("step", "never kept")
    assert [path.name for path in tmp_path.iterdir()] == ["pul.safetensors"]


def test_states_that_are_all_damaged_are_told_with_what_to_do(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        store.save("pul", {"epoch": epoch})
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(
        CheckpointError,
        match=r"truncated .*; remove .*safetensors and .*previous, and what was held is",
    ):
        store.restore("pul")


def test_state_that_has_gone_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        store.save("pul", {"epoch": epoch})
    store.path("pul").unlink()
    assert store.restore("pul") == {"epoch": 1}


def test_state_that_only_cannot_be_read_now_is_no_reason_to_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        store.save("pul", {"epoch": epoch})

    def tired(path: Path, **options: Any) -> Any:
        if path == store.path("pul"):
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, **options)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot be read"):
        patch.setattr("uda_reid.training.checkpoint.open_file", tired)
        store.restore("pul")
    assert store.restore("pul") == {"epoch": 2}


def test_previous_state_of_another_name_is_none(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    store.save("other", {})
    store.path("other").rename(tmp_path / "pul.safetensors.previous")
    store.path("pul").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"remove .*previous, and what was held is made again"):
        store.restore("pul")


def test_tensors_that_have_changed_places_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(path, {"aa": torch.zeros(2), "bb": torch.ones(2)}, kind="test")
    whole = path.read_bytes()
    header = (
        whole[: whole.rindex(b"}") + 1]
        .replace(b'"aa":{"dtype"', b'"xx":{"dtype"')
        .replace(b'"bb":{"dtype"', b'"aa":{"dtype"')
    )
    path.write_bytes(header.replace(b'"xx":{"dtype"', b'"bb":{"dtype"') + whole[len(header) :])
    assert path.read_bytes() != whole
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def test_checkpoint_folder_refuses_a_renamed_state(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    store.save("pretrain", {})
    store.path("pretrain").rename(store.path("pul"))
    with pytest.raises(CheckpointError, match="holds 'state pretrain', not 'state pul'"):
        store.restore("pul")
