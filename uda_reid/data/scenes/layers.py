"""Pictures laid over pictures: people from a stock, posts, walls and bicycles before the person."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from uda_reid.data.scenes.body import Floats
from uda_reid.data.scenes.wardrobe import pick, rgb
from uda_reid.data.scenes.world import World


def lay(below: Floats, layer: Floats) -> Floats:
    """Return a premultiplied layer (H, W, 4) laid over a picture (H, W, 3)."""
    return below * (1 - layer[..., 3:]) + layer[..., :3]


def pasted(sprite: Floats, scale: float, middle: float, foot: float, height: int, width: int) -> Floats:
    """Return a sprite scaled and moved in an empty picture, (H, W, 4); `middle` and `foot` are fractions of it."""
    tall, broad = max(4, round(height * scale)), max(4, round(width * scale))
    canvas = np.zeros((height, width, 4), np.float32)
    small = np.stack(
        [
            np.asarray(Image.fromarray(sprite[..., channel]).resize((broad, tall), Image.Resampling.BILINEAR))
            for channel in range(4)
        ],
        -1,
    )
    left, top = round(middle * width - broad / 2), round(foot * height - tall)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + broad, width), min(top + tall, height)
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = small[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


def _bicycle(draw: ImageDraw.ImageDraw, width: int, height: int, moment: np.random.Generator) -> None:
    size, left, foot = 0.95 * width, moment.uniform(-0.3, 0.3) * width, height * moment.uniform(0.97, 1.06)
    paint = (*(int(value) for value in moment.integers(20, 130, 3)), 255)
    for wheel in (0.0, 0.72):
        box = (left + wheel * size, foot - 0.56 * size, left + (wheel + 0.56) * size, foot)
        draw.ellipse(box, outline=(24, 24, 26, 255), width=max(2, int(0.045 * size)))
    frame = [(0.28, 0.28), (0.56, 0.7), (1.0, 0.28), (0.56, 0.28), (0.44, 0.72), (0.36, 0.72)]
    draw.line([(left + x * size, foot - y * size) for x, y in frame], fill=paint, width=max(3, int(0.06 * size)))


def barrier(world: World, moment: np.random.Generator, height: int, width: int, kind: str) -> Floats:
    """Return a post, a low wall or a bicycle in an otherwise empty picture, (H, W, 4) premultiplied."""
    image = Image.new("RGBA", (2 * width, 2 * height))
    draw = ImageDraw.Draw(image)
    colour = tuple(int(200 * value) for value in rgb(pick(world.scenery.walls, moment)))
    dark = tuple(int(0.6 * value) for value in colour)
    if kind == "post":
        left, broad = 2 * width * moment.uniform(-0.05, 0.9), 2 * width * moment.uniform(0.1, 0.26)
        draw.rectangle((left, 0, left + broad, 2 * height), fill=(*colour, 255))
        draw.rectangle((left + 0.65 * broad, 0, left + broad, 2 * height), fill=(*dark, 255))
    elif kind == "wall":
        top = 2 * height * moment.uniform(0.68, 0.85)
        draw.rectangle((0, top, 2 * width, 2 * height), fill=(*dark, 255))
        draw.rectangle((0, top, 2 * width, top + 0.05 * height), fill=(*colour, 255))
    else:
        _bicycle(draw, 2 * width, 2 * height, moment)
    pixels = np.asarray(image.reduce(2), np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels
