"""Source models: trained once for a domain, a seed and options, and found again by everyone who needs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from uda_reid.job import Job, Prepared
from uda_reid.launch import Stop
from uda_reid.pipeline.folders import SOURCE_MODEL, locked, make_folder
from uda_reid.pretraining import pretrain, validate
from uda_reid.report import LABELLED, Facts
from uda_reid.run import Reporter, Run, Silent
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.devices import use_threads
from uda_reid.training.encoders import load_facts, save_encoder
from uda_reid.training.loop import PARTIAL
from uda_reid.types import Domain, Source


def train_source(prepared: Prepared, domain: Domain, reporter: Reporter) -> Source:
    """Return the model trained with the labels of `domain`, from an earlier run where there is one.

    Several runs may need it at once: one trains it, the others wait.
    """
    folder, main = prepared.source_folder(domain), prepared.processes.main_only
    main(lambda: make_folder(folder))
    finished = folder / SOURCE_MODEL
    with locked(folder, work="working on this source model", waiting=reporter, processes=prepared.processes):
        found = main(finished.is_file)
        reporter.log(f"source model: {finished}{' (found)' if found else ''}")
        run = prepared.tolerant(prepared.run(folder, reporter))
        source = pretrain(
            domain,
            prepared.recipe.pretrain,
            encoder=prepared.recipe.encoder,
            weights_folders=prepared.folders,
            run=run,
        )
        if not found:
            facts = {
                **prepared.facts(source),
                **prepared.left_out(domain),
                LABELLED: prepared.labels_of(domain),
                "seed": prepared.job.seed,
            }
            facts |= {f"{name}, in pretraining": value for name, value in unusual(run).items()}
            main(lambda: save_encoder(finished, source.encoder, facts=facts))
        main(lambda: CheckpointFolder(folder).drop_previous(PARTIAL))
    return source


def unusual(run: Run) -> Facts:
    """Return what a ledger has to say of a training that did not go as usual, on any process."""
    limit, several = run.unreadable.limit, run.processes.count > 1
    if not several or not limit:
        return {**run.updates.facts(), **run.unreadable.facts()}
    mine = torch.full((limit, 2), -1)  # no process has lost more
    for place, image in enumerate(sorted(run.unreadable.lost)):
        mine[place] = torch.tensor(image)
    every = {tuple(image) for image in run.gather(mine, limit * run.processes.count).tolist()}
    return {**run.updates.facts(), **run.unreadable.facts(len(every - {(-1, -1)}))}


def pretrained_facts(prepared: Prepared, domain: Domain) -> Facts:
    """Return what was unusual about the training of a source model that is there."""
    facts = load_facts(prepared.source_folder(domain) / SOURCE_MODEL)
    return {name: value for name, value in facts.items() if name.endswith(", in pretraining")}


def source_model(
    job: Job, *, reporter: Reporter | None = None, stop: Stop | None = None
) -> tuple[Path, str, Mapping[str, float]]:
    """Train the source model of a job, or find it; return its file, its profile and scores on held-out identities."""
    use_threads(job.threads)
    prepared = Prepared(job, reporter or Silent(), stop)
    folder = prepared.source_folder(prepared.source)
    source = train_source(prepared, prepared.source, prepared.reporter)
    validation = validate(source, run=prepared.run(folder))
    return folder / SOURCE_MODEL, prepared.recipe.profile, validation
