"""The supervised start: train an encoder and a classifier on the source's identities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from uda_reid.data.images import Photographs
from uda_reid.data.sampling import identity_balanced, shuffled
from uda_reid.errors import DataError
from uda_reid.models.encoder import Embedder, EncoderSpec, build
from uda_reid.models.heads import Classifier
from uda_reid.ops.losses import batch_hard_triplet, identification
from uda_reid.ops.ranking import rank
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.training.loop import Stateful, train
from uda_reid.types import Batch, Domain, Ids, Source, Split

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pretrain:
    """How the source model is trained; the defaults are the strong baseline of Luo et al. 2019 (1903.07071).

    The exact "IDE" baseline (Zheng et al. 2016; PUL's starting point) is the recipe `ide`.
    """

    loss: Literal["identification", "identification+triplet"] = "identification+triplet"
    smoothing: Fraction = 0.1  # section 3.3
    margin: Annotated[float, Field(ge=0)] = 0.3  # their reference code; the paper leaves it open
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 3.5e-4  # section 3.1
    momentum: Fraction = 0.9  # sgd only
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # their reference code
    epochs: Annotated[int, Field(ge=0)] = 60  # 120 in the paper, for ids x 4 images an epoch; ours see every image
    warmup: Annotated[int, Field(ge=0)] = 10  # section 3.1: epochs of linear warm-up
    schedule: Literal["constant", "step", "cosine"] = "step"
    milestones: tuple[Positive, ...] = (30, 50)  # step only: the rate is divided by 10 after these epochs
    batch: Annotated[int, Field(gt=1)] = 64  # section 2: 16 identities x 4 images
    instances: Annotated[int, Field(gt=1)] = 4  # images per identity in a batch, with the triplet loss
    augmentation: Literal["none", "ide", "reid"] = "reid"
    dropout: Fraction = 0.0  # before the classifier
    head_std: Annotated[float, Field(gt=0)] = 0.001  # classifier weights ~ N(0, head_std^2)
    validation: Fraction = 0.1  # share of the identities held out of training, to choose and to check by


DEFAULT = Pretrain()
RESNET50 = EncoderSpec()


def pretrain(
    domain: Domain,
    options: Pretrain = DEFAULT,
    *,
    encoder: EncoderSpec = RESNET50,
    weights_folders: Sequence[Path] = (),
    run: Run = QUIET,
) -> Source:
    """Train an encoder with identities on `domain.train` and return it with its images as a `Source`.

    With a run that keeps states, a second call goes on from the last finished epoch, or returns at once.

    Args:
        domain: the labelled domain, or several joined by `data.union`.
        options: losses, optimizer, schedule.
        encoder: what to train.
        weights_folders: where ImageNet weights are looked for first.
        run: the surroundings.

    Returns:
        The source: images, renumbered identities, the held-out rows, the trained encoder and classifier.

    Raises:
        DataError: no identities or fewer than two to train on, or an unreadable image.
    """
    check_identities(domain)
    images = Photographs(domain.train, name=f"{domain.name} train")
    # Every image, the held-out ones too, before any time is spent: a broken file is an error now and not hours later.
    preload = partial(images.preload, encoder.height, encoder.width, run.progress, run.log)
    run.main_only(preload)  # first, so that it tells of broken files, and the others find what it has kept
    if run.processes.rank:
        preload()
    pids, validation = _renumber(domain.train, options.validation, run)
    classes = int(pids.max()) + 1 - len(torch.unique(pids[validation]))
    if classes < 2:
        raise DataError(f"{domain.root}: {classes} identity to train on; identification needs at least 2")
    model = build(encoder, seed=run.seed_for("pretrain/encoder"), weights_folders=weights_folders)
    if run.restore("pretrain") is None:
        origin = model.load_report or "random weights"
        run.log(f"training the source model; {encoder.backbone} starts from {origin}")
    classifier = Classifier(
        model.dim,
        classes,
        dropout=options.dropout,
        std=options.head_std,
        rectified=encoder.hidden > 0,
        generator=run.stream("pretrain/classifier"),
    )
    cams = None if domain.train.cams is None else torch.from_numpy(domain.train.cams)
    source = Source(
        domain.name,
        images,
        pids,
        cams,
        torch.from_numpy(_homes(domain.train)),
        validation,
        model,
        classifier,
    )
    _fit(source, model, options, run)
    return source


def check_identities(domain: Domain) -> None:
    """Refuse a domain that nobody labelled as a source.

    Raises:
        DataError: its training images have no identities.
    """
    if not domain.labelled:
        raise DataError(
            f"{domain.root}: its training images have no identities, so no source model can be trained on them; "
            "adapt to it, or give the identities by a folder for each or in a manifest.csv"
        )


def _homes(split: Split) -> Ids:
    """Return the number of the domain that every image comes from."""
    return np.zeros(len(split), dtype=np.int64) if split.domains is None else split.domains


def _renumber(split: Split, share: float, run: Run) -> tuple[Tensor, Tensor]:
    """Return identities 0..C-1 with the held-out ones last, and the held-out rows: the same share of every domain."""
    identities, first, labels = np.unique(split.pids, return_index=True, return_inverse=True)
    homes = _homes(split)[first]
    drawn = []
    for home in np.unique(homes).tolist():
        own = np.flatnonzero(homes == home)
        # The first domain's draw is the one it has alone.
        generator = run.stream(f"pretrain/validation/{home}" if home else "pretrain/validation")
        order = torch.randperm(len(own), generator=generator).numpy()
        drawn.append(own[order[: int(share * len(own))]])
    held_out = np.sort(np.concatenate(drawn))
    number = np.empty(len(identities), dtype=np.int64)
    number[np.concatenate([np.setdiff1d(np.arange(len(identities)), held_out), held_out])] = np.arange(len(identities))
    renumbered = torch.from_numpy(number[labels])
    return renumbered, torch.nonzero(renumbered >= len(identities) - len(held_out)).flatten()


def _fit(source: Source, model: Embedder, options: Pretrain, run: Run) -> None:
    classifier = source.classifier
    parameters = [*model.parameters(), *classifier.parameters()]
    optimizer = make_optimizer(options, [parameter for parameter in parameters if parameter.requires_grad])
    run.prepare(model, optimizer)
    run.prepare(classifier, optimizer)
    rows, triplet = source.training, options.loss == "identification+triplet"
    size = int(model.spec["height"]), int(model.spec["width"])

    def batches(epoch: int) -> Batches:
        generator = run.stream(f"pretrain/rows/{epoch}")
        if triplet:
            identities = max(options.batch // options.instances, 2)
            plan = identity_balanced(
                source.pids,
                identities=identities,
                instances=options.instances,
                generator=generator,
                rows=rows,
            )
        else:
            plan = shuffled(rows, options.batch, generator)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(options, epoch)
        return Batches(
            source.images,
            source.pids,
            plan,
            size=size,
            augmentation=options.augmentation,
            name=f"pretrain/augmentation/{epoch}",
            run=run,
        )

    def step(batch: Batch) -> Mapping[str, Tensor]:
        model.train()
        classifier.train()
        with run.autocast():
            pooled = model.pooled(batch.images)
            pooled, embeddings = (run.gather(each, len(batch.rows)) for each in (pooled, model.neck(pooled)))
            logits = classifier(embeddings)
        terms = {"identification": identification(logits.float(), batch.labels, smoothing=options.smoothing)}
        if triplet:
            terms["triplet"] = batch_hard_triplet(pooled.float(), batch.labels, margin=options.margin)
        run.step(torch.stack(list(terms.values())).sum(), optimizer)
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return {**terms, "accuracy": accuracy}

    parts: dict[str, Stateful] = {"encoder": model, "classifier": classifier, "optimizer": optimizer}
    history = train(step, batches, epochs=options.epochs, parts=parts, name="pretrain", run=run)
    if history:
        run.log(
            f"pretrained on {source.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in history[-1].items())
        )
    model.eval()
    classifier.eval()


def make_optimizer(options: Pretrain, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that `options` names, over `parameters`."""
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)


def rate(options: Pretrain, epoch: int) -> float:
    """Return what the learning rate is multiplied with in `epoch`, counted from 0.

    >>> [round(rate(Pretrain(warmup=2, milestones=(4,)), epoch), 2) for epoch in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.1, 0.1]
    >>> [round(rate(Pretrain(warmup=0, schedule="cosine", epochs=4), epoch), 2) for epoch in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    if epoch < options.warmup:
        return (epoch + 1) / options.warmup
    if options.schedule == "step":
        return float(0.1 ** sum(epoch >= milestone for milestone in options.milestones))
    if options.schedule == "cosine":
        done = (epoch - options.warmup) / max(options.epochs - options.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def validate(source: Source, *, run: Run = QUIET) -> Mapping[str, float]:
    """Return mAP and rank-1 of the encoder on the source's held-out identities, or nothing where none are held out.

    Every held-out image searches among the others, those of all domains; images of its own camera count only where no
    cameras are known.
    """
    rows = source.validation
    if not len(rows):
        return {}
    features = extract(source.encoder, source.images, rows=rows, run=run, description=f"{source.name} validation")
    pids = source.pids[rows].numpy() + 1
    # Without cameras every image is a camera of its own: that leaves out the query itself and nothing else.
    cams = np.arange(len(rows)) if source.cams is None else source.cams[rows].numpy()
    ranking = rank(features, features, query_pids=pids, gallery_pids=pids, query_cams=cams, gallery_cams=cams)
    if not ranking.valid.any():
        return {}
    return {"mean_ap": ranking.mean(ranking.average_precision), "rank1": ranking.cmc((1,))[1]}
