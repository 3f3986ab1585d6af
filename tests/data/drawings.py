"""A scene that is drawn in a moment, and what lies in its folder."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uda_reid.data.scenes import Drawing

SMALL = Drawing(
    train_identities=6, test_identities=3, cameras=2, most_images=2, distractors=3, junk=4, height=64, width=32
)
MARKET = re.compile(r"([-\d]+)_c(\d)s(\d)_(\d{6})_(\d{2})\.jpg")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "annotations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(folder: Path, row: dict[str, str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    with Image.open(folder / row["split"] / row["file"]) as image:
        return np.asarray(image, np.float64)
