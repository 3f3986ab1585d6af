"""What a camera makes of a person in front of a place: framing, shadow, passers-by, occluders, tone, noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from uda_reid.data.scenes.backdrop import panorama
from uda_reid.data.scenes.body import Floats, Pose, bone_matrices, skin
from uda_reid.data.scenes.garments import clothe, materials
from uda_reid.data.scenes.layers import barrier, lay, pasted
from uda_reid.data.scenes.render import Light, View, cover, rasterise, shade
from uda_reid.data.scenes.shapes import triple
from uda_reid.data.scenes.wardrobe import Outfit, dress
from uda_reid.data.scenes.world import VERSION, Camera, World, camera, generator
from uda_reid.data.scenes.worlds import SCENES

_STRANGERS = 5


@dataclass(frozen=True)
class Framing:
    """Where the person lies in the box.

    Args:
        fill: height of the person as a fraction of the box's.
        across: slip of the box to the side, as a fraction of its width.
        down: slip of the box downwards, as a fraction of its height.
    """

    fill: float
    across: float
    down: float


@dataclass(frozen=True)
class Shot:
    """A moment: the pose, the direction it is seen from, and the box around it."""

    pose: Pose
    azimuth: float
    framing: Framing


@dataclass(frozen=True, eq=False)
class Figure:
    """A rendered person: (H, W, 4) premultiplied colours, ground shadow (H, W) in [0, 1], share inside the picture."""

    pixels: Floats
    shadow: Floats
    inside: float


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture and what is true about it.

    Args:
        image: RGB.
        box: tight box of the person as x0, y0, x1, y1 in pixels, (0, 0, 0, 0) where none is seen.
        visible: share of the person that is inside the picture and not hidden.
        occluder: what stands before the person, or none.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    visible: float
    occluder: str


def _towards(azimuth: float, elevation: float) -> Floats:
    turn, rise = np.deg2rad(azimuth), np.deg2rad(elevation)
    return triple(float(np.sin(turn) * np.cos(rise)), float(-np.cos(turn) * np.cos(rise)), float(np.sin(rise)))


def _light(world: World, eye: Camera, azimuth: float) -> Light:
    sky = eye.sky * triple(*world.sky_colour)
    return Light(
        direction=_towards(azimuth + eye.sun_azimuth, eye.sun_height),
        sun=eye.sun * triple(*world.sun_colour),
        sky=sky,
        ground=0.55 * sky,
    )


def _shadow(points: Floats, blur: float, height: int, width: int) -> Floats:
    """Return how dark the ground is at each pixel, from the body's points thrown onto it."""
    column, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    count = np.bincount(row[inside] * width + column[inside], minlength=height * width).reshape(height, width)
    density = Image.fromarray((count * (height * width / len(points))).astype(np.float32).clip(0, 40) / 40 * 255)
    spread = density.convert("L").filter(ImageFilter.GaussianBlur(blur * height))
    return (np.asarray(spread, np.float32) / 255 * 14).clip(0, 1)


def figure(world: World, eye: Camera, outfit: Outfit, shot: Shot, height: int, width: int) -> Figure:
    """Return a person as a camera's lens sees it, without a place around it."""
    mesh = clothe(outfit)
    posed = skin(mesh.vertices, mesh.weights, bone_matrices(outfit.shape, shot.pose, outfit.bag_side))
    posed[:, 2] -= posed[:, 2].min()
    posed[:, 2] *= outfit.stature  # boxes are cut to height: a tall person is a slender one
    tall = float(posed[:, 2].max())
    view = View(shot.azimuth, eye.elevation, eye.distance, 1.0, (0.0, 0.0))
    points = view.project(posed, tall / 2)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    over = 2 if height <= 192 else 1
    scale = min(shot.framing.fill * height / float(high[1] - low[1]), 1.15 * width / float(high[0] - low[0]))
    middle = triple(width * (0.5 + shot.framing.across), height * (0.5 + shot.framing.down))
    place = middle - scale * (low + high) / 2
    points[:, :2] = (points[:, :2] * scale + place) * over
    hits = rasterise(points, mesh.faces, height * over, width * over)
    light = _light(world, eye, shot.azimuth)
    pixels = cover(hits, shade(hits, mesh, posed, materials(outfit), light), height, width, over)
    fallen = posed - (posed[:, 2:] / light.direction[2]) * light.direction
    ground = view.project(fallen, tall / 2)[:, :2] * scale + place
    soft = 0.008 + 0.03 * eye.sky / (eye.sky + eye.sun)
    centres = points[:, :2] / over
    inside = ((centres >= 0) & (centres < triple(width, height))).all(1).mean()
    return Figure(pixels, _shadow(ground, soft, height, width), float(inside))


def shoot(world: World, eye: Camera, moment: np.random.Generator, main: float) -> Shot:
    """Return how a person happens to walk by a camera.

    Args:
        world: the world.
        eye: the camera.
        moment: the picture's own generator.
        main: direction that the person is seen from during this visit, degrees.
    """
    standing = moment.random() < 0.1
    pose = Pose(
        phase=float(moment.random()),
        swing=0.0 if standing else float(moment.uniform(*world.swing)),
        elbows=(float(moment.uniform(8, 35)), float(moment.uniform(8, 35) if moment.random() < 0.85 else 95)),
        arms_out=float(moment.uniform(8, 14)),
        lean=float(moment.uniform(0, 6)),
        turn=float(moment.normal(0, 14)),
    )
    framing = Framing(
        fill=1 - float(moment.uniform(*world.looseness)),
        across=float(moment.normal(0, world.shift)),
        down=float(moment.normal(0, 0.6 * world.shift)),
    )
    return Shot(pose, (main + float(moment.normal(0, 10))) % 360, framing)


@lru_cache(maxsize=16)
def _place(name: str, number: int, height: int) -> Floats:
    world, eye = SCENES[name], camera(SCENES[name], number)
    return panorama(world.scenery, height, eye.horizon, generator("place", name, VERSION, number))


@lru_cache(maxsize=16)
def _strangers(name: str, number: int, height: int, width: int) -> tuple[Floats, ...]:
    """Return a few people of the world as a camera sees them, for backgrounds and for picture edges."""
    world, eye = SCENES[name], camera(SCENES[name], number)
    rng = generator("strangers", name, VERSION, number)
    return tuple(
        figure(world, eye, dress(world.season, rng), shoot(world, eye, rng, rng.uniform(0, 360)), height, width).pixels
        for _ in range(_STRANGERS)
    )


def _behind(world: World, eye: Camera, moment: np.random.Generator, height: int, width: int) -> Floats:
    """Return the place behind the person, (H, W, 3): a cut of the panorama, sometimes with people in it."""
    place = _place(world.name, eye.number, height)
    zoom = float(moment.uniform(0.85, 1.2))
    tall, broad = min(int(height * zoom), place.shape[0]), int(width * zoom)
    top = int(moment.integers(place.shape[0] - tall + 1))
    left = int(moment.integers(place.shape[1] - broad + 1))
    cut = Image.fromarray((place[top : top + tall, left : left + broad] * 255).astype(np.uint8))
    pixels: Floats = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    # The same lamps light the ground: a place in the sun is brighter than one under clouds.
    pixels = pixels * (0.62 * eye.sun * triple(*world.sun_colour) + 0.85 * eye.sky * triple(*world.sky_colour))
    strangers = _strangers(world.name, eye.number, height, width)
    count = int(moment.integers(1, 3)) if moment.random() < world.passers else 0
    for _ in range(count):
        sprite = strangers[int(moment.integers(_STRANGERS))]
        scale = float(moment.uniform(0.45, 0.8))
        side = float(moment.choice([moment.uniform(-0.05, 0.22), moment.uniform(0.78, 1.05)]))
        pixels = lay(pixels, 0.9 * pasted(sprite, scale, side, 0.45 + 0.6 * scale, height, width))
    return pixels


def _occluder(world: World, eye: Camera, moment: np.random.Generator, height: int, width: int) -> tuple[str, Floats]:
    kind = str(moment.choice(["post", "wall", "bicycle", "person", "person"]))
    if kind != "person":
        return kind, barrier(world, moment, height, width, kind)
    sprite = _strangers(world.name, eye.number, height, width)[int(moment.integers(_STRANGERS))]
    side = float(moment.choice([moment.uniform(-0.05, 0.12), moment.uniform(0.88, 1.05)]))
    return kind, pasted(sprite, float(moment.uniform(1.0, 1.25)), side, float(moment.uniform(1.05, 1.2)), height, width)


def develop(pixels: Floats, eye: Camera, moment: np.random.Generator) -> Image.Image:
    """Return what lens, sensor and tone curve make of the light that falls in, (H, W, 3) float32.

    Args:
        pixels: colours, 1 is white.
        eye: the camera.
        moment: the picture's own generator.
    """
    height, width = pixels.shape[:2]
    pixels = pixels * triple(*eye.tint) * (eye.exposure * float(np.exp(moment.normal(0, 0.06))))
    grey = pixels @ triple(0.3, 0.59, 0.11)
    pixels = grey[..., None] + (pixels - grey[..., None]) * eye.saturation
    pixels = 0.45 + (pixels - 0.45) * eye.contrast
    # A soft shoulder keeps bright cloth from burning out at once.
    pixels = np.where(pixels > 0.8, 0.8 + 0.2 * np.tanh((pixels - 0.8) / 0.2), pixels).clip(0, 1)
    pixels = eye.haze * triple(0.92, 0.98, 1.0) + (1 - eye.haze) * pixels
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    pixels = pixels * (1 - eye.vignette * 0.5 * (down**2 + across**2))[..., None]
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    if eye.detail < 0.97:
        small = (max(8, round(width * eye.detail)), max(16, round(height * eye.detail)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(eye.blur * height * float(moment.uniform(0.7, 1.4))))
    grain = moment.standard_normal((height, width, 1), np.float32)
    grain = grain + 0.5 * moment.standard_normal((height, width, 3), np.float32)
    noisy = np.asarray(image, np.float32) + 255 * eye.noise * grain
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def picture(
    world: World, eye: Camera, outfit: Outfit | None, shot: Shot, moment: np.random.Generator, height: int, width: int
) -> Picture:
    """Return one picture.

    Args:
        world: the world.
        eye: the camera.
        outfit: who is in the box; None for a box around nothing.
        shot: pose, direction and framing.
        moment: the picture's own generator.
        height: rows.
        width: columns.
    """
    pixels = _behind(world, eye, moment, height, width)
    hidden = moment.random() < world.occluders
    if outfit is None:
        return Picture(develop(pixels, eye, moment), (0, 0, 0, 0), 0.0, "none")
    person = figure(world, eye, outfit, shot, height, width)
    dark = 0.30 + 0.45 * eye.sun / (eye.sun + eye.sky)
    pixels = lay(pixels * (1 - dark * person.shadow)[..., None], person.pixels)
    cover_of = person.pixels[..., 3]
    visible, kind = person.inside, "none"
    if hidden:
        kind, before = _occluder(world, eye, moment, height, width)
        pixels = lay(pixels, before)
        visible *= float((cover_of * (1 - before[..., 3])).sum() / max(float(cover_of.sum()), 1e-6))
    rows, columns = np.flatnonzero(cover_of.max(1) > 0.3), np.flatnonzero(cover_of.max(0) > 0.3)
    box = (0, 0, 0, 0)
    if len(rows) and len(columns):
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Picture(develop(pixels, eye, moment), box, visible, kind)
