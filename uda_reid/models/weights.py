"""Weights from elsewhere: finding a file, reading it, and putting its tensors where an encoder has a place for them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from uda_reid.errors import CheckpointError
from uda_reid.options import one_line
from uda_reid.reading import check_archive, model_bytes, open_file

SUFFIXES = (".safetensors", ".pth", ".pt")
# What other code puts before the names of torchvision's layers, and what it calls its classifiers.
PREFIXES = ("module.", "weights/", "encoder.", "backbone.", "base.", "features.")
CLASSIFIERS = ("fc.", "classifier.", "head.")


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file.

    Args:
        origin: the file.
        loaded: number of the encoder's tensors that were filled from it.
        missing: tensors of the trunk that the file lacks; they keep their fresh values.
        unexpected: tensors of the file that the encoder has no place for, classifiers apart.
        wrong_shape: tensors whose shape differs; they keep their fresh values.
        beyond: tensors for deeper parts of the trunk's blocks than there are, as of a ResNet-101 for a ResNet-50.
    """

    origin: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.wrong_shape}
        lists = "".join(f"; {len(keys)} {what}: {_first(keys)}" for what, keys in parts.items() if keys)
        return f"{self.origin}: {self.loaded} tensors loaded{lists}"

    def lack(self) -> str:
        """Return in words why the trunk is not the file's, the first few tensors by name; empty where it is."""
        lacking = (*self.missing, *self.wrong_shape)
        parts = [f"missing or of another shape are {_first(lacking)}"] if lacking else []
        parts += [f"too many are {_first(self.beyond)}"] if self.beyond else []
        return "; ".join(parts)


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"


def find_imagenet(backbone: str, url: str, folders: Sequence[Path] = ()) -> Path:
    """Return the file of a backbone's ImageNet weights, downloaded into torch's cache if it is nowhere.

    Args:
        backbone: torchvision's name of the network.
        url: where torchvision publishes the weights.
        folders: where they are looked for before torch's cache, under torchvision's name of the file or as
            `<backbone>_imagenet.safetensors` or `.pth`.

    Raises:
        CheckpointError: they are in none of these places and cannot be downloaded.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    published = url.rsplit("/", 1)[-1]
    names = (f"{backbone}_imagenet.safetensors", f"{backbone}_imagenet.pth", published)
    candidates = [*(Path(folder) / name for folder in folders for name in names), cache / published]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    # torchvision's file names end in the first digits of their SHA-256, which torch checks.
    digest = published.rsplit("-", 1)[-1].split(".")[0]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cache / published), hash_prefix=digest, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, HTTPException) as error:
        searched = ", ".join(str(folder) for folder in (*folders, cache))
        raise CheckpointError(
            f"no ImageNet weights for {backbone}: none of {', '.join(names)} is in {searched}, "
            f"and {url} could not be downloaded ({' '.join(str(error).split())}); "
            "put the file into a folder named with --weights DIR, or do without: weights: none in the recipe, "
            "--set encoder.weights=none, or --profile scenes"
        ) from error
    return cache / published


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by key; of a training checkpoint, those of its model.

    Raises:
        CheckpointError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    try:
        # Read and not mapped: a mapped file that is cut off meanwhile ends the process.
        with open_file(path, most=model_bytes()) as file:
            if path.suffix == ".safetensors":
                return safetensors.torch.load(file.read())
            check_archive(path)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such weights file") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or one_line(error)})") from error
    except pickle.UnpicklingError as error:  # whose text is about torch's own options, and unsafe advice
        what = "holds more than tensors and plain values, as training checkpoints often do, or is damaged"
        raise CheckpointError(
            f"{path} {what}; objects are never unpickled: save the weights alone, where the file was made, with "
            "torch.save(model.state_dict(), path)"
        ) from error
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # of damaged files torch raises whatever it comes across
        kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        raise CheckpointError(
            f"{path} is no readable file of weights alone: it is truncated, damaged, or was not made by {kind}; "
            "copy it again"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def fill(encoder: nn.Module, weights: Mapping[str, Tensor], *, backbone: str, origin: str) -> LoadReport:
    """Copy what fits of `weights` into an encoder whose torchvision layers are under `trunk.`.

    Args:
        encoder: changed in place.
        weights: tensors by the names that torchvision, or code built on it, gives them.
        backbone: what the trunk is, for the error's text.
        origin: the file, for the report's and the error's text.

    Returns:
        What was filled and what was not.

    Raises:
        CheckpointError: nothing fits the trunk, or two tensors fit the same place.
    """
    own = encoder.state_dict()
    places = {key: _place(key, own) for key in weights}
    placed: dict[str, str] = {}
    for key, name in places.items():
        if name in own and name in placed:
            raise CheckpointError(
                f"{origin}: {placed[name]} and {key} both are weights of {name}; keep one model in the file"
            )
        placed[name] = key
    fitting = {name for name, key in placed.items() if name in own and own[name].shape == weights[key].shape}
    if not any(name.startswith("trunk.") for name in fitting):
        raise CheckpointError(
            f"{origin}: none of its {len(weights)} tensors fits {backbone}; "
            f"they are called {', '.join(list(weights)[:3]) or '(there are none)'}"
        )
    for name in fitting:
        own[name].copy_(weights[placed[name]])
    # Files older than the counter of batches lack it; nothing is computed from it here.
    needed = (name for name in own if name.startswith("trunk.") and not name.endswith("num_batches_tracked"))
    foreign = [(key, name) for key, name in places.items() if name not in own]
    blocks = {name.split(".")[1] for name in own if name.startswith("trunk.")}
    beyond = tuple(key for key, name in foreign if name.split(".")[0] in blocks)
    return LoadReport(
        origin,
        len(fitting),
        missing=tuple(name for name in needed if name not in placed),
        unexpected=tuple(key for key, name in foreign if not name.startswith(CLASSIFIERS) and key not in beyond),
        wrong_shape=tuple(key for key, name in places.items() if name in own and name not in fitting),
        beyond=beyond,
    )


def _place(key: str, own: Mapping[str, Tensor]) -> str:
    """Return the encoder's name for a file's tensor, or the file's name without its prefixes."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key if key in own else f"trunk.{key}" if f"trunk.{key}" in own else key
