from __future__ import annotations

import os
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from PIL import Image

from uda_reid.data.images import images_of
from uda_reid.data.images.decoding import decode
from uda_reid.data.layouts import read
from uda_reid.data.scenes import sheet
from uda_reid.errors import CheckpointError, DataError, RecipeError, UdaReidError, UnreadableError
from uda_reid.foreign.files import read_features
from uda_reid.foreign.ids import read_ids
from uda_reid.models import weights
from uda_reid.reading import IrregularError, check_regular, open_file, read_text
from uda_reid.recipe import load
from uda_reid.report import read as read_record
from uda_reid.report import read_lists
from uda_reid.training import checkpoint


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError("a pipe was waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's whole path has a hundred signs
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)


IRREGULAR = [pipe, link_to_a_pipe, device, unix_socket]
"""What can have the name of a file."""


@pytest.mark.parametrize("make", IRREGULAR)
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x")
    for opening in (open_file, read_text, check_regular):
        with pytest.raises(IrregularError, match="it is a pipe, a socket or a device and no file"):
            opening(tmp_path / "x")


def test_a_folder_and_a_file_that_is_missing_are_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(IrregularError, match="it is a folder and no file"):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "x")


def test_a_pipe_that_takes_a_file_s_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("a file")
    looks = iter([path.stat()])
    path.unlink()
    pipe(path)
    monkeypatch.setattr(Path, "stat", lambda _: next(looks))
    with pytest.raises(IrregularError, match="a pipe"):
        open_file(path)


def test_no_more_is_read_than_what_a_file_should_have(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with open_file(path, most=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(IrregularError, match="it has 5 bytes, and what it should be has at most 4"):
        open_file(path, most=4)


def test_a_hole_of_a_terabyte_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.touch()
    os.truncate(path, 1 << 40)
    assert "has at most 268,435,456): remove or replace it" in str(decode(path, 8, 4))


READERS: dict[str, Callable[[Path], object]] = {
    "image.jpg": lambda path: _raised(decode(path, 8, 4)),
    "recipe.yaml": load,
    "ids.csv": read_ids,
    "features.npy": read_features,
    "features.pt": read_features,
    "weights.safetensors": weights.read,
    "weights.pth": weights.read,
    "model.safetensors": checkpoint.load,
    "record.json": read_record,
    "ranked.json": read_lists,
    "set/manifest.csv": lambda path: read("set", path.parents[1]),
}


def _raised(found: object) -> None:
    if isinstance(found, DataError):
        raise found


@pytest.mark.parametrize("make", IRREGULAR)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    with pytest.raises(UdaReidError) as raised:
        READERS[name](path)
    assert "\n" not in str(raised.value)


def test_links_to_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "there.npy", np.ones((2, 3), np.float32))
    (tmp_path / "here.npy").symlink_to("there.npy")
    assert read_features(tmp_path / "here.npy").shape == (2, 3)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="/proc is Linux's")
@pytest.mark.parametrize("name", READERS)
def test_no_reader_reads_a_file_whose_size_the_system_does_not_state(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/proc/self/pagemap")  # a quarter of a terabyte
    with pytest.raises(UdaReidError, match="states no size for it"):
        READERS[name](path)


def test_an_empty_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert read_text(tmp_path / "x") == ""


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "weights.pth"])
def test_a_model_larger_than_any_memory_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(CheckpointError, match="it has 4,398,046,511,104 bytes, and what it should be has at most"):
        READERS[name](path)


@pytest.mark.parametrize("make", [pipe, link_to_a_pipe, device, Path.mkdir])
def test_a_recipe_that_is_no_file_is_said_to_be_none(tmp_path: Path, make: Callable[..., object]) -> None:
    make(tmp_path / "recipe.yaml")
    wanted = "does not exist" if make is Path.mkdir else "it is a pipe, a socket or a device and no file"
    with pytest.raises(RecipeError, match=wanted):
        load(tmp_path / "recipe.yaml")


def site(root: Path) -> Path:
    """Return a folder of two images."""
    for name in ("0001_c1_1.jpg", "0002_c2_1.jpg"):
        root.mkdir(exist_ok=True)
        Image.new("RGB", (4, 8)).save(root / name)
    return root


@pytest.mark.parametrize("make", [pipe, link_to_a_pipe, device, unix_socket])
def test_what_is_called_like_an_image_and_is_no_file_is_listed_and_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., None]
) -> None:
    root = site(tmp_path / "site")
    monkeypatch.chdir(root)
    make(root / "0003_c1_1.jpg")
    train = read("site", tmp_path).train
    assert [path.name for path in train.paths] == ["0001_c1_1.jpg", "0002_c2_1.jpg", "0003_c1_1.jpg"]
    with pytest.raises(
        UnreadableError, match=r"0003_c1_1\.jpg: cannot be decoded \(it is a pipe, a socket or"
    ) as caught:
        images_of(train).preload(8, 4)
    assert caught.value.rows == (2,)
    (root / "0003_c1_1.jpg").unlink()  # the remedy
    images_of(read("site", tmp_path).train).preload(8, 4)


def test_a_folder_that_is_called_like_an_image_is_said(tmp_path: Path) -> None:
    root = site(tmp_path / "site")
    (root / "0003_c1_1.jpg").mkdir()
    domain = read("site", tmp_path)
    assert len(domain.train) == 2
    assert (
        f"1 folder is called like an image, first {root / '0003_c1_1.jpg'}; only what is inside is read" in domain.notes
    )


@pytest.mark.parametrize("name", ["manifest.csv", "Manifest.CSV"])
@pytest.mark.parametrize("make", [pipe, link_to_a_pipe, device])
def test_a_manifest_that_is_no_file_is_not_passed_over(tmp_path: Path, make: Callable[..., None], name: str) -> None:
    root = site(tmp_path / "site")
    make(root / name)
    with pytest.raises(
        DataError, match=rf"{name}: cannot be read \(it is a pipe.*\); put the table there, or remove it$"
    ):
        read("site", tmp_path)
    (root / name).unlink()
    assert len(read("site", tmp_path).train) == 2


def test_a_manifest_whose_file_has_gone_is_not_passed_over(tmp_path: Path) -> None:
    (site(tmp_path / "site") / "manifest.csv").symlink_to("gone")
    with pytest.raises(
        DataError, match=r"manifest\.csv: cannot be read \(No such file or directory\); put the table th"
    ):
        read("site", tmp_path)


@pytest.mark.parametrize("name", ["annotations.csv", "bounding_box_train/0001.jpg"])
def test_a_contact_sheet_waits_for_no_pipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "bounding_box_train").mkdir()
    (tmp_path / "annotations.csv").write_text("split,file,pid,cam\nbounding_box_train,0001.jpg,1,1\n")
    (tmp_path / name).unlink(missing_ok=True)
    pipe(tmp_path / name)
    with pytest.raises((DataError, IrregularError), match="it is a pipe, a socket or a device and no file"):
        sheet(tmp_path)


@pytest.mark.parametrize("name", ["weights.pth", "features.pt"])
def test_an_archive_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path, name: str) -> None:
    plain, packed = tmp_path / f"plain-{name}", tmp_path / name
    tensor = torch.zeros(500, 100)
    torch.save({"x": tensor}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(
        UdaReidError, match=r"it is compressed, and unpacks to 20.,... bytes; save it anew with torch\.save"
    ):
        READERS[name](packed)
    torch.save({"x": tensor}, packed)  # the remedy
    READERS[name](packed)
