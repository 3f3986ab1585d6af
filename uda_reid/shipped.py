"""Where the recipes and assets that belong to the package lie, in a wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def shipped(folder: Literal["recipes", "assets"]) -> Path:
    """Return the folder of shipped recipes or assets.

    >>> (shipped("recipes") / "pul.yaml").is_file()
    True
    """
    package = Path(__file__).parent
    checkout = package.parent / folder
    if (package.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return package / f"_{folder}"
