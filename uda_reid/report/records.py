"""Records of runs, and how they are shown: what was measured, how, and with which knowledge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from uda_reid.errors import CheckpointError
from uda_reid.training.checkpoint import replace_file
from uda_reid.types import Scores

SOURCE_ONLY, BOUND = "source-only", "supervised"
FORMAT = 1
"""Raised when a field of the record changes its meaning."""

DEFINITIONS = {
    "mAP": "mean over counted queries of the trapezoid average precision (Market-1501 code)",
    "mAP step": "the same by the step rule (torchreid, fast-reid, OpenUnReID); never lower than the trapezoid",
    "rank-k": "share of counted queries with a match among the first k images that are not removed (CMC)",
    "mINP": "mean inverse negative penalty: matches / rank of the last match",
}


Facts = Mapping[str, str | int | float | bool]
"""A supervision ledger: what a model knew, and how it was chosen."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, how it scored on the target, and what it knew."""

    name: str
    scores: Scores
    facts: Facts


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
    """

    command: str
    version: str
    source: str
    target: str
    seed: int
    profile: str
    recipe: Mapping[str, Any]
    rows: tuple[Row, ...]
    validation: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]
    curve: tuple[Mapping[str, float], ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, str | int]
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row | None:
        """Return the row called `name`, or None."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def adapted(self) -> Row:
        """The row of the adapted model."""
        return self.rows[1]

    def with_row(self, row: Row, *, command: str) -> Record:
        """Return the record with one row more, and the command that made it."""
        return replace(self, rows=(*self.rows, row), command=command)


def gap_closed(record: Record) -> float | None:
    """Return (adapted - source-only) / (bound - source-only) in mAP; None where the denominator is under 2 points."""
    start, bound = record.row(SOURCE_ONLY), record.row(BOUND)
    if start is None or bound is None or not bound.scores.mean_ap - start.scores.mean_ap >= 0.02:  # NaN too
        return None
    return (record.adapted.scores.mean_ap - start.scores.mean_ap) / (bound.scores.mean_ap - start.scores.mean_ap)


def to_json(record: Record) -> str:
    """Return the record as JSON text; numbers that do not exist (AP of a skipped query) are null."""
    return json.dumps({"format": FORMAT, **_plain(asdict(record))}, indent=1, allow_nan=False) + "\n"


def scores_json(scores: Scores) -> str:
    """Return scores as JSON text."""
    return json.dumps(_plain(asdict(scores)), indent=1, allow_nan=False) + "\n"


def write(record: Record, path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    replace_file(path, to_json(record).encode())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        CheckpointError: the file is missing, or is not a record of this version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        rows = tuple(Row(row["name"], _scores(row["scores"]), row["facts"]) for row in data.pop("rows"))
        values = {field.name: data[field.name] for field in fields(Record) if field.name != "rows"}
        if len(rows) < 2 or not all({1, 5, 10} <= row.scores.cmc.keys() for row in rows) or not data["recipe"]["name"]:
            raise ValueError("rows or ranks are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not a record of this version of uda_reid ({error}); run with a new --out"
        ) from error
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Record(rows=rows, **values)


def _scores(data: dict[str, Any]) -> Scores:
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


def show(record: Record) -> RenderableType:
    """Return the table of a run with its gain and its supervision ledger, for a terminal."""
    title = f"{record.source} -> {record.target}, {record.recipe['name']}, profile {record.profile}, seed {record.seed}"
    fidelity = f"fidelity of the recipe in profile paper: {record.recipe['fidelity']} ({record.recipe['paper']})"
    notes = (fidelity, *(f"note: {note}" for note in record.notes))
    gain = Text(_gain(record), style="bold")
    return Group(scores_table(title, record.rows), gain, _ledger(record.rows), _footnotes(record.rows, notes))


def show_row(title: str, row: Row) -> RenderableType:
    """Return the table of one scored model with its ledger, for a terminal."""
    return Group(scores_table(title, [row]), _ledger([row]), _footnotes([row], ()))


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def scores_table(title: str, rows: Sequence[Row]) -> Table:
    """Return a table of rows, in percent."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("mAP", "rank-1", "rank-5", "rank-10", "mINP", "mAP step", "queries", "skipped"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scores = row.scores
        values = [
            scores.mean_ap,
            *(scores.cmc[rank] for rank in (1, 5, 10)),
            scores.mean_inp,
            scores.mean_ap_step,
        ]
        table.add_row(row.name, *map(_percent, values), str(scores.counted), str(scores.skipped))
    return table


def _gain(record: Record) -> str:
    start = record.row(SOURCE_ONLY)
    if start is None:
        return ""
    before, after = start.scores, record.adapted.scores
    gained = after.mean_ap - before.mean_ap
    line = (
        f"gain: {'n/a' if math.isnan(gained) else f'{100 * gained:+.1f}'} mAP, "
        f"{100 * (after.cmc[1] - before.cmc[1]):+.1f} rank-1 (points, one seed)"
    )
    if record.row(BOUND) is not None:
        share = gap_closed(record)
        line += f"; share of the gap to the bound closed: {'n/a' if share is None else f'{share:.0%}'}"
    return line


def _ledger(rows: Sequence[Row]) -> Table:
    table = Table(
        title="supervision ledger", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("")
    for row in rows:
        table.add_column(row.name)
    for key in dict.fromkeys(key for row in rows for key in row.facts):
        table.add_row(key, *(_fact(row.facts.get(key)) for row in rows))
    return table


def _fact(value: str | int | float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _footnotes(rows: Sequence[Row], notes: Sequence[str]) -> Text:
    lines = [f"{name}: {meaning}" for name, meaning in DEFINITIONS.items()]
    lines.append(f"protocol {rows[0].scores.protocol}; skipped queries have no valid match and are in no mean")
    tied = max(row.scores.ties for row in rows)
    if tied:
        lines.append(f"queries with equal distances that touch a match: {tied}; ties are broken by gallery order")
    return Text("\n".join((*lines, *notes)), style="dim")
