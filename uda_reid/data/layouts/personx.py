"""PersonX, subset 1: Market-1501's folders with six of the simulator's cameras, which keep their numbers there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from uda_reid.data.layouts.labels import Parts
from uda_reid.data.layouts.layout import Layout
from uda_reid.data.layouts.market import MARKET, read_market
from uda_reid.types import Ids

_CAMERAS = np.array([3, 4, 8, 10, 11, 12])


def read_personx(folder: Path) -> Parts:
    """Read PersonX; cameras 3, 4, 8, 10, 11 and 12 become 1 to 6, numbers of a copy that has others stay.

    Raises:
        DataError: as `read_market`.
    """
    parts = read_market(folder)
    splits = parts.train, parts.query, parts.gallery
    if not all(split.cams is not None and np.isin(split.cams, _CAMERAS).all() for split in splits):
        return parts
    train, query, gallery = (replace(split, cams=_renumbered(split.cams)) for split in splits)
    return Parts(train, query, gallery, parts.notes)


def _renumbered(cams: Ids | None) -> Ids:
    return np.searchsorted(_CAMERAS, np.asarray(cams)) + 1


PERSONX = Layout("PersonX's subset 1", MARKET.holds, MARKET.recognises, read=lambda folder, split: read_personx(folder))
