"""What Person_reID_baseline_pytorch's prepare scripts make: `pytorch/{train_all,query,gallery}/IDENTITY/IMAGE`."""

from __future__ import annotations

import re
from pathlib import Path

from uda_reid.data.layouts.files import first_image, folders_in
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET_NAME, read_market

PYTORCH_FOLDERS = ("train_all", "query", "gallery")
"""The training images, the queries and the gallery; `train` and `val` are a division of `train_all`."""


def inside(folder: Path) -> Path:
    """Return the folder `pytorch` in `folder`, where the scripts write, or `folder` when there is none."""
    return folder / "pytorch" if (folder / "pytorch").is_dir() else folder


def is_pytorch(folder: Path, *, pattern: re.Pattern[str] = MARKET_NAME) -> bool:
    """Return whether the scripts made this folder: images are named after the folder of their identity.

    Args:
        folder: the data set, or its folder `pytorch`.
        pattern: matched at the start of a file's own name; the first group is the identity.
    """
    place = inside(folder)
    if not all((place / name).is_dir() for name in PYTORCH_FOLDERS):
        return False
    identities = folders_in(place / PYTORCH_FOLDERS[0])
    first = first_image(identities[0]) if identities else None
    match = pattern.match(first.name) if first else None
    return match is not None and match[1] == identities[0].name


PYTORCH = Layout(
    "Person_reID_baseline_pytorch's folders",
    f"the folders {', '.join(PYTORCH_FOLDERS)} of pytorch",
    recognises=is_pytorch,
    read=lambda folder, split: read_market(inside(folder), pattern=MARKET_NAME, folders=PYTORCH_FOLDERS, nested=True),
)
