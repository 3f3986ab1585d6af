"""Features as other tools write them: NumPy arrays, torch tensors, and the MATLAB file of Person_reID_baseline."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.ops.distance import check_features
from uda_reid.options import one_line
from uda_reid.reading import check_archive, check_regular, open_file

Array = npt.NDArray[Any]

MATLAB = ".mat"
RESULT = tuple(f"{part}_{what}" for part in ("query", "gallery") for what in ("f", "label", "cam"))
"""What test.py of Person_reID_baseline_pytorch writes into pytorch_result.mat."""
MAPPED_ABOVE = 1 << 30
"""Bytes of features that are read at once. More of them are mapped into memory; where another program writes to such a
file meanwhile (`numpy.save` empties it first), the system ends this one."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_features(path: Path) -> Tensor:
    """Read features.

    A float32 `.npy` file above `MAPPED_ABOVE` bytes is mapped into memory and not copied: rows are read from the disk
    when they are needed, and nothing is ever written back.

    Args:
        path: a `.npy` file, or a `.pt` or `.pth` file with a tensor, or with a mapping in which one tensor has two
            dimensions; of any floating type.

    Returns:
        (N, D) float32, finite.

    Raises:
        DataError: the file is missing, truncated, of another kind, or holds no such features.
    """
    return checked(_reader(path)(path), path)


def read_result(path: Path) -> dict[str, Array]:
    """Read the variables of `RESULT` from a MATLAB file.

    Returns:
        The two with features are (N, D), the others (N,).

    Raises:
        DataError: the file is missing, truncated, of another kind, or lacks one of them.
    """
    check_file(path)
    from scipy.io import loadmat  # takes a tenth of a second, and most files are others

    try:
        check_regular(path)
        found = loadmat(path, variable_names=RESULT)
    except NotImplementedError as error:
        raise DataError(f"{path} is a MATLAB 7.3 file, which is not read; save it with -v7, or as .npy") from error
    except Exception as error:  # of damaged files scipy raises whatever it comes across
        raise DataError(f"{path} is truncated or no MATLAB file ({one_line(error)})") from error
    missing = [name for name in RESULT if name not in found]
    if missing:
        wanted = f"{', '.join(RESULT)}, as Person_reID_baseline's test.py writes them"
        raise DataError(f"{path}: there is no {missing[0]} in it; it has to hold {wanted}")
    return {name: found[name] if name.endswith("_f") else found[name].ravel() for name in RESULT}


def checked(features: Tensor, path: Path, name: str = "") -> Tensor:
    """Return what a file holds as float32 features.

    Args:
        features: whatever tensor was in it.
        path: the file, for messages.
        name: what the tensor was called in it.

    Raises:
        DataError: it is no finite, floating matrix with a row and a column.
    """
    place = f"{path}: {name}" if name else str(path)
    shape = tuple(features.shape)
    if features.ndim != 2:
        raise DataError(
            f"{place} holds an array of shape {shape}; features are (rows, dimensions): reshape and save it"
        )
    if 0 in shape:
        raise DataError(f"{place} is empty: its shape is {shape}; one row and one dimension at least are needed")
    if features.dtype not in DTYPES or features.layout != torch.strided:
        raise DataError(
            f"{place} holds {_kind(features)}; features are float16, float32 or float64: convert it to float32"
        )
    features = features.detach().to(torch.float32).contiguous()
    check_features(features, place)
    return features


def zero_rows(lengths: Tensor) -> list[str]:
    """Return a note where rows of such lengths have no direction.

    Args:
        lengths: (N,), or the largest entries: 0 for a row of zeros and for no other.
    """
    zeros = int((lengths == 0).sum())
    told = f"{zeros:,} of {len(lengths):,} rows are all zeros"
    return [f"{told}: was a batch lost on the way?"] if zeros else []


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is not enough memory; on the CPU torch says so in a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_file(path: Path) -> None:
    """Refuse what is not there, or is a folder.

    Raises:
        DataError: it is.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file, such as {path / 'features.npy'}")
    if not path.exists():
        raise DataError(f"{path}: there is no such file")


def _reader(path: Path) -> Callable[[Path], Tensor]:
    readers: Mapping[str, Callable[[Path], Tensor]] = {".npy": _array, ".pt": _tensor, ".pth": _tensor}
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == MATLAB:
        raise DataError(f"{path} holds queries and a gallery with their labels; give it alone, without a second file")
    if suffix not in readers:
        raise DataError(f"{path} is of a kind that is not read; save features as .npy, .pt, .pth or .mat")
    return readers[suffix]


def _kind(features: Tensor) -> str:
    kind = str(features.dtype).removeprefix("torch.")
    return kind if features.layout == torch.strided else f"a sparse tensor of {kind}"


def _array(path: Path) -> Tensor:
    """Read a .npy file, or map it into memory; changes would stay there."""
    try:
        with open_file(path) as file:
            _check_magic(path, file.read(6))
            array: Array = np.lib.format.open_memmap(path, mode="c")  # compares the size with the header
            if array.nbytes <= MAPPED_ABOVE:
                file.seek(0)
                array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        if "Python objects" in str(error):
            raise DataError(f"{path} holds Python objects, which are never unpickled; save a float32 array") from error
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); save it again") from error
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
        raise DataError(f"{path} holds {array.dtype}; features are float16, float32 or float64")
    with np.errstate(over="ignore"):
        plain = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
    if array.dtype == np.float64 and np.isinf(plain).any() and not np.isinf(array).any():
        raise DataError(f"{path} holds values beyond the range of float32; scale the features down")
    return torch.from_numpy(np.ascontiguousarray(plain) if plain.ndim else plain)


def _check_magic(path: Path, start: bytes) -> None:
    """Say what a file is that is no .npy file."""
    if start == b"\x93NUMPY":
        return
    kind = "is no .npy file" if start else "is empty"
    if start.startswith(b"PK"):
        kind = "is an archive (.npz, or a .pt file under another name)"
    if start.startswith(b"\x80"):
        kind = "is a pickle, which is never read"
    raise DataError(f"{path} {kind}; save the array alone, with numpy.save")


def _tensor(path: Path) -> Tensor:
    try:
        with warnings.catch_warnings():  # about sparse tensors, which are refused
            warnings.simplefilter("ignore")
            check_archive(path)
            mapped = path.stat().st_size > MAPPED_ABOVE and zipfile.is_zipfile(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = "holds more than tensors, or is damaged; other objects are never unpickled"
        raise DataError(f"{path} {reason}: save the tensor alone, with torch.save(features.cpu(), path)") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({one_line(error)})") from error
    except Exception as error:  # of damaged files torch raises whatever it comes across
        if out_of_memory(error):
            raise
        raise DataError(f"{path} is truncated or no file of torch.save; save the tensor again") from error
    if isinstance(found, Mapping):
        if any(str(key).endswith(".weight") for key in found):
            raise DataError(f"{path} holds a model's weights and not what it made of images; save the features' tensor")
        matrices = {str(key): value for key, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}
        if len(matrices) != 1:
            names = f" ({', '.join(list(matrices)[:5])})" if matrices else ""
            raise DataError(f"{path} holds {len(matrices)} matrices{names}; save the features' tensor alone")
        found = next(iter(matrices.values()))
    if not isinstance(found, Tensor):
        raise DataError(f"{path} holds a {type(found).__name__} and no tensor; save the features' tensor alone")
    return found
