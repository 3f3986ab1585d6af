"""The places behind the people: one wide panorama per camera, cut anew for every picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from uda_reid.data.scenes.body import Floats
from uda_reid.data.scenes.wardrobe import Colour, Weights, pick, rgb

Bytes = tuple[int, int, int]
_OVER = 2  # panoramas are drawn at twice their size and averaged: PIL's lines are not anti-aliased


@dataclass(frozen=True)
class Scenery:
    """What a world is built of.

    Args:
        kinds: facade, hedge, wall, hall or platform, and how often.
        walls: colours of what stands behind.
        floors: colours of the ground.
        accents: colours of doors, posters, awnings and parked things.
        foliage: colours of leaves.
        tiles: share of grounds that are paved.
        clutter: how many things stand around, per panorama.
    """

    kinds: Weights
    walls: Weights
    floors: Weights
    accents: Weights
    foliage: Weights
    tiles: float
    clutter: tuple[int, int]


def _bytes(colour: Colour, factor: float = 1.0) -> Bytes:
    red, green, blue = (int(255 * min(max(value * factor, 0.0), 1.0)) for value in colour)
    return red, green, blue


def mottle(height: int, width: int, cells: int, rng: np.random.Generator) -> Floats:
    """Return (height, width) float32 smooth noise in about [-1, 1]; `cells` bumps fit in the height."""
    grid = rng.uniform(-1, 1, (cells + 2, max(2, cells * width // height) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _ground(height: int, width: int, horizon: int, colour: Colour, tiled: bool, rng: np.random.Generator) -> Floats:
    """Return a floor in perspective, (height - horizon, width, 3)."""
    rows = height - horizon
    depth = 1.0 / (np.arange(rows) / height + 0.22)[:, None]
    across = (np.arange(width)[None] - width / 2) / height * depth
    speckle = 0.05 * mottle(rows, width, 30, rng) + 0.09 * mottle(rows, width, 4, rng)
    value = 0.86 + 0.22 * np.linspace(0, 1, rows)[:, None] + speckle
    if tiled:
        size = float(rng.uniform(0.22, 0.5))
        tone = rng.uniform(-0.07, 0.07, (64, 64))
        value = value + tone[(depth / size).astype(int) % 64, (across / size + 500).astype(int) % 64]
        seam = ((depth / size) % 1 < 0.07) | ((across / size) % 1 < 0.05)
        value = value - 0.12 * seam
    floor: Floats = value[..., None] * np.array(colour)
    return floor


def _facade(draw: ImageDraw.ImageDraw, width: int, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    place = 0
    while place < width:
        broad = int(horizon * rng.uniform(0.8, 2.0))
        wall = rgb(pick(scenery.walls, rng))
        draw.rectangle((place, 0, place + broad, horizon), fill=_bytes(wall, rng.uniform(0.85, 1.1)))
        step, tall = horizon * rng.uniform(0.22, 0.4), horizon * rng.uniform(0.18, 0.3)
        glass = (0.25, 0.3, 0.36) if rng.random() < 0.7 else (0.7, 0.72, 0.7)
        for top in np.arange(0.05 * horizon, 0.62 * horizon, tall * 1.5):
            for left in np.arange(place + 0.3 * step, place + broad - 0.7 * step, step):
                draw.rectangle((left, top, left + 0.55 * step, top + tall), fill=_bytes(glass, rng.uniform(0.7, 1.3)))
                draw.line((left, top + tall, left + 0.55 * step, top + tall), fill=_bytes(wall, 1.2), width=2)
        accent = rgb(pick(scenery.accents, rng))
        if rng.random() < 0.6:  # a shop front under an awning, or a door
            awning = (place + 0.1 * broad, 0.62 * horizon, place + 0.9 * broad, 0.7 * horizon)
            draw.rectangle(awning, fill=_bytes(accent))
            draw.rectangle((place + 0.14 * broad, 0.7 * horizon, place + 0.86 * broad, 0.98 * horizon),
                           fill=_bytes((0.2, 0.22, 0.24), rng.uniform(0.7, 1.6)))  # fmt: skip
        draw.rectangle((place + 0.4 * broad, 0.66 * horizon, place + 0.4 * broad + 0.4 * step, horizon),
                       fill=_bytes(accent, 0.8))  # fmt: skip
        place += broad


def _hedge(draw: ImageDraw.ImageDraw, width: int, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    draw.rectangle((0, 0, width, horizon), fill=_bytes(rgb(pick(scenery.walls, rng)), 0.9))
    for _ in range(width // 90 + 2):
        left = rng.uniform(0, width)
        draw.rectangle((left, 0, left + horizon * rng.uniform(0.04, 0.09), horizon), fill=_bytes((0.25, 0.2, 0.16)))


def _leaves(pixels: Floats, scenery: Scenery, rng: np.random.Generator) -> None:
    """Grow crowns above and bushes below on what stands behind, in place."""
    height, width = pixels.shape[:2]
    rows = np.linspace(0, 1, height)[:, None]
    clumps = mottle(height, width, 5, rng) + 0.6 * mottle(height, width, 16, rng) + 0.4 * mottle(height, width, 45, rng)
    grown = clumps > 1.3 - 2.4 * np.maximum(1 - rows / 0.55, (rows - 0.6) / 0.3)
    palette = np.array([rgb(name) for name in scenery.foliage])
    which = (mottle(height, width, 9, rng) + 0.5 * mottle(height, width, 40, rng)) * 0.5 + 0.5
    colour = palette[np.clip(which * len(palette), 0, len(palette) - 1).astype(int)]
    light = 0.78 + 0.3 * mottle(height, width, 60, rng) - 0.25 * mottle(height, width, 14, rng)
    pixels[grown] = (colour * light[..., None])[grown]


def _wall(draw: ImageDraw.ImageDraw, width: int, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    base = rgb(pick(scenery.walls, rng))
    draw.rectangle((0, 0, width, horizon), fill=_bytes(base))
    tall = max(4, int(horizon * rng.uniform(0.035, 0.06)))
    for course, top in enumerate(range(0, horizon, tall)):
        for left in range(-(course % 2) * tall, width, 2 * tall + 2):
            draw.rectangle((left, top, left + 2 * tall, top + tall - 2), fill=_bytes(base, rng.uniform(0.78, 1.12)))


def _hall(draw: ImageDraw.ImageDraw, width: int, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    base = rgb(pick(scenery.walls, rng))
    draw.rectangle((0, 0, width, horizon), fill=_bytes(base))
    panel = int(horizon * rng.uniform(0.3, 0.6))
    for left in range(0, width, panel):
        draw.rectangle((left, 0, left + panel - 3, horizon), fill=_bytes(base, rng.uniform(0.9, 1.06)))
        if rng.random() < 0.55:  # a lit poster or screen
            accent = rgb(pick(scenery.accents, rng))
            top, tall = horizon * rng.uniform(0.1, 0.4), horizon * rng.uniform(0.3, 0.5)
            draw.rectangle((left + 6, top, left + panel - 10, top + tall), fill=_bytes(accent, 1.1))
            for _ in range(5):
                column, row = left + rng.uniform(8, panel - 14), top + rng.uniform(0, tall * 0.8)
                draw.rectangle((column, row, column + panel * 0.2, row + tall * 0.12),
                               fill=_bytes(rgb(pick(scenery.accents, rng)), rng.uniform(0.6, 1.5)))  # fmt: skip
    draw.rectangle((0, horizon * 0.92, width, horizon), fill=_bytes(base, 0.55))
    for edge in np.arange(rng.uniform(0, panel), width, panel * 2.7):  # columns
        draw.rectangle((edge, 0, edge + panel * 0.3, horizon), fill=_bytes(base, 0.72))
        draw.rectangle((edge + panel * 0.05, 0, edge + panel * 0.12, horizon), fill=_bytes(base, 0.95))


def _platform(draw: ImageDraw.ImageDraw, width: int, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    accent = rgb(pick(scenery.accents, rng))
    draw.rectangle((0, 0, width, horizon), fill=_bytes((0.62, 0.64, 0.66)))
    draw.rectangle((0, 0, width, 0.12 * horizon), fill=_bytes((0.12, 0.12, 0.13)))
    draw.rectangle((0, 0.66 * horizon, width, 0.76 * horizon), fill=_bytes(accent))
    step = int(horizon * 0.62)
    for number, left in enumerate(range(0, width, step)):
        if number % 3 == 2:
            draw.rectangle((left, 0.2 * horizon, left + 0.85 * step, 0.9 * horizon), fill=_bytes(accent, 0.75))
            middle = left + 0.42 * step
            draw.line((middle, 0.2 * horizon, middle, 0.9 * horizon), fill=(20, 20, 20), width=3)
        draw.rectangle((left + 0.1 * step, 0.26 * horizon, left + 0.72 * step, 0.55 * horizon),
                       fill=_bytes((0.1, 0.12, 0.15), rng.uniform(0.8, 2.2)))  # fmt: skip
    draw.rectangle((0, 0.9 * horizon, width, horizon), fill=(22, 22, 24))


_KINDS: dict[str, Callable[[ImageDraw.ImageDraw, int, int, Scenery, np.random.Generator], None]] = {
    "facade": _facade,
    "hedge": _hedge,
    "wall": _wall,
    "hall": _hall,
    "platform": _platform,
}


def _thing(
    draw: ImageDraw.ImageDraw, left: float, foot: float, size: float, colour: Bytes, rng: np.random.Generator
) -> None:
    """Draw a lamp post, a bench, a bicycle or a bin that stands at (left, foot)."""

    def block(x0: float, y0: float, x1: float, y1: float, fill: Bytes) -> None:
        draw.rectangle((left + x0 * size, foot - y0 * size, left + x1 * size, foot - y1 * size), fill=fill)

    match int(rng.integers(4)):
        case 0:
            block(0, 4, 0.07, 0, (58, 60, 62))
        case 1:
            block(0, 0.4, 1.3, 0.3, colour)
            block(0.1, 0.3, 0.17, 0, (40, 40, 42))
            block(1.1, 0.3, 1.17, 0, (40, 40, 42))
        case 2:
            for wheel in (0.0, 0.75):
                box = (left + wheel * size, foot - 0.5 * size, left + (wheel + 0.5) * size, foot)
                draw.ellipse(box, outline=(30, 30, 32), width=max(2, int(0.04 * size)))
            frame = [(0.25, 0.25), (0.55, 0.6), (1.0, 0.25), (0.55, 0.25), (0.45, 0.62)]
            line = [(left + x * size, foot - y * size) for x, y in frame]
            draw.line(line, fill=colour, width=max(2, int(0.06 * size)))
        case _:
            block(0, 0.8, 0.5, 0, colour)
            block(0.35, 0.8, 0.5, 0, (35, 35, 36))


def _clutter(canvas: Image.Image, horizon: int, scenery: Scenery, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for _ in range(int(rng.integers(*scenery.clutter, endpoint=True))):
        left, foot = rng.uniform(0, width), rng.uniform(horizon, 0.5 * (horizon + height))
        size = height * rng.uniform(0.12, 0.3)
        colour = _bytes(rgb(pick(scenery.accents, rng)), rng.uniform(0.5, 1.1))
        shadow = (left - 0.1 * size, foot - 0.06 * size, left + 0.7 * size, foot + 0.06 * size)
        draw.ellipse(shadow, fill=_bytes(rgb(next(iter(scenery.floors))), 0.5))
        _thing(draw, left, foot, size, colour, rng)


def panorama(scenery: Scenery, height: int, horizon: float, rng: np.random.Generator) -> Floats:
    """Return a place, (1.5 height, 4.5 height, 3) float32 in [0, 1].

    Args:
        scenery: what the world is built of.
        height: rows of the pictures that will be cut from it.
        horizon: where the ground begins, as a fraction of the panorama's height.
        rng: the camera's generator.
    """
    rows, columns = int(1.5 * height) * _OVER, 9 * height // 2 * _OVER
    line = int(rows * horizon)
    canvas = Image.new("RGB", (columns, rows))
    kind = pick(scenery.kinds, rng)
    _KINDS[kind](ImageDraw.Draw(canvas), columns, line, scenery, rng)
    pixels = np.array(canvas, np.float32) / 255
    pixels[:line] *= (1 + 0.1 * mottle(line, columns, 3, rng) + 0.05 * mottle(line, columns, 40, rng))[..., None]
    if kind == "hedge":
        _leaves(pixels[:line], scenery, rng)
    pixels[line:] = _ground(rows, columns, line, rgb(pick(scenery.floors, rng)), rng.random() < scenery.tiles, rng)
    canvas = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
    _clutter(canvas, line, scenery, rng)
    canvas = canvas.filter(ImageFilter.GaussianBlur(0.4 * _OVER)).reduce(_OVER)
    pixels = np.asarray(canvas, np.float32) / 255
    light = 1 + 0.14 * mottle(pixels.shape[0], pixels.shape[1], 2, rng)
    return (pixels * light[..., None]).clip(0, 1).astype(np.float32)
