from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, RenderableType

from uda_reid.foreign import Grouping, Search


def people(identities: int = 12, images: int = 5, *, seed: int = 0, dim: int = 16) -> tuple[torch.Tensor, Any, Any]:
    """Features that know people a little, their identities from 1 and their cameras from 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(identities, dim, generator=generator)
    pids = np.arange(identities).repeat(images)
    features = centres[pids] + 0.7 * torch.randn(len(pids), dim, generator=generator)
    return features, pids + 1, np.tile(np.arange(images) % 3 + 1, identities)


def searched(seed: int = 0) -> Search:
    """A small search with junk, distractors and a query that nothing answers."""
    features, pids, cams = people(seed=seed)
    query = np.arange(len(pids)) % 5 == 0
    pids[-4:] = 99  # the query of the last person is left without a match
    pids[[3, 8]] = -1, 0
    return Search(features[query], features[~query], pids[query], pids[~query], cams[query], cams[~query])


def shown(what: RenderableType, width: int = 1000) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def saved(folder: Path, search: Search, *, header: str = "identity,camera") -> tuple[Path, Path, Path]:
    """Write a search as its two arrays and its table."""
    query, gallery, ids = folder / "q.npy", folder / "g.npy", folder / "ids.csv"
    np.save(query, search.query.numpy())
    np.save(gallery, search.gallery.numpy())
    assert search.query_cams is not None and search.gallery_cams is not None
    rows = [*zip(search.query_pids, search.query_cams, strict=True)]
    rows += [*zip(search.gallery_pids, search.gallery_cams, strict=True)]
    ids.write_text("\n".join([header, *(f"{pid},{cam}" for pid, cam in rows)]))
    return query, gallery, ids


def table(folder: Path, text: str, name: str = "ids.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def same(one: Search, other: Search) -> None:
    for name in ("query", "gallery", "query_pids", "gallery_pids", "query_cams", "gallery_cams"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def options(**values: Any) -> Grouping:
    return Grouping(**{"k1": 10, "k2": 3, **values})
