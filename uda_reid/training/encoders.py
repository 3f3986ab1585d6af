"""Encoders on disk: how they are built, their weights, and facts beside them, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from uda_reid.errors import CheckpointError, RecipeError
from uda_reid.models.encoder import Embedder, EncoderSpec, build
from uda_reid.training.checkpoint import SUFFIX, load, save
from uda_reid.types import Encoder


def save_encoder(path: Path, encoder: Encoder, *, facts: Mapping[str, Any] | None = None) -> Path:
    """Write an encoder's spec and weights and return the file.

    Args:
        path: the file; `.safetensors` is added where it is missing.
        encoder: made by `models.encoder.build`.
        facts: plain values to keep beside it; `load(path)["facts"]` returns them.

    Raises:
        CheckpointError: as `save`.
    """
    path = _with_suffix(Path(path))
    state = {"spec": dict(encoder.spec), "weights": encoder.state_dict(), "facts": dict(facts or {})}
    save(path, state, kind="encoder")
    return path


def load_facts(path: Path) -> dict[str, Any]:
    """Return the facts that `save_encoder` kept beside an encoder; `path` as for `load_encoder`."""
    return dict(load(_encoder_file(path), kind="encoder").get("facts", {}))


def load_encoder(path: Path) -> Embedder:
    """Return the encoder that `save_encoder` wrote, in evaluation mode, on the CPU.

    Args:
        path: the file, with or without `.safetensors`, or a run folder that holds `adapted.safetensors`.

    Raises:
        CheckpointError: there is none, or spec and weights do not belong together.
    """
    path = _encoder_file(path)
    state = load(path, kind="encoder")
    try:
        encoder = build(EncoderSpec(**{**state["spec"], "weights": "none"}))
        weights = dict(state["weights"])
        if not all(isinstance(value, Tensor) for value in weights.values()):
            raise TypeError("its weights are not all tensors")
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not describe an encoder of this version ({reason})") from error
    own = encoder.state_dict()
    wrong = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [name for name in own if name in weights and own[name].shape != weights[name].shape],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in wrong.items() if names)
        raise CheckpointError(f"{path}: weights and spec do not belong together ({lists})")
    encoder.load_state_dict(weights)
    # What was asked for when it was trained stays on record.
    encoder.spec = dict(state["spec"])
    return encoder.eval()


def _encoder_file(path: Path) -> Path:
    path = Path(path)
    if path.is_dir():
        return path / f"adapted{SUFFIX}"
    return path if path.is_file() else _with_suffix(path)


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
