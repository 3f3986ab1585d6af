"""What a world is: a distribution over light, cameras, places and clothes; and the cameras put up in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from uda_reid.data.scenes.backdrop import Scenery
from uda_reid.data.scenes.wardrobe import Season

VERSION = 1
"""Raised whenever a pixel of a built-in scene changes."""
MOST_CAMERAS = 6
"""How many cameras every world has to offer."""

Range = tuple[float, float]


def generator(*names: object) -> np.random.Generator:
    """Return the random stream of a name; the same parts give the same stream for the same NumPy.

    What is drawn from it is the same, to the byte, for the same NumPy, Pillow and processor type.

    >>> float(generator("plaza", 1).random()) == float(generator("plaza", 1).random())
    True
    """
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence(list(np.frombuffer(digest, np.uint32).tolist())))


@dataclass(frozen=True)
class World:
    """A camera network before its cameras are put up: ranges from which they, the places and the people are drawn.

    Args:
        name: how the world is called.
        about: one line for people.
        season: what people wear.
        scenery: what the places look like.
        elevation: how steeply the cameras look down, degrees.
        sun: strength of the direct light.
        sun_height: degrees above the horizon.
        sun_colour: colour of the direct light.
        sky: strength of the light from above.
        sky_colour: colour of that light.
        tint: white balance of the network, red, green, blue.
        tint_spread: how far single cameras stray from it.
        exposure: factor on the light.
        contrast: steepness of the cameras' tone curve around mid-grey; 1 is straight.
        haze: how far black is lifted.
        saturation: 0 is grey, 1 is as it was.
        blur: standard deviation of the defocus, as a fraction of the picture's height.
        detail: resolution before enlarging, as a fraction of the picture's.
        noise: standard deviation of the sensor noise.
        quality: JPEG quality.
        vignette: how much darker the corners are.
        both_ways: share of people who walk against the main direction.
        looseness: how much of the box is not person.
        shift: how far boxes slip, as a fraction of their size.
        occluders: share of pictures in which something stands before the person.
        passers: share of pictures with other people in the background.
        swing: swing of the thighs while walking, degrees.
    """

    name: str
    about: str
    season: Season
    scenery: Scenery
    elevation: Range
    sun: Range
    sun_height: Range
    sun_colour: tuple[float, float, float]
    sky: Range
    sky_colour: tuple[float, float, float]
    tint: tuple[float, float, float]
    tint_spread: float
    exposure: Range
    contrast: Range
    haze: Range
    saturation: Range
    blur: Range
    detail: Range
    noise: Range
    quality: Range
    vignette: Range
    both_ways: float
    looseness: Range
    shift: float
    occluders: float
    passers: float
    swing: Range


@dataclass(frozen=True)
class Camera:
    """One camera of a world; the fields are those of `World`, drawn."""

    number: int
    azimuth: float
    elevation: float
    distance: float
    horizon: float
    sun: float
    sun_azimuth: float
    sun_height: float
    sky: float
    tint: tuple[float, float, float]
    exposure: float
    contrast: float
    haze: float
    saturation: float
    blur: float
    detail: float
    noise: float
    quality: int
    vignette: float


def camera(world: World, number: int) -> Camera:
    """Return camera `number` (from 1) of a world; it depends on the world and the number only.

    Every property is drawn from its own sixth of the world's range, in shuffled order, so that the cameras of a world
    differ clearly.
    """
    rng = generator("camera", world.name, VERSION)
    slots = np.stack([rng.permutation(MOST_CAMERAS) for _ in range(20)])
    places = (slots[:, number - 1] + rng.random((MOST_CAMERAS, 20))[number - 1]) / MOST_CAMERAS
    own = iter(places.tolist())

    def between(bounds: Range) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(next(own))

    azimuth = (35 + 360 * number * 0.382) % 360  # the golden angle spreads any number of cameras around the people
    warm = world.tint_spread * (2 * float(next(own)) - 1)
    green = 0.5 * world.tint_spread * (2 * float(next(own)) - 1)
    red, middle, blue = world.tint
    return Camera(
        number=number,
        azimuth=azimuth,
        elevation=between(world.elevation),
        distance=between((6.0, 13.0)),
        horizon=between((0.30, 0.62)),
        sun=between(world.sun),
        sun_azimuth=360 * float(next(own)),
        sun_height=between(world.sun_height),
        sky=between(world.sky),
        tint=(red * (1 + warm), middle * (1 + green), blue * (1 - warm)),
        exposure=between(world.exposure),
        contrast=between(world.contrast),
        haze=between(world.haze),
        saturation=between(world.saturation),
        blur=between(world.blur),
        detail=between(world.detail),
        noise=between(world.noise),
        quality=round(between(world.quality)),
        vignette=between(world.vignette),
    )
