"""States on disk: one safetensors file each, written at once or not at all, read strictly, never unpickled.

Tensors and arrays lie in the file under readable names (`optimizer/state/0/exp_avg`), all else as JSON in its
header. Equal states, built in the same order, give equal bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from uda_reid.errors import CheckpointError
from uda_reid.reading import model_bytes, open_file
from uda_reid.run import State
from uda_reid.writing import keep_aside, replace_file

FORMAT = 1
SUFFIX, PREVIOUS = ".safetensors", ".previous"
# All of the JSON is under one key: safetensors writes several in no fixed order.
KEY = "uda_reid"
RESERVED = "__metadata__"
# How zipped and plain pickles begin. A safetensors file may begin so too: its first bytes are a length.
PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save(path: Path, state: State, *, kind: str) -> None:
    """Write `state` to `path`; whatever happens, `path` then holds the old state or the new one, whole.

    Args:
        path: the file; its folder is made where it is missing.
        state: nested mappings with text keys (or whole-number keys, as optimizers use); leaves are tensors,
            NumPy arrays, numbers of any size, text, None, and lists or tuples of these. Tensors come back
            on the CPU, NumPy scalars as plain numbers, mappings in their order.
        kind: what the state is, checked by `load`.

    Raises:
        CheckpointError: a leaf is of another type, or the file cannot be written (no room, no permission).
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, (), tensors)
    checksum = _checksum(tree, tensors)
    header = json.dumps({"format": FORMAT, "kind": kind, "checksum": checksum, "state": tree}, separators=(",", ":"))
    try:
        data = safetensors.torch.save(tensors, metadata={KEY: header})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: a tensor cannot be saved ({error})") from error
    replace_file(Path(path), data)


def load(path: Path, *, kind: str | None = None) -> dict[str, Any]:
    """Return the state that `save` wrote to `path`.

    Args:
        path: the file.
        kind: what the state has to be; None takes any.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign, of another version or of another kind.
    """
    try:
        with open_file(path, most=model_bytes()) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get(RESERVED, {})
    except (SafetensorError, ValueError) as error:
        if data[:2] in PICKLES:
            raise CheckpointError(f"{path} is a PyTorch or pickle file, which is never read as a checkpoint") from error
        raise CheckpointError(f"{path} is truncated or no checkpoint ({error})") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of uda-reid")
    try:
        header = json.loads(metadata[KEY])
        if header["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {header['format']!r}; this version of uda-reid reads {FORMAT}")
        if kind is not None and header["kind"] != kind:
            raise CheckpointError(f"{path} holds {header['kind']!r}, not {kind!r}")
        if header.get("checksum", found := _checksum(header["state"], tensors)) != found:  # older files have none
            raise CheckpointError(f"{path} is damaged: its content is not what was written")
        state: dict[str, Any] = _decode(header["state"], tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its header does not describe its tensors") from error
    return state


def _checksum(tree: Any, tensors: Mapping[str, Tensor]) -> int:
    """Return a CRC-32 of everything in a file; what a disk makes of it by mistake gives another one."""
    found = zlib.crc32(json.dumps(tree).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found))
    return found


def _refuse(where: tuple[str, ...], what: str) -> NoReturn:
    raise CheckpointError(f"state entry {'/'.join(where) or '(the whole)'}: {what}")


def _encode(value: Any, where: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, its tensors put into `tensors`; what is not plain becomes {"its kind": ...}."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return _encode_mapping(value, where, tensors)
    if isinstance(value, list | tuple):
        items = [_encode(item, (*where, str(number)), tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            _refuse(where, "a tensor without plain storage cannot be saved")
        # The copy also parts tensors that share storage, which safetensors refuses.
        copy = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"tensor": _keep(copy, where, tensors)}
    if isinstance(value, np.ndarray):
        try:
            copy = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C", copy=True))
        except TypeError:
            _refuse(where, f"an array of {value.dtype} cannot be saved")
        return {"array": _keep(copy, where, tensors)}
    _refuse(where, f"a {type(value).__name__} cannot be saved; use tensors, arrays, numbers, text, None or lists")


def _encode_mapping(value: Mapping[Any, Any], where: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    kinds = {type(key) for key in value}
    if not (kinds <= {str} or kinds == {int}):
        _refuse(where, "a mapping has keys other than text, or other than whole numbers")
    entries = {str(key): _encode(value[key], (*where, str(key)), tensors) for key in value}
    return {"numbered" if kinds == {int} else "named": entries}


def _keep(tensor: Tensor, where: tuple[str, ...], tensors: dict[str, Tensor]) -> str:
    name = "/".join(where)
    while name in tensors or name == RESERVED:  # {"a": {"b": x}, "a/b": y}
        name += "'"
    tensors[name] = tensor
    return name


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    [(what, content)] = node.items()
    if what == "tensor":
        return tensors[content]
    if what == "array":
        return tensors[content].numpy()
    if what == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if what == "numbered":
        return {int(key): _decode(item, tensors) for key, item in content.items()}
    if what == "named":
        return {key: _decode(item, tensors) for key, item in content.items()}
    raise ValueError(what)


class CheckpointFolder:
    """A `run.Store` that keeps each named state in a file of its own, and the one before it in another.

    Args:
        folder: where the files lie; made by the first `save`.
        log: told when a state is damaged and the one before it is used.
    """

    def __init__(self, folder: Path, *, log: Callable[[str], None] | None = None) -> None:
        self.folder, self.log = Path(folder), log
        self.damaged: set[Path] = set()

    def path(self, name: str) -> Path:
        """Return the file of a state.

        >>> CheckpointFolder(Path("run")).path("pul/round").as_posix()
        'run/pul+round.safetensors'
        """
        return self.folder / (quote(name, safe="").replace("%2F", "+") + SUFFIX)

    def save(self, name: str, state: State) -> None:
        """Keep `state` under `name`, and the last one beside it as `.previous`.

        Raises:
            CheckpointError: as `save`.
        """
        path = self.path(name)
        if path.exists() and path not in self.damaged:  # else the only good state would give way to a damaged one
            keep_aside(path, _previous(path))
        save(path, state, kind=f"state {name}")
        self.damaged.discard(path)

    def restore(self, name: str) -> dict[str, Any] | None:
        """Return the state last kept under `name`, or None; where its file is damaged or gone, the one before it.

        Raises:
            CheckpointError: there are files, but all are damaged or foreign; or the disk does not answer.
        """
        path, kind = self.path(name), f"state {name}"
        previous = _previous(path)
        if not path.exists() and not previous.exists():
            return None
        try:
            return load(path, kind=kind)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError) and path.exists():
                raise  # a disk that does not answer just now: the state may be whole
            told = str(error)
        try:
            found = load(previous, kind=kind)
        except CheckpointError as error:
            there = " and ".join(str(each) for each in (path, previous) if each.exists())
            raise CheckpointError(f"{told}; remove {there}, and what was held is made again") from error
        if self.log is not None and path not in self.damaged:
            self.log(f"warning: {told}; the state before it is used, and what came after is computed again")
        self.damaged.add(path)
        return found

    def drop_previous(self, *names: str) -> None:
        """Remove the states before the last ones, and those of `names`: of finished work nobody needs them."""
        for path in (*self.folder.glob(f"*{SUFFIX}{PREVIOUS}"), *map(self.path, names)):
            path.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + PREVIOUS)
