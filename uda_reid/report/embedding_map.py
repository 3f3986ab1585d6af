"""Where images of both domains lie before and after adaptation, and `embedding_map.json`, which keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uda_reid.data.images import images_of
from uda_reid.errors import CheckpointError
from uda_reid.ops.distance import normalise
from uda_reid.reading import read_text
from uda_reid.report.figures import Cloud, cloud
from uda_reid.report.records import DAMAGE
from uda_reid.run import Run
from uda_reid.training.features import extract
from uda_reid.types import Domain, Encoder, Split
from uda_reid.writing import replace_file

FORMAT = 1
SHOWN = 240
"""Images of either domain, at most."""
NEIGHBOURS = 10
PERPLEXITY = 30.0
FEWEST = 4
"""Images of either domain without which nothing is drawn."""

Floats = npt.NDArray[np.float32]
Positions = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class View:
    """What one model makes of the images.

    Args:
        positions: of every image, in [0, 1]: a map by t-SNE. It keeps neighbours together; distances between groups,
            and how large these are, mean nothing.
        mixed: of the ten nearest images of every image, by the embeddings themselves, the mean share of the other
            domain.
        same_camera: of those of its own domain among them, the share of its own camera; NaN where cameras are unknown.
    """

    positions: Positions
    mixed: float
    same_camera: float


@dataclass(frozen=True)
class EmbeddingMap:
    """Images of both domains, and where models put them.

    Args:
        source: the source's name.
        target: the target's name.
        splits: which images are shown: of the source, of the target.
        of_target: of every image, whether it is the target's; the source's come first.
        cams: of every image its camera; None where it is unknown.
        before: the source model's view; None where there are too few images for a map, or embeddings are not finite.
        after: the adapted model's; None where nothing was adapted, too.
    """

    source: str
    target: str
    splits: tuple[str, str]
    of_target: tuple[bool, ...]
    cams: tuple[int | None, ...]
    before: View | None
    after: View | None

    @property
    def chance(self) -> float:
        """The share of the other domain among the neighbours of an image, were the domains mixed as by a shuffle."""
        count, target = len(self.of_target), sum(self.of_target)
        return 2 * target * (count - target) / (count * (count - 1))


def collect_map(before: Encoder, after: Encoder | None, source: Domain, target: Domain, *, run: Run) -> EmbeddingMap:
    """Return where images of both domains lie: of the gallery, or the training images where there is none.

    Args:
        before: the source model.
        after: the adapted model; None where nothing was adapted.
        source: the source.
        target: the target.
        run: the surroundings.
    """
    shown = [_shown(domain) for domain in (source, target)]
    of_target = np.repeat([False, True], [len(rows) for _, _, rows in shown])
    cams = [cam for _, split, rows in shown for cam in _cameras(split, rows)]
    views = [None if encoder is None else _view(encoder, shown, of_target, cams, run) for encoder in (before, after)]
    splits = shown[0][0], shown[1][0]
    return EmbeddingMap(source.name, target.name, splits, tuple(of_target.tolist()), tuple(cams), views[0], views[1])


def _shown(domain: Domain) -> tuple[str, Split, Tensor]:
    """Return which images of a domain are shown: people of the gallery, at even steps; the split and its name."""
    name, split = ("gallery", domain.gallery) if len(domain.gallery) else ("train", domain.train)
    people = np.flatnonzero(split.pids > 0) if (split.pids > 0).any() else np.arange(len(split))
    number = min(SHOWN, len(people))
    return (
        name,
        split,
        torch.from_numpy(people[[(2 * step + 1) * len(people) // (2 * number) for step in range(number)]]),
    )


def _cameras(split: Split, rows: Tensor) -> Iterable[int | None]:
    return [None] * len(rows) if split.cams is None else split.cams[rows.numpy()].tolist()


def _view(
    encoder: Encoder,
    shown: list[tuple[str, Split, Tensor]],
    of_target: npt.NDArray[np.bool_],
    cams: list[int | None],
    run: Run,
) -> View | None:
    if min(len(rows) for _, _, rows in shown) < FEWEST:
        return None
    parts = [
        extract(encoder, images_of(split), rows=rows, run=run, description="embedding map") for _, split, rows in shown
    ]
    features: Floats = normalise(torch.cat(parts)).numpy()
    if not np.isfinite(features).all():
        return None
    similar = features @ features.T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(similar) - 1)]
    other = of_target[nearest] != of_target[:, None]
    known = np.array([-1 if cam is None else cam for cam in cams])
    own = ~other & (known[:, None] >= 0)
    same = known[nearest] == known[:, None]
    return View(
        positions=_placed(features, run.seed_for("embedding map")),
        mixed=round(float(other.mean()), 4),
        same_camera=round(float(same[own].mean()), 4) if own.any() else float("nan"),
    )


def _placed(features: Floats, seed: int) -> Positions:
    """Return a t-SNE map of the features, squeezed into the unit square; van der Maaten and Hinton, JMLR 9, 2008."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    # Features that all lie on a point have no principal component to begin with.
    start = "pca" if np.ptp(features, axis=0).max() > 1e-6 else "random"
    found = TSNE(perplexity=perplexity, init=start, random_state=seed % 2**32).fit_transform(features)
    low, span = found.min(0), max(float(np.ptp(found, axis=0).max()), 1e-12)
    middle = (span - np.ptp(found, axis=0)) / 2  # the shorter side stands in the middle
    return tuple((round(float(x), 3), round(float(y), 3)) for x, y in (found - low + middle) / span)


def clouds(shown: EmbeddingMap) -> tuple[Cloud, ...]:
    """Return the pictures of a map: before and after adaptation, by domain, and the target's by camera."""
    source = f"{shown.source} (source)"
    names = {source: False, f"{shown.target} (target)": True}
    domains = {name: [row for row, mine in enumerate(shown.of_target) if mine is of] for name, of in names.items()}
    cameras: dict[str, list[int]] = {source: domains[source]}
    for cam in sorted({cam for cam, mine in zip(shown.cams, shown.of_target, strict=True) if mine and cam is not None}):
        rows = zip(shown.cams, shown.of_target, strict=True)
        cameras[f"camera {cam}"] = [row for row, each in enumerate(rows) if each == (cam, True)]
    views = [(name, view) for name, view in (("before", shown.before), ("after", shown.after)) if view is not None]
    pictures = [cloud(f"{name}, by domain", view.positions, domains) for name, view in views]
    if len(cameras) > 1:
        pictures += [
            cloud(f"{name}, cameras of {shown.target}", view.positions, cameras, around=source) for name, view in views
        ]
    return tuple(pictures)


def told(shown: EmbeddingMap) -> str:
    """Return in a sentence or two how mixed the domains, and the cameras, are for the models."""
    if shown.before is None:
        return (
            f"Nothing is drawn: source or target has fewer than {FEWEST} images to show, or embeddings are not finite."
        )
    views = [view for view in (shown.before, shown.after) if view is not None]
    mixed = " → ".join(f"{view.mixed:.0%}" for view in views)
    text = (
        f"Of the {NEIGHBOURS} nearest images of an image {mixed} are of the other domain (by chance {shown.chance:.0%})"
    )
    if all(np.isfinite(view.same_camera) for view in views):
        text += f"; of the others, {' → '.join(f'{view.same_camera:.0%}' for view in views)} are of its own camera"
    return f"{text}."


def write_map(shown: EmbeddingMap, path: Path) -> None:
    """Write an embedding map as JSON, whole or not at all."""
    data = {"format": FORMAT, **asdict(shown)}
    for view in (data["before"], data["after"]):
        if view is not None and np.isnan(view["same_camera"]):
            view["same_camera"] = None
    replace_file(path, (json.dumps(data, allow_nan=False) + "\n").encode())


def read_map(path: Path) -> EmbeddingMap:
    """Read an embedding map.

    Raises:
        CheckpointError: the file is missing, or holds no embedding map of this version.
    """
    try:
        data = json.loads(read_text(path))
        if data["format"] != FORMAT:
            raise ValueError("another format")
        count = len(data["of_target"])
        source, target = data["splits"]
        found = EmbeddingMap(
            str(data["source"]), str(data["target"]), (str(source), str(target)), tuple(map(bool, data["of_target"])),
            tuple(data["cams"]), _read_view(data["before"], count), _read_view(data["after"], count),
        )  # fmt: skip
        if len(found.cams) != count or not all(cam is None or type(cam) is int for cam in found.cams):
            raise ValueError("cameras that are not one for every image")
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: holds no embedding map, or is damaged ({error}); the command of the run makes it again"
        ) from error
    return found


def _read_view(data: dict[str, Any] | None, count: int) -> View | None:
    if data is None:
        return None
    positions = np.array(data["positions"], dtype=np.float64)
    if positions.shape != (count, 2) or not np.isfinite(positions).all():
        raise ValueError("positions that are not two numbers for every image")
    same = float("nan") if data["same_camera"] is None else float(data["same_camera"])
    return View(tuple(map(tuple, positions.tolist())), float(data["mixed"]), same)
