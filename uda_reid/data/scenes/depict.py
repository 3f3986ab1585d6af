"""From an item of the plan to its picture, its annotations and its file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from uda_reid.data.scenes.camera import Framing, Picture, picture, shoot
from uda_reid.data.scenes.plan import JUNK, Drawing, Item
from uda_reid.data.scenes.wardrobe import Cloth, Outfit, dress, hexadecimal
from uda_reid.data.scenes.world import VERSION, World, camera, generator
from uda_reid.data.scenes.worlds import SCENES

COLUMNS = (
    *("file", "split", "pid", "cam", "shape", "stature", "hair", "hair_colour", "top", "top_second", "pattern"),
    *("sleeve", "legs", "lower", "coat", "coat_colour", "shoes", "bag", "bag_colour", "hat", "hat_colour", "scarf"),
    *("phase", "azimuth", "x0", "y0", "x1", "y1", "visible", "occluder"),
)
"""The columns of `annotations.csv`."""


def person(world: World, seed: int, number: int) -> Outfit:
    """Return the person of a number: body, clothes and bags."""
    return dress(world.season, generator("person", world.name, VERSION, seed, number))


def depict(name: str, options: Drawing, item: Item) -> tuple[Picture, dict[str, object]]:
    """Return one picture and its row of annotations; it depends on nothing but these arguments.

    Args:
        name: the world's name.
        options: size and seed count; how much else is drawn does not.
        item: which picture.
    """
    world = SCENES[name]
    eye = camera(world, item.cam)
    names = (name, VERSION, options.seed, item.person, item.cam)
    visit, moment = generator("visit", *names), generator("image", *names, item.number)
    outfit: Outfit | None = person(world, options.seed, item.person)
    back = 180.0 if visit.random() < world.both_ways else 0.0
    shot = shoot(world, eye, moment, eye.azimuth + back + float(visit.normal(0, 16)))
    if item.pid == JUNK:
        shot = replace(shot, framing=_badly_cut(moment))
        outfit = None if moment.random() < 0.4 else outfit
    drawn = picture(world, eye, outfit, shot, moment, options.height, options.width)
    x0, y0, x1, y1 = drawn.box
    facts: dict[str, object] = {"file": item.file, "split": item.split, "pid": item.pid, "cam": item.cam}
    facts |= {} if outfit is None else _attributes(outfit)
    facts |= {"phase": round(shot.pose.phase, 4), "azimuth": round(shot.azimuth, 1)} if outfit is not None else {}
    facts |= {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "visible": round(drawn.visible, 3), "occluder": drawn.occluder}
    return drawn, facts


def _badly_cut(moment: np.random.Generator) -> Framing:
    sign = 1.0 if moment.random() < 0.5 else -1.0
    if moment.random() < 0.5:
        return Framing(float(moment.uniform(0.8, 1.3)), sign * float(moment.uniform(0.4, 0.7)), 0.0)
    return Framing(float(moment.uniform(0.9, 1.6)), 0.0, sign * float(moment.uniform(0.45, 0.7)))


def _attributes(outfit: Outfit) -> dict[str, object]:
    def second(cloth: Cloth) -> str:
        return "" if cloth.pattern == "plain" else hexadecimal(cloth.second)

    return {
        "shape": outfit.shape,
        "stature": round(outfit.stature, 3),
        "hair": outfit.hair,
        "hair_colour": hexadecimal(outfit.hair_colour),
        "top": hexadecimal(outfit.top.colour),
        "top_second": second(outfit.top),
        "pattern": outfit.top.pattern,
        "sleeve": outfit.sleeve,
        "legs": outfit.legs,
        "lower": hexadecimal(outfit.top.colour if outfit.legs == "dress" else outfit.lower.colour),
        "coat": outfit.coat,
        "coat_colour": "" if outfit.coat == "none" else hexadecimal(outfit.outer.colour),
        "shoes": hexadecimal(outfit.shoes),
        "bag": outfit.bag,
        "bag_colour": "" if outfit.bag == "none" else hexadecimal(outfit.bag_colour),
        "hat": outfit.hat,
        "hat_colour": hexadecimal(outfit.hat_colour) if outfit.scarf or outfit.hat != "none" else "",
        "scarf": int(outfit.scarf),
    }


def draw_items(name: str, options: Drawing, folder: Path, items: list[Item]) -> list[dict[str, object]]:
    """Draw some pictures into the splits of a folder and return their annotations."""
    rows = []
    for item in items:
        drawn, facts = depict(name, options, item)
        encoded = io.BytesIO()
        drawn.image.save(encoded, "JPEG", quality=camera(SCENES[name], item.cam).quality)
        (folder / item.split / item.file).write_bytes(encoded.getvalue())
        rows.append(facts)
    return rows
