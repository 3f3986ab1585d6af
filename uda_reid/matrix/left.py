"""What of a plan is there, what is made next, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from uda_reid.errors import CheckpointError
from uda_reid.job import Job
from uda_reid.matrix.plan import WANTED, Cell, Planned, wanted_by
from uda_reid.pipeline import ADAPTED, SOURCE_MODEL
from uda_reid.report import BOUND, RECORD, Record, read, read_shown
from uda_reid.selection import LABEL_FREE

SCENES_CELL = 75.0
"""Seconds that a run of profile `scenes` is made to take at most, on one core; its source model is as much again."""


def choose(waiting: Sequence[Cell], running: Iterable[Cell], trained: Iterable[str]) -> Cell:
    """Return the run to begin next: the first that no running one holds up by training a source model of its.

    >>> from uda_reid.matrix.plan import Place
    >>> first, second, third = (
    ...     Cell(recipe, Place("a", "b", seed), frozenset([f"a{seed}", f"b{seed}"]))
    ...     for recipe, seed in (("pul", 0), ("adda", 0), ("pul", 1))
    ... )
    >>> choose([second, third], [first], []) == third  # `a0` and `b0` are being trained
    True
    >>> choose([second, third], [first], ["a0", "b0"]) == second
    True
    >>> choose([second], [first], []) == second  # nothing else is left: it waits
    True
    """
    busy = {model for cell in running for model in cell.models} - set(trained)
    return next((cell for cell in waiting if not busy & cell.models), waiting[0])


def seconds_left(todo: Iterable[Cell], took: Mapping[str, Sequence[float]], jobs: int) -> float:
    """Return how long the rest will take: as long for every recipe as it took so far.

    >>> from uda_reid.matrix.plan import Place
    >>> cells = [Cell("pul", Place("a", "b", 0)), Cell("adda", Place("a", "b", 0))]
    >>> seconds_left(cells, {"pul": [20.0, 40.0]}, jobs=2)  # of adda nothing is known yet
    30.0
    """
    usual = statistics.mean(second for seconds in took.values() for second in seconds)
    each = [statistics.mean(took[cell.recipe]) if cell.recipe in took else usual for cell in todo]
    return sum(each) / max(1, min(jobs, len(each)))


def lacks(record: Record, wanted: Collection[str]) -> tuple[str, ...]:
    """Return which of the parts that were `wanted`, by the names of options of `Job`, a record does not have.

    >>> from uda_reid.matrix.plan import WANTED
    >>> WANTED
    ('bound', 'forgetting', 'gap', 'selection')
    """
    missing = {
        "bound": record.row(BOUND) is None,
        "forgetting": not record.on_source,
        "gap": not record.gap,
        "selection": not all(set(LABEL_FREE) <= entry.keys() for entry in record.curve),
    }
    return tuple(name for name in WANTED if name in wanted and missing[name])


def record_in(folder: Path) -> Record | None:
    """Return the record in a run's folder; None where there is none, or it cannot be read."""
    if not (folder / RECORD).is_file():
        return None
    try:
        return read(folder / RECORD)
    except CheckpointError:
        return None


def finished(folder: Path, job: Job) -> bool:
    """Return whether a run has its model and all that is wanted of it, so that `pipeline.one` has nothing to do.

    Proxies that are missing do not count: snapshots are gone once a run has ended, and nothing can be measured on them.
    """
    record = record_in(folder)
    if record is None or not (folder / ADAPTED).is_file():
        return False
    try:
        shown = read_shown(folder)
    except CheckpointError:
        return False
    if (job.embedding_map and shown.embeddings is None) or (shown.lists is None and record.start.scores is not None):
        return False
    return set(lacks(record, wanted_by(job))) <= {"selection"}


def expected_seconds(planned: Planned, out: Path, jobs: int) -> float | None:
    """Return how long the runs that are not finished will take, by the finished ones in `out`; None where none is.

    Of profile `scenes` something is known without any: `SCENES_CELL`.
    """
    took: dict[str, list[float]] = {}
    pretraining: list[float] = []
    for path in sorted(out.glob(f"*/{RECORD}")):
        record = record_in(path.parent)
        if record is None or record.profile != planned.profile:
            continue
        seconds = dict(record.seconds)
        pretraining += [seconds.pop("pretrain")] if seconds.get("pretrain", 0.0) > 0 else []
        took.setdefault(str(record.recipe["name"]), []).append(sum(seconds.values()))
    if planned.profile == "scenes":
        took, pretraining = took or {"": [SCENES_CELL]}, pretraining or [SCENES_CELL]
    todo = [cell for cell in planned.jobs if not finished(planned.folders[cell], planned.jobs[cell])]
    if not todo:
        return 0.0
    if not took:
        return None
    missing = {
        model for cell in todo for model in cell.models if not (out / "sources" / model / SOURCE_MODEL).is_file()
    }
    # The longest of those that were trained: one that is found again takes next to nothing.
    return seconds_left(todo, took, jobs) + len(missing) * max(pretraining, default=0.0) / max(1, jobs)
