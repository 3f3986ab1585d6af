from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uda_reid.errors import DataError
from uda_reid.foreign import files, read_features


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_arrays_of_every_floating_type_are_read_as_float32(tmp_path: Path, kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(kind)
    np.save(tmp_path / "x.npy", array)
    found = read_features(tmp_path / "x.npy")
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), array.astype(np.float32))


def test_array_in_columns_first_order_is_read_by_rows(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.save(tmp_path / "x.npy", array)
    found = read_features(tmp_path / "x.npy")
    assert found.is_contiguous()
    assert found.tolist() == array.tolist()


def test_float32_array_stays_on_the_disk_and_is_never_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    mapped: list[Any] = []
    original = np.lib.format.open_memmap

    def remembering(*arguments: Any, **options: Any) -> Any:
        mapped.append(original(*arguments, **options))
        return mapped[-1]

    monkeypatch.setattr(np.lib.format, "open_memmap", remembering)
    monkeypatch.setattr(files, "MAPPED_ABOVE", 0)  # as of a large one
    found = read_features(tmp_path / "x.npy")
    assert isinstance(mapped[0], np.memmap)
    assert found.data_ptr() == mapped[0].ctypes.data  # no copy
    found[0, 0] = 7
    assert np.load(tmp_path / "x.npy")[0, 0] == 1


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_read_alone_or_in_a_mapping(tmp_path: Path, suffix: str, kind: torch.dtype) -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    torch.save(features.requires_grad_(), tmp_path / f"alone{suffix}")
    torch.save({"features": features, "pids": torch.ones(5)}, tmp_path / f"mapping{suffix}")
    torch.save(features, tmp_path / f"old{suffix}", _use_new_zipfile_serialization=False)
    for name in ("alone", "mapping", "old"):
        found = read_features(tmp_path / f"{name}{suffix}")
        assert not found.requires_grad
        assert torch.equal(found, features.detach().float())


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def spoilt(folder: Path) -> None:
    """Write a file for each way in which features go wrong."""
    rows = np.ones((4, 3), np.float32)
    arrays = {
        "flat": rows[0], "deep": rows[None], "empty": rows[:0], "thin": rows[:, :0], "whole": rows.astype(int),
        "complex": rows.astype(complex), "text": np.array([["a"]]), "scalar": np.float32(3),
        "huge": rows * np.float64(1e300),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    rows[2, 1] = np.nan
    np.save(folder / "nan.npy", rows)
    np.save(folder / "objects.npy", np.array([{1: 2}], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", rows)
    (folder / "archive.npz").rename(folder / "archive.npy")
    np.save(folder / "short.npy", rows)
    cut(folder / "short.npy", 150)
    (folder / "blank.npy").write_bytes(b"")
    (folder / "words.npy").write_bytes(b"hello")
    (folder / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    (folder / "folder.npy").mkdir()
    (folder / "x.txt").write_text("1 2 3")
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, folder / "two.pt")
    torch.save({"a": torch.ones(2)}, folder / "none.pt")
    torch.save({"fc.weight": torch.ones(2, 2), "bn.weight": torch.ones(2)}, folder / "model.pt")
    torch.save([torch.ones(2, 2)], folder / "list.pt")
    torch.save({"model": rows}, folder / "numpy.pt")
    torch.save(torch.ones(2, 2).to_sparse(), folder / "sparse.pt")
    torch.save(torch.ones(2, 2), folder / "short.pth")
    cut(folder / "short.pth", 300)
    (folder / "words.pt").write_bytes(b"hello")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npy", "missing.npy: there is no such file"),
        ("folder.npy", "folder.npy is a folder; give a file, such as "),
        ("flat.npy", "flat.npy holds an array of shape (3,); features are (rows, dimensions)"),
        ("deep.npy", "deep.npy holds an array of shape (1, 4, 3)"),
        ("scalar.npy", "scalar.npy holds an array of shape ()"),
        ("empty.npy", "empty.npy is empty: its shape is (0, 3)"),
        ("thin.npy", "thin.npy is empty: its shape is (4, 0)"),
        ("whole.npy", "whole.npy holds int64; features are float16, float32 or float64"),
        ("complex.npy", "complex.npy holds complex128; features are"),
        ("text.npy", "text.npy holds <U1; features are"),
        ("nan.npy", "nan.npy: row 2 holds NaN or infinity (1 of 4 rows do)"),
        ("huge.npy", "huge.npy holds values beyond the range of float32; scale the features down"),
        ("objects.npy", "objects.npy holds Python objects, which are never unpickled; save a float32 array"),
        ("archive.npy", "archive.npy is an archive (.npz, or a .pt file under another name); save the array alone"),
        ("short.npy", "short.npy is truncated or damaged (mmap length is greater than file size); save it again"),
        ("blank.npy", "blank.npy is empty; save the array alone, with numpy.save"),
        ("words.npy", "words.npy is no .npy file; save the array alone"),
        ("pickle.npy", "pickle.npy is a pickle, which is never read; save the array alone"),
        ("x.txt", "x.txt is of a kind that is not read; save features as .npy, .pt, .pth or .mat"),
        ("two.pt", "two.pt holds 2 matrices (a, b); save the features' tensor alone"),
        ("model.pt", "model.pt holds a model's weights and not what it made of images; save the features' tensor"),
        ("none.pt", "none.pt holds 0 matrices; save the features' tensor alone"),
        ("list.pt", "list.pt holds a list and no tensor"),
        ("numpy.pt", "numpy.pt holds more than tensors, or is damaged; other objects are never unpickled"),
        ("sparse.pt", "sparse.pt holds a sparse tensor of float32; features are"),
        ("short.pth", "short.pth is truncated or no file of torch.save; save"),
        ("words.pt", "words.pt is truncated or no file of torch.save; save the tensor again"),
    ],
)
def test_unusable_features_are_one_line_that_names_the_file(tmp_path: Path, name: str, message: str) -> None:
    spoilt(tmp_path)
    with pytest.raises(DataError) as error:
        read_features(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_features_that_another_program_writes_anew_stay_as_they_were_read(
    tmp_path: Path, suffix: str, kind: type[np.floating[Any]]
) -> None:
    array, path = np.random.default_rng(0).standard_normal((400, 30)).astype(kind), tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    found = read_features(path)
    os.truncate(path, 0)  # as numpy.save does first; where the file is mapped, what follows is a bus error
    assert np.array_equal(found.numpy(), array.astype(np.float32))
