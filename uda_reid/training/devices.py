"""Which device and how many threads: the only place that looks at the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import torch

from uda_reid.errors import RecipeError
from uda_reid.reading import open_file


def environment(device: str, processes: int = 1) -> dict[str, str | int]:
    """Return what bit-identity depends on: versions, threads, processes, device and processor."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version_of("torchvision"),
        **{package: version_of(package) for package in ("numpy", "scipy", "scikit-learn", "pillow", "safetensors")},
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": processor(),
    }


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def digest_of(content: Any) -> str:
    """Return the SHA-256 of a file's bytes, or of plain data, as hexadecimal digits."""
    if isinstance(content, Path):
        with open_file(content) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def threads_in_use() -> int:
    """Return how many CPU threads torch uses: results repeat bit by bit only for the same number."""
    return torch.get_num_threads()


def pick_device(device: str) -> str:
    """Return `device` as torch names it; `auto` is the GPU where there is one.

    Raises:
        RecipeError: the device is unknown or not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise RecipeError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if wanted.type not in ("cpu", "cuda"):
        raise RecipeError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"device {device!r} is not there ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    return device


def check_threads(threads: int) -> None:
    """Refuse a number of CPU threads.

    Raises:
        RecipeError: far more threads than cores.
    """
    cores = os.cpu_count() or 1
    if threads > 4 * cores:
        raise RecipeError(
            f"{threads} threads are too many for {cores} cores; use at most {4 * cores}, best {cores} or 1"
        )


def use_threads(threads: int) -> None:
    """Let torch use this many CPU threads; 0 leaves torch's own choice, usually one per core.

    Raises:
        RecipeError: far more threads than cores.
    """
    check_threads(threads)
    if threads:
        torch.set_num_threads(threads)
