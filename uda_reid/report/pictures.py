"""Images that a page carries inside itself: thumbnails, and maps as colours."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from uda_reid.data.contents import digests
from uda_reid.data.images import images_of
from uda_reid.errors import DataError
from uda_reid.reading import open_text, read_text
from uda_reid.types import JUNK, Split

HEIGHT, WIDTH, QUALITY = 128, 64, 80


@dataclass(frozen=True)
class Picture:
    """An image of a split: its file, relative to the domain's folder where it lies in it, and its camera if known.

    `digest` is the SHA-256 of the file that was ranked, in hexadecimal; empty where it could not be read.
    """

    path: str
    cam: int | None
    digest: str = ""


class Thumbnail(NamedTuple):
    """A small copy of an image: what it is called in the page, where it stands once, and a `data:` address."""

    id: str
    address: str


Album = Mapping[str, Thumbnail]
"""The thumbnails of a page, by the path of a `Picture`."""


def picture_of(split: Split, row: int, root: Path) -> Picture:
    """Return the image in a row of a split of the domain in `root`, an absolute path."""
    path = Path(os.path.abspath(split.paths[row]))  # noqa: PTH100 (a link keeps its name, unlike with resolve)
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return Picture(shown.as_posix(), None if split.cams is None else int(split.cams[row]), _digest(split.paths[row]))


def changed(root: Path, pictures: Iterable[Picture]) -> frozenset[str]:
    """Return the paths of pictures whose files hold something else than what was ranked; gone files are not changed."""
    known = {(picture.path, picture.digest) for picture in pictures if picture.digest and _inside(picture.path)}
    return frozenset(path for path, digest in known if _digest(root / path) not in ("", digest))


def _digest(path: Path) -> str:
    with suppress(DataError):
        return digests([path])[0].hex()
    return ""


def thumbnails(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return small JPEG copies of images as `data:` addresses, without whatever notes the files carry.

    They are squeezed to one shape, as an encoder sees them.

    Args:
        root: the folder that paths start from.
        paths: image files below it. The paths come from a file that anybody may have written, and a page must not
            show pictures from elsewhere: others are left out.

    Returns:
        Path -> address; files that are gone, damaged or not below `root` are left out.
    """
    found = {}
    for path in filter(_inside, dict.fromkeys(paths)):
        images = images_of(Split((root / path,), np.array([JUNK]), None))
        try:
            pixels = images.read(torch.tensor([0]), HEIGHT, WIDTH)[0]
        except DataError:
            continue
        found[path] = _address(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return found


def album(root: Path, pictures: Iterable[Picture], *, name: str = "picture") -> Album:
    """Return thumbnails of the pictures of a domain in `root`, called `name`-1 and so on.

    Only files that hold what was ranked have one: root and paths come from a file that anybody may have written, and
    who does not have a picture does not know its digest.
    """
    pictures = tuple(pictures)
    ranked = {(picture.path, picture.digest) for picture in pictures if _inside(picture.path)}
    same = {path for path, digest in ranked if digest and _digest(root / path) == digest}
    found = thumbnails(root, (picture.path for picture in pictures if picture.path in same))
    return {path: Thumbnail(f"{name}-{number}", address) for number, (path, address) in enumerate(found.items(), 1)}


def _inside(path: str) -> bool:
    return not (PurePath(path).is_absolute() or ".." in PurePath(path).parts)


def outside(paths: Iterable[str]) -> list[str]:
    """Return in a sentence how many images are not shown because they do not lie below the data set's folder."""
    count = len({path for path in paths if not _inside(path)})
    return [f"images outside the data set's folder are not shown, only their names: {count:,}"] if count else []


def real_people(root: Path, album: Album) -> bool:
    """Return whether any of the embedded pictures may show a real person: all do but those of a drawn scene."""
    drawn, home = _drawn(root), root.resolve()
    return any(path not in drawn or not (root / path).resolve().is_relative_to(home) for path in album)


def _drawn(root: Path) -> frozenset[str]:
    """Return the paths of the images that a drawing in `root` lists; none where there is no drawing."""
    try:
        facts = json.loads(read_text(root / "scene.json"))
        with open_text(root / "annotations.csv", newline="") as file:
            rows = [PurePosixPath(row["split"], row["file"]).as_posix() for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error):
        return frozenset()
    counted = facts.get("images") if isinstance(facts, dict) else None
    return frozenset(rows) if counted == len(rows) else frozenset()


def heat(values: Sequence[Sequence[float]]) -> str:
    """Return a map of numbers in [0, 1] as a JPEG `data:` address, from black by red and yellow to white."""
    grey = Image.fromarray(np.array(values, dtype=np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    strength = 3 * np.asarray(grey)[..., None] - np.arange(3)
    return _address(Image.fromarray((255 * strength.clip(0, 1)).round().astype(np.uint8)))


def _address(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
