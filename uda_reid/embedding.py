"""The embeddings of a whole data set, labelled or not, as files that any other tool reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from uda_reid.cells import Table
from uda_reid.data.images import Photographs
from uda_reid.errors import CheckpointError, DataError, RecipeError
from uda_reid.job import open_domain
from uda_reid.ops.distance import check_features
from uda_reid.ops.distance import normalise as unit_length
from uda_reid.pipeline.folders import locked, make_folder
from uda_reid.run import Reporter, Run, Silent
from uda_reid.training.devices import pick_device, use_threads
from uda_reid.training.encoders import load_encoder
from uda_reid.training.features import BATCH, extract
from uda_reid.types import UNKNOWN, Domain, Encoder, Split
from uda_reid.writing import replacing

SPLITS = ("train", "query", "gallery")
FEATURES, ROWS = "features.npy", "rows.csv"
COLUMNS = ("row", "split", "path", "identity", "camera", "tracklet")
CACHE = 4 << 30
"""Bytes of decoded images kept between looking for damaged ones and embedding."""


@dataclass(frozen=True)
class Embedded:
    """Where the embeddings lie, how many of which size there are, and how many images of each split are left out."""

    features: Path
    rows: Path
    count: int
    dim: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def embed(
    checkpoint: Path,
    name: str,
    *,
    data: Path = Path("data"),
    out: Path | None = None,
    splits: Sequence[str] = (),
    normalise: bool = False,
    overwrite: bool = False,
    skip_damaged: bool = False,
    device: str = "auto",
    threads: int = 0,
    reporter: Reporter | None = None,
) -> Embedded:
    """Write what an encoder makes of every image of a data set, and which image each row is.

    `features.npy` is (N, dim) float32, the very numbers that the evaluator compares, and line k + 1 of `rows.csv` tells
    of its row k. Both appear when all of them are there; one block of images at a time is in memory.

    Args:
        checkpoint: a model file, or the folder of a run.
        name: a folder, a known data set, or a built-in scene.
        data: the folder that holds the data sets.
        out: the folder to write into (default: `NAME-features` in the current one).
        splits: which of train, query and gallery (default: all that have images), in this order.
        normalise: scale every row to unit length.
        overwrite: replace what an earlier call wrote.
        skip_damaged: leave out images that cannot be read; they have no row.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        threads: CPU threads; 0 leaves torch's choice.
        reporter: shows progress.

    Returns:
        The two files, the number of rows and the size of each.

    Raises:
        RecipeError: a split or the device is unknown.
        DataError: there is no such data set, a split is empty, an image cannot be read, or the files are there already.
        CheckpointError: there is no such model, or the files cannot be written.
    """
    use_threads(threads)
    run = Run(device=pick_device(device), reporter=reporter or Silent())
    _check_splits(splits)
    encoder = load_encoder(checkpoint)
    domain = open_domain(name, data, reporter=reporter, skip_damaged=(splits or SPLITS) if skip_damaged else ())
    chosen = _chosen(domain, splits)
    folder = out or Path(f"{domain.name}-features")
    features, rows = folder / FEATURES, folder / ROWS
    _check_absent(features, rows, overwrite)
    images = [_decoded(domain, part, encoder, CACHE // len(chosen), run) for part in chosen]
    count = sum(map(len, images))
    make_folder(folder)
    # Without the lock, features of one process might come to lie beside rows of another.
    with locked(folder, work="embedding into this folder"):
        _check_absent(features, rows, overwrite)
        with replacing(rows) as table, replacing(features) as array:
            _check_room(folder, 4 * count * encoder.dim)
            shape = {"descr": "<f4", "fortran_order": False, "shape": (count, encoder.dim)}
            np.lib.format.write_array_header_1_0(array, shape)
            for block in _blocks(encoder, images, run, f"embedding {domain.name}"):
                array.write((unit_length(block) if normalise else block).numpy().astype("<f4").tobytes())
            _describe(domain, chosen, table)
            for file in (array, table):
                file.flush()
                os.fsync(file.fileno())
            # The disk holds both. Old rows would not fit new features, should the power go between the two renamings.
            rows.unlink(missing_ok=True)
    return Embedded(features, rows, count, encoder.dim, domain.left_out)


def _check_absent(features: Path, rows: Path, overwrite: bool) -> None:
    there = next((path for path in (features, rows) if path.exists()), None)
    if there and not overwrite:
        raise DataError(f"{there} is there already; choose another --out, or replace it with --overwrite")


def _check_splits(splits: Sequence[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise RecipeError(f"split {split!r} is unknown; use {', '.join(SPLITS)}")


def _chosen(domain: Domain, splits: Sequence[str]) -> list[str]:
    """Return the splits to embed, each once, in their usual order."""
    for split in splits:
        if not len(getattr(domain, split)):
            raise DataError(f"{domain.root}: no {split} images to embed; leave out --split {split}")
    return [split for split in SPLITS if len(getattr(domain, split)) and (split in splits or not splits)]


def _decoded(domain: Domain, part: str, encoder: Encoder, cache_bytes: int, run: Run) -> Photographs:
    """Return the images of a split, all decoded once: a damaged one is an error now and not hours later."""
    images = Photographs(getattr(domain, part), name=f"{domain.name} {part}", cache_bytes=cache_bytes)
    images.preload(int(encoder.spec["height"]), int(encoder.spec["width"]), progress=run.progress)
    return images


def _check_room(folder: Path, needed: int) -> None:
    """Refuse a disk that is too small now and not hours later."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: the embeddings take {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; "
            "make room or choose another --out"
        )


def _blocks(encoder: Encoder, images: Sequence[Photographs], run: Run, description: str) -> Iterator[Tensor]:
    """Yield embeddings in the evaluator's own batches, split by split: any others would differ in the last bits."""
    quiet = replace(run, reporter=Silent())
    blocks = [(part, rows) for part in images for rows in torch.split(torch.arange(len(part)), BATCH)]
    for part, rows in run.progress(blocks, description, len(blocks)):
        features = extract(encoder, part, rows=rows, run=quiet)
        check_features(features, f"embeddings of {part.name}")
        yield features


def _describe(domain: Domain, chosen: Sequence[str], file: BinaryIO) -> None:
    """Write which image each row is; file names that are no UTF-8 keep their bytes."""
    table = Table(file)
    table.write(*COLUMNS)
    row = 0
    for name in chosen:
        split: Split = getattr(domain, name)
        columns = (split.paths, split.pids, split.cams, split.tracklets)
        for path, pid, cam, tracklet in zip(*(repeat("") if c is None else c for c in columns), strict=False):
            shown = path.relative_to(domain.root) if path.is_relative_to(domain.root) else path
            table.write(row, name, shown.as_posix(), "" if pid == UNKNOWN else pid, cam, tracklet)
            row += 1
