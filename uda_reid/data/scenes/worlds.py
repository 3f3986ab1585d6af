"""The three built-in worlds, each a distribution over light, cameras, places and clothes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from uda_reid.data.scenes.backdrop import Scenery
from uda_reid.data.scenes.wardrobe import Season

VERSION = 1
"""Raised whenever a pixel of a built-in scene changes."""
MOST_CAMERAS = 6
"""How many cameras every world has to offer."""

Range = tuple[float, float]


def generator(*names: object) -> np.random.Generator:
    """Return the random stream of a name; the same parts give the same stream on every machine.

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


_PLAZA = World(
    name="plaza",
    about="a bright square in summer: light clothes, hard warm sun, sharp cameras",
    season=Season(
        tops={
            "#f4f1ea": 5, "#e8dcc0": 2, "#cfe3f0": 2, "#e45b50": 2.5, "#f2b632": 2.2, "#2f7fc4": 2.2, "#52b08a": 1.8,
            "#e98fae": 1.8, "#8f6fc0": 1.2, "#a8cf5a": 1.2, "#28303c": 1.6, "#b0b6bc": 1.6, "#f08a3c": 1.4,
        },
        bottoms={"#d8c7a0": 3, "#8fa9c4": 3, "#f0ede6": 1.6, "#4f6f9a": 3, "#b9a48a": 1.6, "#3a4250": 1.5, "#c9736b": 1, "#7f9a6a": 1},
        coats={"#e6dcc6": 1, "#9fb8cc": 1},
        bags={"#b5793f": 2, "#e3d3b0": 2, "#c7413c": 1, "#3d6fa8": 1, "#2b2b2e": 1},
        shoes={"#f0eee8": 4, "#b98d5c": 2, "#d9534a": 0.7, "#3a3a3e": 1},
        patterns={"plain": 5, "hoops": 1.6, "stripes": 1, "check": 0.8, "block": 1, "print": 1.8, "speckle": 1.2},
        sleeves={"short": 6, "none": 1.6, "long": 1},
        legs={"trousers": 3, "shorts": 4, "skirt": 6},
        coat={"none": 1},
        bag={"none": 4, "backpack": 1.3, "shoulder": 1.5, "handbag": 1.2, "shopping": 1},
        hat={"none": 6, "cap": 1.3, "sunhat": 1},
        dress=0.45,
    ),
    scenery=Scenery(
        kinds={"facade": 4, "wall": 1, "hedge": 1},
        walls={"#e2c9a0": 3, "#d99f74": 2, "#efe3cc": 2, "#c9826a": 1},
        floors={"#d8c4a2": 3, "#c9b59a": 2, "#dccfba": 2},
        accents={"#c8443a": 2, "#f0e8d8": 2, "#2f6f8f": 1, "#4f8f4f": 1, "#e0a030": 1},
        foliage={"#5f9a3f": 3, "#7fb04a": 2, "#3f7a3a": 1},
        tiles=0.9,
        clutter=(3, 8),
    ),
    elevation=(3, 14),
    sun=(0.55, 0.85),
    sun_height=(38, 62),
    sun_colour=(1.0, 0.94, 0.80),
    sky=(0.36, 0.48),
    sky_colour=(0.88, 0.96, 1.10),
    tint=(1.06, 1.0, 0.90),
    tint_spread=0.08,
    exposure=(0.92, 1.16),
    contrast=(1.1, 1.35),
    haze=(0.0, 0.02),
    saturation=(1.1, 1.35),
    blur=(0.001, 0.004),
    detail=(0.9, 1.0),
    noise=(0.006, 0.014),
    quality=(84, 93),
    vignette=(0.0, 0.12),
    both_ways=0.2,
    looseness=(0.03, 0.10),
    shift=0.02,
    occluders=0.05,
    passers=0.25,
    swing=(15, 27),
)  # fmt: skip

_CAMPUS = World(
    name="campus",
    about="an overcast autumn day between lawns and brick: dark coats and bags, pale cool cameras, loose boxes",
    season=Season(
        tops={
            "#3c4450": 3, "#6b2f36": 2, "#39503f": 2, "#7a7468": 2, "#20242a": 3, "#8c8f94": 2, "#5a4632": 1.5,
            "#33456b": 2.5, "#a59a86": 1.2, "#8a5a2a": 1.2, "#574a66": 1,
        },
        bottoms={"#262a33": 4, "#2f3f5e": 4, "#4a463f": 2, "#1c1c20": 3, "#5f6470": 1.5, "#4f3f33": 1},
        coats={
            "#23272f": 4, "#2f3b57": 3, "#4a4d3a": 2.5, "#5b3a2b": 1.6, "#6f6a60": 2, "#8a7656": 1.4, "#6a2630": 1.3,
            "#2e5a58": 1.2, "#b0682c": 0.8, "#9aa0a6": 1,
        },
        bags={"#1e2228": 4, "#3a4a6a": 2, "#6b4a30": 1.4, "#5a6b4a": 1, "#8a2f2f": 0.8},
        shoes={"#26221f": 4, "#5a3c26": 2, "#8a8a88": 1.2, "#d0d0cc": 0.8},
        patterns={"plain": 7, "hoops": 0.8, "check": 1.6, "block": 0.8, "print": 0.8},
        sleeves={"long": 1},
        legs={"trousers": 12, "skirt": 1.6},
        coat={"none": 2, "jacket": 4, "coat": 3},
        bag={"none": 2.2, "backpack": 4, "shoulder": 1.8, "handbag": 0.5},
        hat={"none": 5, "beanie": 1.6, "cap": 0.4},
        scarf=0.25,
        dress=0.2,
    ),
    scenery=Scenery(
        kinds={"hedge": 4, "wall": 2, "facade": 0.7},
        walls={"#8a8f90": 2, "#7c5748": 2, "#9a9f9c": 1, "#6f7f72": 1},
        floors={"#5f6a5a": 2.5, "#74797a": 3, "#667a52": 2, "#6f6a60": 1},
        accents={"#3f5a4a": 2, "#5a5f66": 2, "#7a4a3a": 1, "#2f3f52": 1},
        foliage={"#4f6a3f": 3, "#8a7a3a": 2, "#a0622e": 1.6, "#3a5238": 2, "#5f7a4a": 2},
        tiles=0.3,
        clutter=(6, 13),
    ),
    elevation=(10, 24),
    sun=(0.05, 0.18),
    sun_height=(45, 75),
    sun_colour=(0.95, 1.0, 1.05),
    sky=(0.70, 0.90),
    sky_colour=(0.94, 1.0, 1.06),
    tint=(0.88, 1.03, 1.04),
    tint_spread=0.10,
    exposure=(0.80, 1.08),
    contrast=(0.66, 0.86),
    haze=(0.07, 0.17),
    saturation=(0.45, 0.75),
    blur=(0.004, 0.010),
    detail=(0.6, 0.9),
    noise=(0.008, 0.020),
    quality=(66, 84),
    vignette=(0.0, 0.2),
    both_ways=0.3,
    looseness=(0.10, 0.26),
    shift=0.05,
    occluders=0.14,
    passers=0.3,
    swing=(14, 24),
)  # fmt: skip

_STATION = World(
    name="station",
    about="a station hall in lamp light: steep noisy cameras with a colour cast, business clothes, pillars and luggage",
    season=Season(
        tops={
            "#eceae4": 4, "#b9c7d8": 2, "#2a2c34": 3, "#5a5f6a": 2, "#7d3a44": 1.5, "#c8b48c": 1.5, "#3a5a7a": 2,
            "#8a8f7a": 1, "#d07a4a": 1, "#4a3a5a": 1, "#c9a9b0": 1,
        },
        bottoms={"#1f2128": 5, "#3a3d46": 3, "#5d5348": 1.5, "#2c3a55": 3, "#8a8478": 1.2},
        coats={"#202229": 4, "#34394a": 3, "#6b6f78": 2, "#a38a62": 2, "#c9bda6": 1, "#7a2f34": 1, "#3a4a3f": 1},
        bags={"#1c1c20": 4, "#5a3a26": 2, "#a02f38": 1.2, "#2f5f8a": 1.2, "#8a8d92": 1.2, "#c99a3a": 0.6},
        shoes={"#1c1a19": 5, "#4a3020": 2, "#d8d6d0": 1.2},
        patterns={"plain": 7, "stripes": 1.4, "check": 1, "hoops": 0.6, "block": 0.5, "print": 0.6},
        sleeves={"long": 4, "short": 1.5},
        legs={"trousers": 7, "shorts": 0.5, "skirt": 3},
        coat={"none": 4, "jacket": 4, "coat": 2.2},
        bag={"none": 2, "suitcase": 2.6, "shoulder": 2, "backpack": 1.6, "handbag": 1.4},
        hat={"none": 9, "cap": 1, "beanie": 0.7},
        scarf=0.1,
        dress=0.3,
    ),
    scenery=Scenery(
        kinds={"hall": 3, "platform": 3},
        walls={"#a8a498": 2, "#8f8a7c": 2, "#b5b0a0": 1, "#6f7480": 1},
        floors={"#8a867c": 2, "#6f6c66": 2, "#a39c8c": 1, "#57565a": 1},
        accents={"#d8a030": 2, "#b03030": 1.5, "#2f5fa0": 2, "#e8e8e0": 1.5, "#2f8a5a": 1},
        foliage={"#4f6a3f": 1},
        tiles=0.8,
        clutter=(2, 6),
    ),
    elevation=(22, 42),
    sun=(0.20, 0.42),
    sun_height=(60, 86),
    sun_colour=(1.0, 0.93, 0.78),
    sky=(0.42, 0.60),
    sky_colour=(1.0, 0.97, 0.88),
    tint=(1.04, 0.98, 0.80),
    tint_spread=0.16,
    exposure=(0.58, 0.86),
    contrast=(1.0, 1.25),
    haze=(0.02, 0.06),
    saturation=(0.7, 1.0),
    blur=(0.003, 0.008),
    detail=(0.5, 0.75),
    noise=(0.025, 0.055),
    quality=(42, 66),
    vignette=(0.2, 0.5),
    both_ways=0.35,
    looseness=(0.05, 0.16),
    shift=0.03,
    occluders=0.25,
    passers=0.4,
    swing=(12, 24),
)  # fmt: skip

SCENES: Mapping[str, World] = MappingProxyType({world.name: world for world in (_PLAZA, _CAMPUS, _STATION)})
"""The built-in worlds by name."""
