"""What a run may have beside its scores: the bound, scores on its source, how far apart its domains are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from uda_reid.auditor import same_weights
from uda_reid.data.images import unlabelled
from uda_reid.errors import CheckpointError
from uda_reid.evaluation import Evaluator, Features
from uda_reid.gap import domain_gap
from uda_reid.job import Prepared
from uda_reid.pipeline.folders import ADAPTED, locked
from uda_reid.pipeline.sources import pretrained_facts, train_source
from uda_reid.report import (
    ATTENTION,
    BOUND,
    EMBEDDING_MAP,
    LABELLED,
    LISTS,
    AttentionMaps,
    Lists,
    Record,
    Row,
    collect,
    collect_map,
    collect_maps,
    read_lists,
    read_map,
    read_maps,
    whole,
    write_lists,
    write_map,
    write_maps,
)
from uda_reid.run import Reporter, Run
from uda_reid.training.encoders import load_encoder
from uda_reid.types import Encoder, Scores


def bound(prepared: Prepared, evaluator: Evaluator, reporter: Reporter) -> Row:
    """Score the supervised bound: the same options, initialisation and seed, on the target with its labels."""
    source = train_source(prepared, prepared.target, reporter)
    used = f"{len(source.training)} of {len(source.pids)}, with their labels"
    known = {LABELLED: prepared.target.name, "target images used": used}
    unusual, left_out = pretrained_facts(prepared, prepared.target), prepared.left_out(prepared.target)
    facts = {**prepared.facts(source), **known, "target images in batch norm": True, **unusual, **left_out}
    return Row(BOUND, evaluator.score(source.encoder), facts)


def on_source(prepared: Prepared, folder: Path, run: Run) -> tuple[Scores, Scores]:
    """Score the source model and the adapted one on the source's own queries and gallery: what adapting cost it."""
    evaluator = Evaluator(prepared.source, prepared.job.protocol, run)
    before = train_source(prepared, prepared.source, run.reporter).encoder  # found, unless somebody has removed it
    after = load_encoder(folder / ADAPTED)
    known = evaluator.score(before)
    return known, known if same_weights(before, after) else evaluator.score(after)


def gap(prepared: Prepared, run: Run) -> Mapping[str, float]:
    """Measure the gap between source and target; the same for every recipe with this source model, so it is kept."""
    source, target = train_source(prepared, prepared.source, run.reporter), unlabelled(prepared.target)
    folder = prepared.source_folder(prepared.source)
    kept, name = prepared.run(folder, run.reporter), f"gap-{prepared.name_of(prepared.target)}"
    # Other recipes want the same at the same time.
    with locked(folder, work="working on this source model", waiting=run.reporter, processes=run.processes):
        found = kept.restore(name)
        if found is None:
            found = {"gap": domain_gap(source, target, run=kept)}
            kept.save(name, found)
    measured: Mapping[str, float] = found["gap"]
    return measured


def pictures(prepared: Prepared, folder: Path, run: Run, evaluator: Evaluator | None, record: Record) -> None:
    """Make what a run shows beside its numbers, where it is wanted and missing, or damaged."""
    if evaluator and not run.main_only(lambda: whole(folder / LISTS, _of_target(read_lists, prepared))):
        before, after = (evaluator.features(model) for model in _models(prepared, folder, run))
        run.main_only(lambda: keep_lists(record, evaluator, before, after, prepared, folder))
    maps, read_own = folder / ATTENTION, _of_target(read_maps, prepared)
    if run.main_only(lambda: maps.is_file() and not whole(maps, read_own)):
        adapted = _models(prepared, folder, run)[1]
        run.main_only(lambda: keep_maps(adapted, prepared, folder, run))
    if prepared.job.embedding_map and not run.main_only(lambda: whole(folder / EMBEDDING_MAP, read_map)):
        source, target = _models(prepared, folder, run)
        changed = None if same_weights(source, target) else target
        found = collect_map(source, changed, prepared.source, prepared.target, run=run)
        run.main_only(lambda: write_map(found, folder / EMBEDDING_MAP))


def _of_target(read_it: Callable[[Path], Lists | AttentionMaps], prepared: Prepared) -> Callable[[Path], object]:
    """Return a reader that takes pictures for damaged where they are of another folder than the target's.

    The target was moved since, or another user wrote the file: a page shows what lies in the folder that it names.
    """

    def read_own(path: Path) -> object:
        found = read_it(path)
        if found.root != os.path.abspath(prepared.target.root):  # noqa: PTH100 (as it was written)
            raise CheckpointError(f"{path}: shows images of {found.root}; the target is {prepared.target.root}")
        return found

    return read_own


def keep_lists(
    record: Record, evaluator: Evaluator, before: Features, after: Features, prepared: Prepared, folder: Path
) -> None:
    """Write what some queries find first before and after adaptation."""
    lists = collect(record, evaluator, before, after)
    write_lists(lists, folder / LISTS)


def keep_maps(encoder: Encoder, prepared: Prepared, folder: Path, run: Run) -> None:
    """Write what an encoder with attention looks at on some of the target's images."""
    maps = collect_maps(encoder, prepared.target, run=run)
    if maps is not None:
        write_maps(maps, folder / ATTENTION)


def _models(prepared: Prepared, folder: Path, run: Run) -> tuple[Encoder, Encoder]:
    return train_source(prepared, prepared.source, run.reporter).encoder, load_encoder(folder / ADAPTED)
