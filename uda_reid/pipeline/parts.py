"""What a run may have beside its scores: the bound, scores on its source, how far apart its domains are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uda_reid.auditor import same_weights
from uda_reid.data.images import unlabelled
from uda_reid.evaluation import Evaluator
from uda_reid.gap import domain_gap
from uda_reid.job import Prepared
from uda_reid.pipeline.folders import ADAPTED
from uda_reid.pipeline.sources import train_source
from uda_reid.report import BOUND, EMBEDDING_MAP, LABELLED, Row, collect_map, write_map
from uda_reid.run import Reporter, Run
from uda_reid.training.encoders import load_encoder
from uda_reid.types import Scores


def bound(prepared: Prepared, evaluator: Evaluator, reporter: Reporter) -> Row:
    """Score the supervised bound: the same options, initialisation and seed, on the target with its labels."""
    source = train_source(prepared, prepared.target, reporter)
    used = f"{len(source.training)} of {len(source.pids)}, with their labels"
    known = {LABELLED: prepared.target.name, "target images used": used}
    facts = {**prepared.facts(source), **known, "target images in batch norm": True}
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
    kept = prepared.run(prepared.source_folder(prepared.source), run.reporter)
    name = f"gap-{prepared.name_of(prepared.target)}"
    found = kept.restore(name)
    if found is None:
        found = {"gap": domain_gap(source, target, run=kept)}
        kept.save(name, found)
    measured: Mapping[str, float] = found["gap"]
    return measured


def embedding_map(prepared: Prepared, folder: Path, run: Run) -> None:
    """Keep where images of both domains lie for the source model and for the adapted one."""
    before, after = train_source(prepared, prepared.source, run.reporter).encoder, load_encoder(folder / ADAPTED)
    adapted = None if same_weights(before, after) else after
    write_map(collect_map(before, adapted, prepared.source, prepared.target, run=run), folder / EMBEDDING_MAP)
