"""Ranked lists before and after adaptation: which queries are shown, and `ranked.json`, which keeps what they found."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uda_reid.errors import CheckpointError
from uda_reid.evaluation import Evaluator, Features, RankedList
from uda_reid.reading import read_text
from uda_reid.report.pictures import Picture, picture_of
from uda_reid.report.records import DAMAGE, Record
from uda_reid.types import Encoder
from uda_reid.writing import replace_file

FORMAT = 2
"""1 had no failures."""
SHOWN, EXTREME = 16, 4
"""How many queries are shown, and at most how many of them for each extreme: what improved, worsened, failed most."""
IMPROVED, WORSENED, LOWEST, SPREAD = "improved", "worsened", "lowest", "spread"


@dataclass(frozen=True)
class Hit:
    """One place of a ranked list."""

    picture: Picture
    right: bool
    distance: float


@dataclass(frozen=True)
class Query:
    """A query with what was found for it; `before` is empty where nothing was adapted."""

    row: int
    picture: Picture
    why: str
    ap_before: float
    ap_after: float
    before: tuple[Hit, ...]
    after: tuple[Hit, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its image, and all that were found."""
        return (self.picture, *(hit.picture for hit in (*self.before, *self.after)))


@dataclass(frozen=True)
class Lists:
    """The ranked lists of a run.

    Args:
        root: the target's folder.
        counted: from how many queries the shown ones were chosen.
        queries: the chosen ones, by the reason they were chosen for.
    """

    root: str
    counted: int
    queries: tuple[Query, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images that are shown."""
        return tuple(picture for query in self.queries for picture in query.pictures)


def choose(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], *, shown: int = SHOWN, extreme: int = EXTREME
) -> tuple[tuple[int, str], ...]:
    """Choose queries to show by a fixed rule, so that nobody's taste and no chance does.

    Up to `extreme` whose average precision rose most, up to `extreme` whose fell most, of the others up to `extreme`
    whose is lowest after adaptation, and of the rest as many as are missing, at even steps from the highest to the
    lowest; the first of equals is the query in the earlier row.

    Args:
        before: (Q,) average precision, NaN where a query is not counted.
        after: (Q,) the same after adaptation.
        shown: how many queries to choose at most.
        extreme: how many of them for having improved, worsened or failed most, each, at most.

    Returns:
        Rows and reasons: the improved first, then the worsened, the lowest, and the spread ones.

    >>> choose(np.array([0.5, 0.5, 0.5, 0.2, 0.6]), np.array([0.4, 0.9, 0.5, 0.2, 0.6]), extreme=1)
    ((1, 'improved'), (0, 'worsened'), (3, 'lowest'), (4, 'spread'), (2, 'spread'))
    """
    change = after - before
    counted = np.flatnonzero(np.isfinite(change)).tolist()
    improved = sorted((row for row in counted if change[row] > 0), key=lambda row: -change[row])[:extreme]
    worsened = sorted((row for row in counted if change[row] < 0), key=lambda row: change[row])[:extreme]
    changed = {*improved, *worsened}
    lowest = sorted((row for row in counted if row not in changed), key=lambda row: after[row])
    lowest = lowest[: max(min(extreme, shown - len(changed)), 0)]
    extremes = {*changed, *lowest}
    others = sorted((row for row in counted if row not in extremes), key=lambda row: -after[row])
    number = min(max(shown - len(extremes), 0), len(others))
    spread = [others[(2 * step + 1) * len(others) // (2 * number)] for step in range(number)]
    reasons = ((improved, IMPROVED), (worsened, WORSENED), (lowest, LOWEST), (spread, SPREAD))
    return tuple((row, why) for rows, why in reasons for row in rows)


def collect(record: Record, evaluator: Evaluator, before: Encoder | Features, after: Encoder | Features) -> Lists:
    """Rank the gallery for some queries with the models before and after adaptation.

    Args:
        record: the run; its scores decide which queries are shown.
        evaluator: what scored it.
        before: the source model, or what the evaluator's `features` gave for it.
        after: the same of the adapted model.

    Returns:
        The lists; without queries where the protocol gives no average precision or nothing was scored.
    """
    root, scores = Path(os.path.abspath(evaluator.domain.root)), (record.start.scores, record.adapted.scores)  # noqa: PTH100
    if scores[0] is None or scores[1] is None:
        return Lists(str(root), 0, ())
    precision = scores[0].average_precision, scores[1].average_precision
    chosen = choose(*precision)
    rows = [row for row, _ in chosen]
    found = [() if record.direct else evaluator.ranked(before, rows), evaluator.ranked(after, rows)]
    split, gallery = evaluator.domain.query, evaluator.domain.gallery

    def hits(lists: Sequence[RankedList], place: int) -> tuple[Hit, ...]:
        if not lists:
            return ()
        entries = zip(lists[place].gallery, lists[place].right, lists[place].distances, strict=True)
        return tuple(Hit(picture_of(gallery, row, root), right, round(distance, 4)) for row, right, distance in entries)

    queries = []
    for place, (row, why) in enumerate(chosen):
        aps = float(precision[0][row]), float(precision[1][row])
        queries.append(
            Query(row, picture_of(split, row, root), why, *aps, hits(found[0], place), hits(found[1], place))
        )
    return Lists(str(root), int(np.isfinite(precision[0] + precision[1]).sum()), tuple(queries))


def write_lists(lists: Lists, path: Path) -> None:
    """Write ranked lists as JSON, whole or not at all."""
    data = {"format": FORMAT, **asdict(lists)}
    replace_file(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read_lists(path: Path) -> Lists:
    """Read ranked lists.

    Raises:
        CheckpointError: the file is missing, or holds no ranked lists of this version.
    """
    try:
        data = json.loads(read_text(path))
        if data["format"] != FORMAT:
            raise ValueError("another format")
        queries = tuple(_query(query) for query in data["queries"])
        return Lists(str(data["root"]), int(data["counted"]), queries)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: holds no ranked lists, or is damaged ({error}); the command of the run makes them again"
        ) from error


def _query(data: dict[str, Any]) -> Query:
    hits = {
        name: tuple(Hit(Picture(**hit["picture"]), bool(hit["right"]), float(hit["distance"])) for hit in data[name])
        for name in ("before", "after")
    }
    query = Query(**{**data, "picture": Picture(**data["picture"]), **hits})
    if query.why not in (IMPROVED, WORSENED, LOWEST, SPREAD) or not math.isfinite(query.ap_before + query.ap_after):
        raise ValueError("a query without reason or average precision")
    return query
