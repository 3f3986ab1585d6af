"""What is kept of a finished run: its models and scores, their ledgers, curves and surroundings; as JSON on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from uda_reid.errors import CheckpointError, DataError
from uda_reid.reading import read_text
from uda_reid.types import Scores
from uda_reid.writing import replace_file

SOURCE_ONLY, BOUND = "source-only", "supervised"
LABELLED = "trained with labels on"
"""The entry of a ledger that names the data sets whose labels a model was trained with, commas between them."""
FORMAT = 1
"""Raised when a field of the record changes its meaning; a new field with a default changes none."""
DIRECT = ("source_only", *(f"uda_reid.strategies.source_only{mark}SourceOnly" for mark in ":."))
"""The strategy that adapts nothing: its row repeats the source-only one and is not shown."""
SMALLEST_GAP = 0.02
"""Between source-only and the bound, in mAP; the share that was closed of a smaller one would be noise."""
FEW = 50
"""Below so many counted queries one query moves rank-1 by more than two points, and a reader is told so."""

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading a JSON file raises where it is missing, damaged, nested too deep, or has too large numbers."""

Facts = Mapping[str, str | int | float | bool]
"""A supervision ledger: what a model knew, and how it was chosen."""
Numbers = Mapping[str, float]
"""What was measured at one step; NaN where a number does not exist."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, how it scored on the target, and what it knew.

    Args:
        name: what the model is called.
        scores: how it scored; None where the target has nothing to score on.
        facts: its supervision ledger.
    """

    name: str
    scores: Scores | None
    facts: Facts

    @property
    def scored(self) -> Scores:
        """The scores, for those who need them.

        Raises:
            DataError: nothing was scored.
        """
        if self.scores is None:
            raise DataError(f"{self.name} was not scored: the target has nothing to score on")
        return self.scores


@dataclass(frozen=True)
class Record:
    """Everything about one finished run that someone needs to believe or to repeat it.

    Args:
        command: the command line that makes this run.
        version: the package's version.
        source: the source domain's name.
        target: the target domain's name.
        seed: the run's seed.
        profile: which schedule of the recipe was used.
        recipe: the resolved recipe, with every option.
        rows: the source-only row first, then the adapted one, then, if asked for, the supervised bound.
        validation: scores on the source's held-out identities.
        history: what the strategy reported, per round or epoch.
        curve: scores of the probe's snapshots on the target, computed after adaptation had returned.
        seconds: wall time by stage, of the process that finished the run; a stage found finished takes none.
        environment: versions, threads, device, processor.
        notes: what was unusual, one line each.
        unscored: why nothing was scored, in one line; empty where the rows have scores.
        pretraining: losses of the source training, per epoch.
        identities: (Q,) whom each query of the target shows, in the order of `Scores.average_precision`.
        images: training images of the target; 0 in records from before it was kept.
        gap: how far apart source and target were before any adaptation, by measure; empty where nobody asked.
        on_source: scores on the source's own test images, before and after adaptation; empty where nobody asked.
    """

    command: str
    version: str
    source: str
    target: str
    seed: int
    profile: str
    recipe: Mapping[str, Any]
    rows: tuple[Row, ...]
    validation: Numbers
    history: tuple[Numbers, ...]
    curve: tuple[Numbers, ...]
    seconds: Numbers
    environment: Mapping[str, str | int]
    notes: tuple[str, ...] = ()
    unscored: str = ""
    pretraining: tuple[Numbers, ...] = ()
    identities: tuple[int, ...] = ()
    images: int = 0
    gap: Numbers = field(default_factory=dict)
    on_source: tuple[Scores, ...] = ()

    def row(self, name: str) -> Row | None:
        """Return the row called `name`, or None."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def start(self) -> Row:
        """The row of the source model as it is."""
        return self.rows[0]

    @property
    def adapted(self) -> Row:
        """The row of the adapted model."""
        return self.rows[1]

    @property
    def direct(self) -> bool:
        """Whether the recipe adapts nothing, so that the adapted row repeats the source-only one."""
        return self.recipe.get("strategy") in DIRECT

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows that differ: all, or all but the adapted one where nothing was adapted."""
        return (self.start, *self.rows[2:]) if self.direct else self.rows

    @property
    def compared(self) -> tuple[Scores, Scores] | None:
        """The scores before and after adaptation; None where nothing was scored or nothing was adapted."""
        if self.direct or self.start.scores is None or self.adapted.scores is None:
            return None
        return self.start.scores, self.adapted.scores

    def with_row(self, row: Row, *, command: str) -> Record:
        """Return the record with one row more, and the command that made it."""
        return replace(self, rows=(*self.rows, row), command=command)


def gap_closed(record: Record) -> float | None:
    """Return (adapted - source-only) / (bound - source-only) in mAP; None where the denominator is under 2 points."""
    found = [None if row is None else row.scores for row in (record.start, record.adapted, record.row(BOUND))]
    start, adapted, bound = found
    if start is None or adapted is None or bound is None:
        return None
    gap = bound.mean_ap - start.mean_ap
    return (adapted.mean_ap - start.mean_ap) / gap if gap >= SMALLEST_GAP else None  # nor where it is NaN


def same_labels(labelled: Sequence[str], target: str) -> str:
    """Return what is to be said where the source model was trained with labels of the target; nothing elsewhere.

    >>> same_labels(["plaza"], "campus")
    ''
    """
    if target not in labelled:
        return ""
    if len(labelled) == 1:
        return f"source and target are the same data set ({target}): nothing is carried anywhere"
    return (
        f"the target is one of the sources ({target}): the source model is trained with its labels, "
        "so its numbers do not show what can be done without"
    )


def remarks(record: Record) -> tuple[str, ...]:
    """Return what a reader must know before believing the numbers, one line each."""
    same = same_labels(str(record.start.facts.get(LABELLED, record.source)).split(", "), record.target)
    lines = [same] if same else []
    counted = 0 if record.start.scores is None else record.start.scores.counted
    if 0 < counted < FEW:
        lines.append(
            f"only {counted} counted {'query' if counted == 1 else 'queries'}: the numbers are coarse "
            f"(one query = {100 / counted:.1f} points of rank-1)"
        )
    return tuple(lines)


def to_json(record: Record) -> str:
    """Return the record as JSON text; numbers that do not exist (AP of a skipped query) are null."""
    return json.dumps({"format": FORMAT, **_plain(asdict(record))}, indent=1, allow_nan=False) + "\n"


def scores_json(scores: Scores | None, facts: Facts | None = None) -> str:
    """Return scores as JSON text, with entries of their ledger where there are any; null where nothing was scored."""
    content = None if scores is None else {**asdict(scores), **(facts or {})}
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def write(record: Record, path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    replace_file(path, to_json(record).encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        CheckpointError: the file is missing, or is not a record of this version.
    """
    try:
        data = json.loads(read_text(path))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        rows = tuple(Row(row["name"], _scores(row["scores"]), row["facts"]) for row in data.pop("rows"))
        values = {
            field.name: data[field.name]
            for field in fields(Record)
            if field.name != "rows" and (field.name in data or field.default is field.default_factory is MISSING)
        }
        if len(rows) < 2 or not data["recipe"]["name"]:
            raise ValueError("rows are missing")
        if not all(row.scores is None or {1, 5, 10} <= row.scores.cmc.keys() for row in rows):
            raise ValueError("ranks are missing")
        lengths = {len(row.scores.average_precision) for row in rows if row.scores is not None}
        lengths |= {len(data["identities"])} if lengths and data.get("identities") else set()
        if len(lengths) > 1:
            raise ValueError("scores of different numbers of queries")
        for name in ("history", "curve", "pretraining"):
            values[name] = tuple(map(_numbers, values.get(name, ())))
        values["validation"] = _numbers(values["validation"])
        values["gap"] = _numbers(values.get("gap", {}))
        values["identities"] = tuple(values.get("identities", ()))
        on_source = map(_scores, values.get("on_source", ()))
        values["on_source"] = tuple(scores for scores in on_source if scores is not None)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: is no record, or is damaged ({error}); the command of the run makes it again"
        ) from error
    return Record(rows=rows, **{**values, "notes": tuple(values.get("notes", ()))})


def _numbers(data: Mapping[str, float | None]) -> Numbers:
    return {name: math.nan if value is None else value for name, value in data.items()}


def _scores(data: dict[str, Any] | None) -> Scores | None:
    if data is None:
        return None
    data["cmc"] = {int(rank): share for rank, share in data["cmc"].items()}
    data["average_precision"] = np.array([math.nan if ap is None else ap for ap in data["average_precision"]])
    data["mean_ap"], data["mean_ap_step"], data["mean_inp"] = (
        math.nan if data[name] is None else data[name] for name in ("mean_ap", "mean_ap_step", "mean_inp")
    )
    return Scores(**data)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
