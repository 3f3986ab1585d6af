"""From a recipe and two domains to a finished, recorded run: pretrain, adapt, evaluate; resumable at every stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock, Timeout

from uda_reid import __version__
from uda_reid.auditor import Numbers, audit_snapshots, same_weights, snapshots
from uda_reid.data.images import Photographs, unlabelled
from uda_reid.errors import CheckpointError, DataError, RecipeError, UdaReidError
from uda_reid.evaluation import Evaluator, check_protocol, why_unscored
from uda_reid.gap import domain_gap
from uda_reid.job import Job, Prepared, is_drawn, open_domain
from uda_reid.pretraining import pretrain, validate
from uda_reid.recipe import resolved, to_yaml
from uda_reid.report import (
    ATTENTION,
    BOUND,
    LABELLED,
    LISTS,
    RECORD,
    SOURCE_ONLY,
    Record,
    Row,
    collect,
    collect_maps,
    rebuild,
    write,
    write_lists,
    write_maps,
)
from uda_reid.report import read as read_record
from uda_reid.run import Reporter, Run, Silent
from uda_reid.terminal import Logged
from uda_reid.training.checkpoint import load_encoder, load_facts, replace_file, save_encoder
from uda_reid.training.devices import environment, pick_device, use_threads
from uda_reid.types import Domain, Scores, Source

T = TypeVar("T")

SOURCE_MODEL, ADAPTED = "source.safetensors", "adapted.safetensors"
"""The model in the folder of a source, and the one in the folder of a run."""


class Busy(CheckpointError):
    """Another process is working on the same run."""


def one(job: Job, *, reporter: Reporter | None = None) -> tuple[Record, Path, bool]:
    """Carry one model from one source, or from several at once, to one target, and score it.

    Training, adaptation and the audit are resumed from what an interrupted run left; a finished run is found and
    returned. Its page is written anew every time.

    Returns:
        The record, the run's folder, and whether the run had been finished before.

    Raises:
        UdaReidError: bad input.
        Busy: another process is working on the same run.
    """
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent())
    if job.target is None:
        raise RecipeError("there is no target to adapt to; name one with --tgt")
    folder = prepared.run_folder()
    make_folder(folder)
    with _locked(folder):
        found = folder / RECORD
        finished = found.is_file() and (folder / ADAPTED).is_file()
        logged = Logged(prepared.reporter, folder / "log.txt")
        unscored = why_unscored(prepared.target)
        run = prepared.run(folder / "state", logged)
        evaluator = None if unscored else Evaluator(prepared.target, job.protocol, run)
        record = read_record(found) if finished else _work(prepared, folder, run, evaluator)
        if job.bound and evaluator and record.row(BOUND) is None:
            record = record.with_row(_bound(prepared, evaluator, logged), command=job.command)
            write(record, found)
        if job.forgetting and not record.on_source and not why_unscored(prepared.source):
            record = replace(record, on_source=_on_source(prepared, folder, run), command=job.command)
            write(record, found)
        if job.gap and not record.gap:
            record = replace(record, gap=_gap(prepared, run), command=job.command)
            write(record, found)
        rebuild(folder, pictures=job.pictures)  # always: it is quick, and follows the record and --no-pictures
        for leftover in ("state", "probes"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
    return record, folder, finished


def _work(prepared: Prepared, folder: Path, run: Run, evaluator: Evaluator | None) -> Record:
    """Train, adapt and score; without an evaluator nothing is scored."""
    recipe, target = prepared.recipe, prepared.target
    _announce(prepared, folder, run)
    clock, audited = Clock(), evaluator is not None or target.labelled or prepared.job.selection
    check_images(prepared, evaluator)
    clock.lap("images")
    source = train_source(prepared, prepared.source, run.reporter)
    validation = validate(source, run=run)
    clock.lap("pretrain")
    facts = prepared.facts(source)
    found = evaluator.features(source.encoder) if evaluator else None
    before = Row(SOURCE_ONLY, evaluator.score(found) if evaluator and found else None, facts)
    clock.lap("evaluate")
    probed = replace(run, prober=snapshots(folder / "probes")) if audited else run
    result = recipe.strategy.adapt(source, unlabelled(target), run=probed)
    history = plain_history(result.history, recipe.name)
    clock.lap("adapt")
    again = found if same_weights(source.encoder, result.encoder) else None
    adapted = again or (evaluator.features(result.encoder) if evaluator else None)
    known = {**facts, **result.facts, **prepared.labels_known}
    after = Row(recipe.name, evaluator.score(adapted) if evaluator and adapted else None, known)
    origin = {"recipe": recipe.name, "adapted to": target.name, "profile": recipe.profile, "seed": prepared.job.seed}
    save_encoder(folder / ADAPTED, result.encoder, facts={**after.facts, **origin})
    curve = audit_snapshots(
        folder / "probes", result.encoder, after.scores, target, evaluator,
        source=source if prepared.job.selection else None, run=run,
    )  # fmt: skip
    record = _record(prepared, (before, after), history=history, curve=curve, validation=validation)
    if evaluator and found and adapted:
        lists = collect(record, evaluator, found, adapted, photographs=not is_drawn(target))
        write_lists(lists, folder / LISTS)
    maps = collect_maps(result.encoder, target, photographs=not is_drawn(target), run=run)
    if maps is not None:
        write_maps(maps, folder / ATTENTION)
    clock.lap("evaluate")
    record = replace(record, seconds=clock.seconds)
    write(record, folder / RECORD)
    return record


def _announce(prepared: Prepared, folder: Path, run: Run) -> None:
    """Write the resolved recipe down, and say what is about to happen."""
    recipe = prepared.recipe
    replace_file(folder / "recipe.yaml", to_yaml(recipe).encode())
    names = f"{prepared.source.name} -> {prepared.target.name}"
    run.log(f"{recipe.name}: {names}, profile {recipe.profile}, seed {prepared.job.seed}")
    for note in recipe.notes:
        run.log(f"note: {note}")
    unscored = why_unscored(prepared.target)
    if unscored:
        run.log(unscored)


def _record(
    prepared: Prepared,
    rows: tuple[Row, ...],
    *,
    history: Numbers,
    curve: Numbers,
    validation: Mapping[str, float],
) -> Record:
    recipe, job = prepared.recipe, prepared.job
    trained = prepared.run(prepared.source_folder(prepared.source)).restore("pretrain")
    return Record(
        command=job.command,
        version=__version__,
        source=prepared.source.name,
        target=prepared.target.name,
        seed=job.seed,
        profile=recipe.profile,
        recipe=resolved(recipe),
        rows=rows,
        validation=validation,
        history=history,
        curve=curve,
        seconds={},
        environment=environment(prepared.device),
        notes=(*recipe.notes, *prepared.notes()),
        unscored=why_unscored(prepared.target),
        pretraining=tuple(trained["history"] if trained else ()),
        identities=tuple(prepared.target.query.pids.tolist()),
        images=len(prepared.target.train),
    )


def plain_history(history: Iterable[Mapping[str, float]], name: str) -> Numbers:
    """Return what a strategy reported as plain numbers, whatever kind of numbers it used.

    Raises:
        UdaReidError: it reported something else.
    """
    try:
        return tuple({str(key): float(value) for key, value in entry.items()} for entry in history)
    except (TypeError, ValueError, AttributeError) as error:
        raise UdaReidError(f"strategy {name}: its history holds something else than named numbers ({error})") from error


def train_source(prepared: Prepared, domain: Domain, reporter: Reporter) -> Source:
    """Return the model trained with the labels of `domain`, from an earlier run where there is one.

    Several runs may need it at once: one trains it, the others wait.
    """
    folder = prepared.source_folder(domain)
    make_folder(folder)
    finished = folder / SOURCE_MODEL
    with _locked(folder, waiting=reporter):
        reporter.log(f"source model: {finished}{' (found)' if finished.is_file() else ''}")
        source = pretrain(
            domain,
            prepared.recipe.pretrain,
            encoder=prepared.recipe.encoder,
            weights_folders=prepared.folders,
            run=prepared.run(folder, reporter),
        )
        if not finished.is_file():
            facts = {**prepared.facts(source), LABELLED: prepared.labels_of(domain), "seed": prepared.job.seed}
            save_encoder(finished, source.encoder, facts=facts)
    return source


def source_model(job: Job, *, reporter: Reporter | None = None) -> tuple[Path, str, Mapping[str, float]]:
    """Train the source model of a job, or find it; return its file, its profile and scores on held-out identities."""
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent())
    folder = prepared.source_folder(prepared.source)
    source = train_source(prepared, prepared.source, prepared.reporter)
    validation = validate(source, run=prepared.run(folder))
    return folder / SOURCE_MODEL, prepared.recipe.profile, validation


def score_checkpoint(
    checkpoint: Path,
    target: str,
    *,
    data: Path = Path("data"),
    protocol: str = "auto",
    seed: int = 0,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    threads: int = 0,
    reporter: Reporter | None = None,
) -> Row:
    """Score a saved encoder, or the adapted one of a run's folder, on a domain; its ledger comes from the file."""
    use_threads(threads)
    reporter = reporter or Silent()
    check_protocol(protocol)
    run = Run(seed=seed, device=pick_device(device), precision=precision, reporter=reporter)
    encoder, facts = load_encoder(checkpoint), load_facts(checkpoint)
    scores = Evaluator(open_domain(target, data, reporter=reporter), protocol, run).score(encoder)
    return Row(checkpoint.stem, scores, facts)


def _bound(prepared: Prepared, evaluator: Evaluator, reporter: Reporter) -> Row:
    """Score the supervised bound: the same options, initialisation and seed, on the target with its labels."""
    source = train_source(prepared, prepared.target, reporter)
    used = f"{len(source.training)} of {len(source.pids)}, with their labels"
    known = {LABELLED: prepared.target.name, "target images used": used}
    facts = {**prepared.facts(source), **known, "target images in batch norm": True}
    return Row(BOUND, evaluator.score(source.encoder), facts)


def _on_source(prepared: Prepared, folder: Path, run: Run) -> tuple[Scores, Scores]:
    """Score the source model and the adapted one on the source's own queries and gallery: what adapting cost it."""
    evaluator = Evaluator(prepared.source, prepared.job.protocol, run)
    before = train_source(prepared, prepared.source, run.reporter).encoder  # found, unless somebody has removed it
    after = load_encoder(folder / ADAPTED)
    known = evaluator.score(before)
    return known, known if same_weights(before, after) else evaluator.score(after)


def _gap(prepared: Prepared, run: Run) -> Mapping[str, float]:
    """Measure the gap between source and target; the same for every recipe with this source model, so it is kept."""
    source, target = train_source(prepared, prepared.source, run.reporter), unlabelled(prepared.target)
    kept = prepared.run(prepared.source_folder(prepared.source), run.reporter)
    name = f"gap-{prepared.name_of(prepared.target)}"
    found = kept.restore(name)
    if found is None:
        found = {"gap": domain_gap(source, target, run=kept)}
        kept.save(name, found)
    gap: Mapping[str, float] = found["gap"]
    return gap


def check_images(prepared: Prepared, evaluator: Evaluator | None) -> None:
    """Decode every image of the target once, so that broken files are found before the training and not after.

    Raises:
        DataError: images cannot be decoded; the first of every split is named, the others are counted.
    """
    size = prepared.recipe.encoder.height, prepared.recipe.encoder.width
    # Looked at and not kept: `unlabelled` decodes them again, into a cache of its own.
    train = Photographs(prepared.target.train, name=f"{prepared.target.name} train", cache_bytes=0)
    failures = []
    for images in (train, evaluator.query, evaluator.gallery) if evaluator else (train,):  # `pretrain` does the source
        try:
            images.preload(*size, progress=prepared.reporter.progress)
        except DataError as error:
            failures.append(str(error))
    if failures:
        raise DataError("; ".join(failures))


class Clock:
    """Wall seconds of this process by stage; a stage that was found finished takes none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 1)
        self.last = now


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        DataError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from error


@contextmanager
def _locked(folder: Path, *, waiting: Reporter | None = None) -> Iterator[None]:
    """Hold the folder's lock, which is released with the process, however that ends.

    Args:
        folder: the folder.
        waiting: says that another process is at work, and waits; without it that is an error.

    Raises:
        Busy: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        busy = f"{folder}: another process is working on this"
        if waiting is None:
            raise Busy(f"{busy} very run; wait for it, or choose another --out or --seed") from error
        waiting.log(f"{busy} source model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
