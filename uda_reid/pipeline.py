"""From a recipe and two domains to a finished, recorded run: pretrain, adapt, evaluate; resumable at every stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from uda_reid import __version__
from uda_reid.auditor import score_snapshots, snapshots
from uda_reid.data.images import Photographs, unlabelled
from uda_reid.errors import CheckpointError, DataError, RecipeError
from uda_reid.evaluation import Evaluator, check_protocol, why_unscored
from uda_reid.job import Job, Prepared, is_scene, open_domain
from uda_reid.pretraining import pretrain, validate
from uda_reid.recipe import resolved, to_yaml
from uda_reid.report import (
    BOUND,
    LISTS,
    PAGE,
    RECORD,
    SOURCE_ONLY,
    Record,
    Row,
    collect,
    rebuild,
    write,
    write_lists,
)
from uda_reid.report import read as read_record
from uda_reid.run import Reporter, Run, Silent
from uda_reid.training.checkpoint import load_encoder, load_facts, replace_file, save_encoder
from uda_reid.training.devices import environment, pick_device, use_threads
from uda_reid.types import Domain, Source

T = TypeVar("T")


def one(job: Job, *, reporter: Reporter | None = None) -> tuple[Record, Path, bool]:
    """Carry one model from one source to one target, and score it.

    Every stage is resumed from what an interrupted run left; a finished run is found and returned.

    Returns:
        The record, the run's folder, and whether the run had been finished before.

    Raises:
        UdaReidError: bad input; or another process is working on the same run.
    """
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent())
    if job.target is None:
        raise RecipeError("there is no target to adapt to; name one with --tgt")
    folder = prepared.run_folder()
    make_folder(folder)
    with _locked(folder):
        found = folder / RECORD
        finished = found.is_file() and (folder / "adapted.safetensors").is_file()
        logged = Logged(prepared.reporter, folder / "log.txt")
        record = read_record(found) if finished else _work(prepared, folder, logged)
        changed = not finished
        if job.bound and record.row(BOUND) is None:
            evaluator = Evaluator(prepared.target, job.protocol, prepared.run(folder / "state"))
            record = record.with_row(_bound(prepared, evaluator, logged), command=job.command)
            write(record, found)
            changed = True
        if changed or not (folder / PAGE).is_file():
            rebuild(folder, pictures=job.pictures)
        for leftover in ("state", "probes"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
    return record, folder, finished


def _work(prepared: Prepared, folder: Path, reporter: Reporter) -> Record:
    job, recipe, target = prepared.job, prepared.recipe, prepared.target
    replace_file(folder / "recipe.yaml", to_yaml(recipe).encode())
    reporter.log(f"{recipe.name}: {prepared.source.name} -> {target.name}, profile {recipe.profile}, seed {job.seed}")
    for note in recipe.notes:
        reporter.log(f"note: {note}")
    clock = Clock()
    run = prepared.run(folder / "state", reporter)
    unscored = why_unscored(target)
    if unscored:
        evaluator = None
        reporter.log(unscored)
    else:
        evaluator = Evaluator(target, job.protocol, run)
        run = replace(run, prober=snapshots(folder / "probes"))
    check_images(prepared, evaluator)
    clock.lap("images")
    source = train_source(prepared, prepared.source, reporter)
    validation = validate(source, run=run)
    clock.lap("pretrain")
    facts = prepared.facts(source)
    before = Row(SOURCE_ONLY, evaluator.score(source.encoder) if evaluator else None, facts)
    clock.lap("evaluate")
    result = recipe.strategy.adapt(source, unlabelled(target), run=run)
    clock.lap("adapt")
    after = Row(recipe.name, evaluator.score(result.encoder) if evaluator else None, {**facts, **result.facts})
    origin = {"recipe": recipe.name, "adapted to": target.name, "profile": recipe.profile, "seed": job.seed}
    save_encoder(folder / "adapted.safetensors", result.encoder, facts={**after.facts, **origin})
    curve = score_snapshots(folder / "probes", result.encoder, evaluator, reporter) if evaluator else ()
    clock.lap("evaluate")
    trained = prepared.run(prepared.source_folder(prepared.source)).restore("pretrain")
    notes = (f"{domain.name}: {note}" for domain in (prepared.source, target) for note in domain.notes)
    record = Record(
        command=job.command,
        version=__version__,
        source=prepared.source.name,
        target=target.name,
        seed=job.seed,
        profile=recipe.profile,
        recipe=resolved(recipe),
        rows=(before, after),
        validation=validation,
        history=tuple(result.history),
        curve=curve,
        seconds=clock.seconds,
        environment=environment(prepared.device),
        notes=(*recipe.notes, *notes),
        unscored=unscored,
        pretraining=tuple(trained["history"] if trained else ()),
    )
    if evaluator:
        photographs = not is_scene(target)
        lists = collect(record, evaluator, source.encoder, result.encoder, photographs=photographs)
        write_lists(lists, folder / LISTS)
    write(record, folder / RECORD)
    return record


def train_source(prepared: Prepared, domain: Domain, reporter: Reporter) -> Source:
    """Return the model trained with the labels of `domain`, from an earlier run where there is one.

    Several runs may need it at once: one trains it, the others wait.
    """
    folder = prepared.source_folder(domain)
    make_folder(folder)
    finished = folder / "source.safetensors"
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
            facts = {**prepared.facts(source), "trained with labels on": domain.name, "seed": prepared.job.seed}
            save_encoder(finished, source.encoder, facts=facts)
    return source


def source_model(job: Job, *, reporter: Reporter | None = None) -> tuple[Path, str, Mapping[str, float]]:
    """Train the source model of a job, or find it; return its file, its profile and scores on held-out identities."""
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent())
    folder = prepared.source_folder(prepared.source)
    source = train_source(prepared, prepared.source, prepared.reporter)
    validation = validate(source, run=prepared.run(folder))
    return folder / "source.safetensors", prepared.recipe.profile, validation


def score_checkpoint(
    checkpoint: Path,
    target: str,
    *,
    data: Path = Path("data"),
    protocol: str = "auto",
    device: str = "auto",
    threads: int = 0,
    reporter: Reporter | None = None,
) -> Row:
    """Score a saved encoder, or the adapted one of a run's folder, on a domain; its ledger comes from the file."""
    use_threads(threads)
    reporter = reporter or Silent()
    check_protocol(protocol)
    run = Run(device=pick_device(device), reporter=reporter)
    encoder, facts = load_encoder(checkpoint), load_facts(checkpoint)
    scores = Evaluator(open_domain(target, data, reporter=reporter), protocol, run).score(encoder)
    return Row(checkpoint.stem, scores, facts)


def _bound(prepared: Prepared, evaluator: Evaluator, reporter: Reporter) -> Row:
    """Score the supervised bound: the same options, initialisation and seed, on the target with its labels."""
    source = train_source(prepared, prepared.target, reporter)
    used = f"{len(source.training)} of {len(source.pids)}, with their labels"
    known = {"trained with labels on": prepared.target.name, "target images used": used}
    facts = {**prepared.facts(source), **known, "target images in batch norm": True}
    return Row(BOUND, evaluator.score(source.encoder), facts)


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


class Logged:
    """A reporter that also writes every line into a file."""

    def __init__(self, reporter: Reporter, path: Path) -> None:
        self.reporter, self.path = reporter, path

    def log(self, message: str) -> None:
        """Say one line, and write it with the time."""
        self.reporter.log(message)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        """Show progress; the file gets none of it."""
        return self.reporter.progress(items, description, total)


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
        CheckpointError: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        busy = f"{folder}: another process is working on this"
        if waiting is None:
            raise CheckpointError(f"{busy} very run; wait for it, or choose another --out or --seed") from error
        waiting.log(f"{busy} source model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
