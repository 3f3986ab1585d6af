"""The embedded default: three built-in domains of rendered pedestrians, drawn on first use in Market-1501 layout.

A world (`SCENES`) is a distribution over people's clothes, places, light and cameras; two worlds differ as two real
camera networks do. Everything follows from (name, seed, `VERSION`) for the same NumPy, Pillow and processor type: each
picture has a random stream of its own, so it is the same whether it is drawn alone or by several processes. Nothing
here is photographed.
"""

from __future__ import annotations

from uda_reid.data.scenes.folder import draw, ensure, sheet
from uda_reid.data.scenes.plan import Drawing
from uda_reid.data.scenes.world import VERSION, World
from uda_reid.data.scenes.worlds import SCENES

__all__ = ["SCENES", "VERSION", "Drawing", "World", "draw", "ensure", "sheet"]
