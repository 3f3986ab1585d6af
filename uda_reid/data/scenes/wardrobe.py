"""Who walks by: identities as body, hair, clothes and bags, drawn from the season of a world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from uda_reid.data.scenes.body import MALE_SHAPES

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1], as a screen shows them."""
Weights = Mapping[str, float]
"""What there is to choose from, and how often it is chosen."""

SKINS = {"#d8ae94": 3.0, "#c4977a": 3.0, "#a87858": 2.0, "#7d5036": 1.2, "#503324": 1.0}
HAIRS = {"#14100e": 5.0, "#2a1b12": 3.0, "#4a2f1b": 2.0, "#8a6236": 1.2, "#c8a063": 0.7, "#8d8a86": 1.0, "#d2cfca": 0.4}

HER_HAIR = {"short": 1.0, "bob": 2.0, "long": 3.5, "ponytail": 2.0, "bun": 1.0}
HIS_HAIR = {"short": 8.0, "shaved": 1.2, "bob": 0.6, "ponytail": 0.3}
_HEMS = {"trousers": (1.93, 1.97), "shorts": (0.55, 1.05), "skirt": (0.6, 1.5), "dress": (0.6, 1.6)}


def rgb(text: str) -> Colour:
    """Return a colour written as hex digits.

    >>> rgb("#ff0000")
    (1.0, 0.0, 0.0)
    """
    red, green, blue = (int(text[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """Return a colour as hex digits.

    >>> hexadecimal((1.0, 0.0, 0.0))
    '#ff0000'
    """
    return "#" + "".join(f"{round(255 * min(max(value, 0.0), 1.0)):02x}" for value in colour)


@dataclass(frozen=True)
class Cloth:
    """What a surface looks like.

    Args:
        colour: the main colour.
        second: the colour of the pattern.
        pattern: plain, hoops, stripes, check, block, print, open or speckle.
        scale: pattern repeats, radians per metre.
        wrinkle: depth of folds, 0 (leather) to 1 (loose cotton).
        strap: which bag straps cross it: none, both, left or right.
        strap_colour: their colour.
    """

    colour: Colour
    second: Colour = (0.5, 0.5, 0.5)
    pattern: str = "plain"
    scale: float = 60.0
    wrinkle: float = 0.5
    strap: str = "none"
    strap_colour: Colour = (0.1, 0.1, 0.1)


@dataclass(frozen=True)
class Season:
    """What people of one world wear: for each choice, the options and how often they are taken.

    Args:
        tops: colours of shirts.
        bottoms: colours of trousers, shorts and skirts.
        coats: colours of coats.
        bags: colours of bags.
        shoes: colours of shoes.
        patterns: patterns of shirts.
        sleeves: none, short or long.
        legs: trousers, shorts or skirt (skirts are for the female shapes; the others take trousers).
        coat: none, jacket or coat.
        bag: none, backpack, shoulder, handbag, shopping or suitcase.
        hat: none, cap, beanie or sunhat.
        scarf: share of people with a scarf.
        dress: share of skirts that are dresses, in the shirt's colour.
        jitter: how much a colour strays from its name, in brightness and hue.
    """

    tops: Weights
    bottoms: Weights
    coats: Weights
    bags: Weights
    shoes: Weights
    patterns: Weights
    sleeves: Weights
    legs: Weights
    coat: Weights
    bag: Weights
    hat: Weights
    scarf: float = 0.0
    dress: float = 0.3
    jitter: float = 0.10


@dataclass(frozen=True)
class Outfit:
    """One identity.

    Args:
        shape: body shape, 0 to 15.
        stature: factor on the body's height.
        skin: colour of the skin.
        hair: shaved, short, bob, long, ponytail or bun.
        hair_colour: its colour.
        top: the shirt.
        sleeve: none, short or long.
        fit: 0 follows the body, 1 hangs straight from the chest.
        hem: height of the shirt's hem below the hip joint, metres.
        legs: trousers, shorts, skirt or dress.
        lower: trousers, shorts or skirt.
        lower_hem: end of shorts or skirt, 0 (hip) to 2 (ankle).
        flare: how much the lower garment widens.
        coat: none, jacket or coat.
        outer: the coat's cloth.
        shoes: colour of the shoes.
        bag: none, backpack, shoulder, handbag, shopping or suitcase.
        bag_colour: its colour.
        bag_side: L or R.
        hat: none, cap, beanie or sunhat.
        hat_colour: its colour.
        scarf: whether a scarf is worn, in the hat's colour.
    """

    shape: int
    stature: float
    skin: Colour
    hair: str
    hair_colour: Colour
    top: Cloth
    sleeve: str
    fit: float
    hem: float
    legs: str
    lower: Cloth
    lower_hem: float
    flare: float
    coat: str
    outer: Cloth
    shoes: Colour
    bag: str
    bag_colour: Colour
    bag_side: str
    hat: str
    hat_colour: Colour
    scarf: bool


def pick(weights: Weights, rng: np.random.Generator) -> str:
    """Return one option, drawn by its weight."""
    names = list(weights)
    share = np.array([weights[name] for name in names], float)
    return names[int(rng.choice(len(names), p=share / share.sum()))]


def shade(text: str, jitter: float, rng: np.random.Generator) -> Colour:
    """Return a named colour, strayed a little in brightness and in each channel."""
    light = float(np.exp(rng.normal(0, 1.6 * jitter)))
    channels = [value * light * float(np.exp(rng.normal(0, 0.5 * jitter))) for value in rgb(text)]
    red, green, blue = (float(np.clip(value, 0.03, 0.97)) for value in channels)
    return red, green, blue


def _distinct(weights: Weights, colour: Colour, season: Season, rng: np.random.Generator) -> Colour:
    candidates = [shade(pick(weights, rng), season.jitter, rng) for _ in range(4)]
    return max(candidates, key=lambda other: sum(abs(a - b) for a, b in zip(other, colour, strict=True)))


def _shirt(season: Season, rng: np.random.Generator) -> Cloth:
    colour = shade(pick(season.tops, rng), season.jitter, rng)
    return Cloth(
        colour=colour,
        second=_distinct(season.tops, colour, season, rng),
        pattern=pick(season.patterns, rng),
        scale=float(rng.choice([50.0, 75.0, 110.0])),
        wrinkle=float(rng.uniform(0.4, 0.9)),
    )


def _coat(season: Season, under: Colour, rng: np.random.Generator) -> Cloth:
    return Cloth(
        shade(pick(season.coats, rng), season.jitter, rng),
        second=under,
        pattern="open" if rng.random() < 0.4 else "plain",
        wrinkle=float(rng.uniform(0.4, 0.9)),
    )


def _legs(season: Season, female: bool, rng: np.random.Generator) -> str:
    legs = pick(season.legs, rng)
    if legs == "skirt":
        legs = "trousers" if not female else "dress" if rng.random() < season.dress else legs
    return legs


def dress(season: Season, rng: np.random.Generator) -> Outfit:
    """Return one person of a season.

    Args:
        season: what people wear here.
        rng: the identity's own generator; the same state gives the same person.
    """

    def coloured(weights: Weights) -> Colour:
        return shade(pick(weights, rng), season.jitter, rng)

    shape = int(rng.integers(16))
    female = shape >= MALE_SHAPES
    top, legs = _shirt(season, rng), _legs(season, female, rng)
    straight = legs in ("trousers", "shorts")
    return Outfit(
        shape=shape,
        stature=float(rng.uniform(0.94, 1.06)),
        skin=shade(pick(SKINS, rng), 0.04, rng),
        hair=pick(HER_HAIR if female else HIS_HAIR, rng),
        hair_colour=shade(pick(HAIRS, rng), 0.08, rng),
        top=top,
        sleeve=pick(season.sleeves, rng),
        fit=float(rng.uniform(0.0, 0.6) if female else rng.uniform(0.4, 1.0)),
        hem=float(rng.uniform(0.0, 0.12)),
        legs=legs,
        lower=Cloth(coloured(season.bottoms), wrinkle=float(rng.uniform(0.1, 0.4))),
        lower_hem=float(rng.uniform(*_HEMS[legs])),
        flare=float(rng.uniform(0.0, 0.03) if straight else rng.uniform(0.02, 0.16)),
        coat=pick(season.coat, rng),
        outer=_coat(season, top.colour, rng),
        shoes=coloured(season.shoes),
        bag=pick(season.bag, rng),
        bag_colour=coloured(season.bags),
        bag_side="L" if rng.random() < 0.5 else "R",
        hat=pick(season.hat, rng),
        hat_colour=coloured(season.tops),
        scarf=bool(rng.random() < season.scarf),
    )
