"""One run: a source model is carried to a target and scored there; resumable at every stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from uda_reid import __version__
from uda_reid.auditor import Numbers, audit_snapshots, same_weights, snapshots
from uda_reid.data.images import Photographs, unlabelled
from uda_reid.errors import CheckpointError, RecipeError, UdaReidError, UnreadableError
from uda_reid.evaluation import Evaluator, check_protocol, why_unscored
from uda_reid.job import TEST_LEFT_OUT, Job, Prepared, left_out, open_domain
from uda_reid.launch import Stop
from uda_reid.pipeline.folders import ADAPTED, STATE, locked, make_folder
from uda_reid.pipeline.parts import bound, gap, keep_lists, keep_maps, on_source, pictures
from uda_reid.pipeline.sources import pretrained_facts, train_source, unusual
from uda_reid.pretraining import validate
from uda_reid.recipe import bounded_by_cameras, resolved, to_yaml
from uda_reid.report import BOUND, RECORD, SOURCE_ONLY, Record, Row, rebuild, write
from uda_reid.report import read as read_record
from uda_reid.run import Precision, Reporter, Run, Silent
from uda_reid.terminal import Logged
from uda_reid.training.devices import environment, use_threads
from uda_reid.training.encoders import load_encoder, load_facts, save_encoder
from uda_reid.training.loop import UPDATES
from uda_reid.training.meeting import join
from uda_reid.writing import replace_file


def one(job: Job, *, reporter: Reporter | None = None, stop: Stop | None = None) -> tuple[Record, Path, bool]:
    """Carry one model from one source, or from several at once, to one target, and score it.

    Training, adaptation and the audit are resumed from what an interrupted run left; a finished run is found and
    returned. Its page is written anew every time. Where a launcher has started several processes, all of them train and
    embed; the main one writes.

    Args:
        job: what to carry where.
        reporter: shows what is going on.
        stop: asks the training to stop after a step, and to keep what it has.

    Returns:
        The record, the run's folder, and whether the run had been finished before.

    Raises:
        UdaReidError: bad input.
        Busy: another process is working on the same run.
        Stopped: `stop` asked for it.
    """
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent(), stop)
    main = prepared.processes.main_only
    if job.target is None:
        raise RecipeError("there is no target to adapt to; name one with --tgt")
    folder = prepared.run_folder()
    main(lambda: make_folder(folder))
    with locked(folder, processes=prepared.processes):
        found = folder / RECORD
        logged = prepared.reporter if prepared.processes.rank else Logged(prepared.reporter, folder / "log.txt")
        unscored = why_unscored(prepared.target)
        run = prepared.run(folder / STATE, logged)
        evaluator = None if unscored else Evaluator(prepared.target, job.protocol, run)
        kept = main(lambda: _found(folder, logged))
        finished = kept is not None
        record = kept or _work(prepared, folder, run, evaluator)
        if job.bound and evaluator and record.row(BOUND) is None:
            record = record.with_row(bound(prepared, evaluator, logged), command=job.command)
            main(partial(write, record, found))
        if job.forgetting and not record.on_source and not why_unscored(prepared.source):
            record = replace(record, on_source=on_source(prepared, folder, run), command=job.command)
            main(partial(write, record, found))
        if job.gap and not record.gap:
            record = replace(record, gap=gap(prepared, run), command=job.command)
            main(partial(write, record, found))
        pictures(prepared, folder, run, evaluator, record)
        main(lambda: _finish(folder, job))
    return record, folder, finished


def _finish(folder: Path, job: Job) -> None:
    rebuild(folder, pictures=job.pictures)  # always: it is quick, and follows the record and --no-pictures
    for leftover in (STATE, "probes"):
        shutil.rmtree(folder / leftover, ignore_errors=True)


def _found(folder: Path, reporter: Reporter) -> Record | None:
    """Return the record of a finished run; None where a disk has damaged it, and the run is to be made again."""
    path = folder / RECORD
    if not (path.is_file() and (folder / ADAPTED).is_file()):
        return None
    try:
        return read_record(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise  # a disk that does not answer just now
        path.replace(path.with_name(f"{path.name}.damaged"))
        reporter.log(f"warning: {error}; it is kept as {path.name}.damaged")
        return None


def _work(prepared: Prepared, folder: Path, run: Run, evaluator: Evaluator | None) -> Record:
    """Train, adapt and score; without an evaluator nothing is scored."""
    recipe, target, main = prepared.recipe, prepared.target, run.main_only
    main(lambda: _announce(prepared, folder, run))
    clock, audited = Clock(), evaluator is not None or target.labelled or prepared.job.selection
    main(lambda: check_images(prepared, evaluator))
    if prepared.processes.rank:  # these find what the main process has kept
        check_images(prepared, evaluator)
    clock.lap("images")
    source = train_source(prepared, prepared.source, run.reporter)
    validation = validate(source, run=run)
    clock.lap("pretrain")
    missing = prepared.left_out(prepared.source, prepared.target)
    facts = {**prepared.facts(source), **pretrained_facts(prepared, prepared.source), **missing}
    found = evaluator.features(source.encoder) if evaluator else None
    before = Row(SOURCE_ONLY, evaluator.score(found) if evaluator and found else None, facts)
    clock.lap("evaluate")
    adapting = prepared.tolerant(run)
    kept = run.restore(UPDATES)
    if kept is not None:  # the ledger tells of them, also where no step is left to make
        adapting.updates.load_state_dict(kept["after"])
    probed = replace(adapting, prober=snapshots(folder / "probes")) if audited else adapting
    result = recipe.strategy.adapt(source, unlabelled(target, log=run.log), run=probed)
    history = plain_history(result.history, recipe.name)
    clock.lap("adapt")
    again = found if same_weights(source.encoder, result.encoder) else None
    adapted = again or (evaluator.features(result.encoder) if evaluator else None)
    counted = {"number of target cameras used": "to bound the clusters"} if bounded_by_cameras(recipe) else {}
    known = {**facts, **result.facts, **counted, **unusual(adapting), **prepared.labels_known}
    after = Row(recipe.name, evaluator.score(adapted) if evaluator and adapted else None, known)
    origin = {"recipe": recipe.name, "adapted to": target.name, "profile": recipe.profile, "seed": prepared.job.seed}
    main(lambda: save_encoder(folder / ADAPTED, result.encoder, facts={**after.facts, **origin}))
    curve = audit_snapshots(
        folder / "probes", result.encoder, after.scores, target, evaluator,
        source=source if prepared.job.selection else None, run=run,
    )  # fmt: skip
    record = _record(prepared, (before, after), history=history, curve=curve, validation=validation)
    if evaluator and found and adapted:
        main(partial(keep_lists, record, evaluator, found, adapted, prepared, folder))
    main(lambda: keep_maps(result.encoder, prepared, folder, run))
    clock.lap("evaluate")
    record = replace(record, seconds=clock.seconds)
    main(lambda: write(record, folder / RECORD))
    return record


def _announce(prepared: Prepared, folder: Path, run: Run) -> None:
    """Write the resolved recipe down, and say what is about to happen."""
    recipe = prepared.recipe
    replace_file(folder / "recipe.yaml", to_yaml(recipe).encode())
    names = f"{prepared.source.name} -> {prepared.target.name}"
    run.log(f"{recipe.name}: {names}, profile {recipe.profile}, seed {prepared.job.seed}")
    if run.processes.count > 1:
        run.log(f"on {run.processes.count} processes")
    for note in recipe.notes:
        run.log(f"note: {note}")
    if any((folder / STATE).glob("[!.]*")):  # others are torn
        run.log(f"goes on with what an earlier start of this run kept in {folder / STATE}")
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
        environment=environment(prepared.device, prepared.processes.count),
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


def score_checkpoint(
    checkpoint: Path,
    target: str,
    *,
    data: Path = Path("data"),
    protocol: str = "auto",
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    threads: int = 0,
    skip_damaged: bool = False,
    reporter: Reporter | None = None,
) -> Row:
    """Score a saved encoder, or the adapted one of a run's folder, on a domain; its ledger comes from the file.

    With `skip_damaged`, images that cannot be read are left out, and the ledger counts those of this domain.
    """
    use_threads(threads)
    reporter = reporter or Silent()
    check_protocol(protocol)
    processes, device = join(device)
    reporter = Silent() if processes.rank else reporter
    run = Run(seed=seed, device=device, precision=precision, reporter=reporter, processes=processes)
    encoder, facts = load_encoder(checkpoint), load_facts(checkpoint)
    domain = open_domain(target, data, reporter=reporter, skip_damaged=("query", "gallery") if skip_damaged else ())
    scores = Evaluator(domain, protocol, run).score(encoder)
    return Row(checkpoint.stem, scores, {**facts, **left_out(domain, entry=TEST_LEFT_OUT)})


def check_images(prepared: Prepared, evaluator: Evaluator | None) -> None:
    """Decode every image of the target once, so that broken files are found before the training and not after.

    Raises:
        UnreadableError: images cannot be decoded; the first of every split is named, the others are counted.
    """
    size = prepared.recipe.encoder.height, prepared.recipe.encoder.width
    # A few are looked at and not kept: `unlabelled` decodes them again. Many go to a file, which it finds.
    train = Photographs(prepared.target.train, name=f"{prepared.target.name} train", cache_bytes=0)
    failures = []
    for images in (train, evaluator.query, evaluator.gallery) if evaluator else (train,):  # `pretrain` does the source
        try:
            images.preload(*size, progress=prepared.reporter.progress, log=prepared.reporter.log)
        except UnreadableError as error:
            failures.append(str(error))
    if failures:
        raise UnreadableError("; ".join(failures))


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
