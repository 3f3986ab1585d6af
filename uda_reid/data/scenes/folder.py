"""Draws a world into a folder in Market-1501 layout: all of it or nothing."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
from filelock import FileLock
from PIL import Image

from uda_reid.data.scenes.depict import COLUMNS
from uda_reid.data.scenes.plan import DISTRACTOR, GALLERY, QUERY, TRAIN, Drawing, plan
from uda_reid.data.scenes.workers import draw_all
from uda_reid.data.scenes.world import VERSION
from uda_reid.data.scenes.worlds import SCENES
from uda_reid.errors import DataError
from uda_reid.options import suggest
from uda_reid.reading import IMAGE_BYTES, open_file, open_text, read_text

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


def _silent(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    return items


def _known(name: str) -> None:
    if name not in SCENES:
        raise DataError(f"unknown built-in scene {name!r}; {suggest(name, SCENES)}")


@contextmanager
def _all_or_nothing(out: Path, replace: bool) -> Iterator[Path]:
    """Give a temporary sibling of `out` that takes its place when the block ends well and vanishes otherwise."""
    part = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"cannot write to {out.parent}: {error.strerror or error}; choose another folder") from error
    try:
        yield part
        if out.is_dir():
            shutil.rmtree(out) if replace else out.rmdir()
        part.rename(out)
    except OSError as error:
        raise DataError(f"could not draw into {out}: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def draw(
    name: str, out: str | Path, options: Drawing | None = None, *, processes: int = 1, progress: Progress = _silent
) -> Path:
    """Draw a world into a new folder: Market-1501 layout, `annotations.csv` and `scene.json`.

    Args:
        name: `plaza`, `campus` or `station`.
        out: the folder to make; it must not exist, or be empty.
        options: what to draw (default: `Drawing()`).
        processes: how many processes draw; the pictures do not depend on it.
        progress: wraps the pictures' numbers as (items, description, total).

    Returns:
        The folder.

    Raises:
        DataError: the name is unknown, the folder has something in it, or it cannot be written.
    """
    options, out = options or Drawing(), Path(out)
    _known(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; remove it or choose another folder")
    _draw(name, out, options, processes, progress, replace=False)
    return out


def _draw(name: str, out: Path, options: Drawing, processes: int, progress: Progress, *, replace: bool) -> None:
    """Draw a world into a folder; with `replace`, what was there goes once the new drawing is whole."""
    items = plan(name, options)
    with _all_or_nothing(out, replace) as part:
        for split in (TRAIN, QUERY, GALLERY):
            (part / split).mkdir()
        with (
            closing(draw_all(name, options, part, items, processes=processes)) as chunks,
            (part / "annotations.csv").open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            rows = (row for chunk in chunks for row in chunk)
            writer.writerows(progress(rows, f"drawing {name}", len(items)))
        facts = {**_facts(name, options), "images": len(items), "pillow": PIL.__version__, "numpy": np.__version__}
        (part / "scene.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _facts(name: str, options: Drawing) -> dict[str, object]:
    return {"name": name, "version": VERSION, "options": asdict(options)}


def _complete(folder: Path, name: str, options: Drawing) -> bool:
    """Return whether a folder holds this drawing with all its images, as its `scene.json` counts them."""
    try:
        facts = json.loads(read_text(folder / "scene.json"))
        found = sum(
            entry.name.endswith(".jpg") and entry.stat().st_size > 0
            for split in (TRAIN, QUERY, GALLERY)
            for entry in list(os.scandir(folder / split))
        )
    except (OSError, ValueError):
        return False
    expected = {**_facts(name, options), "images": found}
    annotated = (folder / "annotations.csv").is_file()
    return annotated and isinstance(facts, dict) and all(facts.get(key) == value for key, value in expected.items())


def ensure(
    name: str, *, seed: int = 0, cache: str | Path | None = None, processes: int = 1, progress: Progress = _silent
) -> Path:
    """Return the folder of a world's default drawing, drawn on first use and again where images are missing.

    Args:
        name: `plaza`, `campus` or `station`.
        seed: seed of the drawing.
        cache: folder to keep drawings in (default: `UDA_REID_CACHE`, or the user's cache folder).
        processes: how many processes draw.
        progress: as in `draw`.

    Raises:
        DataError: the name is unknown or the cache cannot be written.
    """
    _known(name)
    where = Path(cache or os.environ.get("UDA_REID_CACHE") or platformdirs.user_cache_dir("uda_reid")) / "scenes"
    folder = where / f"{name}-v{VERSION}-seed{seed}"
    options = Drawing(seed=seed)
    if _complete(folder, name, options):
        return folder
    try:
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / f".{folder.name}.lock"):
            for stale in where.glob(f".{folder.name}-*"):  # left by a process that was killed: the lock is ours
                shutil.rmtree(stale, ignore_errors=True)
            if not _complete(folder, name, options):
                _draw(name, folder, options, processes, progress, replace=True)
    except OSError as error:
        raise DataError(f"cannot write to {where}: {error.strerror or error}; set UDA_REID_CACHE") from error
    return folder


def sheet(folder: str | Path, *, columns: int = 5, rows: int = 4, split: str = TRAIN) -> Image.Image:
    """Return a contact sheet of a drawn folder: one identity per row, its images from all cameras side by side.

    Args:
        folder: a folder that `draw` made.
        columns: images per identity.
        rows: identities.
        split: which folder of images to show.

    Raises:
        DataError: the folder holds no drawing.
    """
    try:
        with open_text(Path(folder) / "annotations.csv", newline="") as file:
            entries = [row for row in csv.DictReader(file) if row["split"] == split and int(row["pid"]) > DISTRACTOR]
    except OSError as error:
        raise DataError(f"{folder} holds no drawn scene ({error.strerror}); make one with `draw`") from error
    people: dict[str, list[Mapping[str, str]]] = {}
    for entry in entries:
        people.setdefault(entry["pid"], []).append(entry)
    shown = [_spread(own, columns) for own in list(people.values())[:rows]]
    if not shown:
        raise DataError(f"{folder} has no identity in {split!r} to show")
    wrong = next((row["file"] for own in shown for row in own if Path(row["file"]).name != row["file"]), None)
    if wrong is not None:
        raise DataError(f"{folder}: its annotations.csv names {wrong}, which is no file of {split!r}; draw it anew")
    with _picture(Path(folder) / split / shown[0][0]["file"]) as first:
        width, height = first.size
    page = Image.new("RGB", (columns * (width + 2) - 2, len(shown) * (height + 2) - 2), "white")
    for down, own in enumerate(shown):
        for across, row in enumerate(own):
            with _picture(Path(folder) / split / row["file"]) as image:
                page.paste(image.convert("RGB"), (across * (width + 2), down * (height + 2)))
    return page


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    with open_file(path, most=IMAGE_BYTES) as file, Image.open(file) as image:
        yield image


def _spread(own: list[Mapping[str, str]], columns: int) -> list[Mapping[str, str]]:
    """Return up to `columns` images, first one of every camera, then more."""
    seen: dict[str, int] = {}
    order = []
    for row in own:
        seen[row["cam"]] = seen.get(row["cam"], 0) + 1
        order.append((seen[row["cam"]], row["cam"], row))
    chosen = sorted(order, key=lambda entry: entry[:2])[:columns]
    return [row for _, _, row in sorted(chosen, key=lambda entry: (entry[1], entry[0]))]
