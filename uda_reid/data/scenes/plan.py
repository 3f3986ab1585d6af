"""Who is seen where: the list of pictures of a drawing, made before the first pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from uda_reid.data.scenes.world import MOST_CAMERAS, VERSION, generator

JUNK, DISTRACTOR = -1, 0  # Market-1501's marks, as in uda_reid.types (which would bring torch into every worker)
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
_BROADEST = 3  # times the height: the places behind the people are only 4.5 heights wide, and are also zoomed out
_MISSED = 0.23  # share of the (identity, camera) pairs that never happen: nobody passes every camera


@dataclass(frozen=True)
class Drawing:
    """What to draw of a world.

    Args:
        train_identities: people in the training set.
        test_identities: people in query and gallery.
        cameras: cameras of the network; everybody is seen by at least two.
        fewest_images: fewest images of one person in one camera.
        most_images: most images of one person in one camera.
        distractors: gallery images of people who are nobody's match.
        junk: gallery images with badly cut boxes or nobody in them.
        height: rows of an image.
        width: columns of an image; at most three times the height.
        seed: who walks by and when; cameras and places belong to the world and stay.
    """

    train_identities: int = Field(default=100, ge=1, le=4000)
    test_identities: int = Field(default=60, ge=1, le=4000)
    cameras: int = Field(default=5, ge=2, le=MOST_CAMERAS)
    fewest_images: int = Field(default=1, ge=1, le=20)
    most_images: int = Field(default=3, ge=1, le=20)
    distractors: int = Field(default=100, ge=0, le=20000)
    junk: int = Field(default=50, ge=0, le=20000)
    height: int = Field(default=128, ge=32, le=512)
    width: int = Field(default=64, ge=16, le=256)
    seed: int = Field(default=0, ge=0)

    @field_validator("width")
    @classmethod
    def _fits_the_places(cls, width: int, info: ValidationInfo) -> int:
        height = info.data.get("height")  # missing where it is out of range itself
        if height is not None and width > _BROADEST * height:
            raise ValueError(f"more than {_BROADEST} times the height ({height}); choose at most {_BROADEST * height}")
        return width

    def __post_init__(self) -> None:
        if self.fewest_images > self.most_images:
            raise ValueError(f"fewest_images={self.fewest_images} is more than most_images={self.most_images}")


class Item(NamedTuple):
    """One picture to draw.

    Args:
        split: the folder it goes to.
        pid: identity as the file name says it; `JUNK` or `DISTRACTOR` for those.
        person: who it shows: the identity, or a number of its own for junk and distractors.
        cam: camera from 1.
        number: how many pictures of this person in this camera came before.
        file: the file's name.
    """

    split: str
    pid: int
    person: int
    cam: int
    number: int
    file: str


def _visits(first: int, identities: int, options: Drawing, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return (person, camera, number of images), so that the number of images is the same for every seed."""
    lot = rng.random((identities, options.cameras))
    lot[np.arange(identities)[:, None], np.argsort(lot, 1)[:, :2]] -= 1  # two cameras for certain
    total = max(round((1 - _MISSED) * lot.size), 2 * identities)
    seen = np.sort(np.argsort(lot, axis=None, kind="stable")[:total])
    counts = np.resize(np.arange(options.fewest_images, options.most_images + 1), total)
    people, cameras = seen // options.cameras, seen % options.cameras
    images = rng.permutation(counts)
    return [(first + int(p), int(c) + 1, int(n)) for p, c, n in zip(people, cameras, images, strict=True)]


def plan(name: str, options: Drawing) -> list[Item]:
    """Return every picture of a drawing, in the order of their files' names within each split.

    Args:
        name: the world's name.
        options: what to draw.
    """
    rng = generator("plan", name, VERSION, options.seed)
    items = [
        _item(TRAIN, person, cam, index)
        for person, cam, count in _visits(1, options.train_identities, options, rng)
        for index in range(count)
    ]
    visits = _visits(options.train_identities + 1, options.test_identities, options, rng)
    for person in sorted({visit[0] for visit in visits}):
        own = [visit for visit in visits if visit[0] == person]
        asked = rng.permutation(len(own))[: min(2, len(own) - 1)]  # at least one camera is left to be found in
        for number, (_, cam, count) in enumerate(own):
            for index in range(count):
                items.append(_item(QUERY if number in asked and index == 0 else GALLERY, person, cam, index))
    for pid, many, first in ((DISTRACTOR, options.distractors, 100_000), (JUNK, options.junk, 200_000)):
        cams = rng.integers(1, options.cameras + 1, many)
        items += [_item(GALLERY, first + number, int(cam), 0, pid) for number, cam in enumerate(cams)]
    return items


def _item(split: str, person: int, cam: int, index: int, pid: int | None = None) -> Item:
    shown = person if pid is None else pid
    label = "-1" if pid == JUNK else f"{shown:04d}"
    frame = (person % 100_000) * 25 + cam * 7 + 3 * index
    box = person % 100 if pid is not None else index
    return Item(split, shown, person, cam, index, f"{label}_c{cam}s1_{frame:06d}_{box:02d}.jpg")
