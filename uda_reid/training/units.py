"""The units of an encoder, relu(embedding): which matter to a domain as its batch norm sees it, and classifiers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from uda_reid.data.images import augment
from uda_reid.errors import DataError
from uda_reid.models.batch_norm import batch_norms, grouped
from uda_reid.models.heads import Classifier
from uda_reid.ops.clustering import cluster_means
from uda_reid.ops.distance import normalise
from uda_reid.ops.impact import held_out_scores, normalised
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Images, Source

STATISTICS_BATCH = 128
NEARLY_ALL = 0.98
"""A domain that keeps more of its units hardly differs from one without a mask."""


def domain_names(source: Source) -> tuple[str, ...]:
    """Return what the source's domains are called in a history: `source`, or `source 1`, `source 2` and so on."""
    count = int(source.domains.max()) + 1
    return tuple(f"source {number + 1}" for number in range(count)) if count > 1 else ("source",)


def scored_on_training(source: Source) -> tuple[str, ...]:
    """Return the names of the domains whose units are scored on images that the encoder was trained on."""
    names, held_out = enumerate(domain_names(source)), set(source.validation.tolist())
    return tuple(name for domain, name in names if not held_out.issuperset(scored_rows(source, domain).tolist()))


def scored_rows(source: Source, domain: int) -> Tensor:
    """Return the rows (M,) int64 that a source domain's units are scored on.

    They are those of its held-out people, whom the encoder was not trained to tell apart: of the people it was trained
    on it may make too much. Where less than two of them have two images, they are its training rows.
    """
    for rows in (source.validation, source.training):
        mine = rows[source.domains[rows] == domain]
        counts = torch.unique(source.pids[mine], return_counts=True)[1]
        if int((counts > 1).sum()) > 1:
            break
    return mine


def with_statistics(
    encoder: Encoder, images: Images, rows: Tensor | None = None, *, name: str, run: Run = QUIET
) -> Encoder:
    """Return a copy of `encoder` whose batch norm has the statistics of these rows, each batch normalised by itself.

    Args:
        encoder: any; one without batch norm is copied as it is.
        images: where pictures come from.
        rows: (M,) int64, at least two; default: all.
        name: names the random stream that deals the rows into batches.
        run: the surroundings.

    Raises:
        DataError: there is less than two rows: one has no variance.
    """
    rows = torch.arange(len(images)) if rows is None else rows
    if len(rows) < 2:
        raise DataError(f"{len(rows)} image has no variance for batch norm; use at least 2, or batch_norm: mixed")
    own, size = copy.deepcopy(encoder).eval(), (int(encoder.spec["height"]), int(encoder.spec["width"]))
    grouped(own, 0)  # these parts are of any size
    run.prepare(own)
    layers = batch_norms(own)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:  # alone in training mode: dropout would thin the network, and draw from torch's global numbers
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    order = rows[torch.randperm(len(rows), generator=run.stream(name))]
    # Parts that differ by at most one image: a last batch of a few would count as much as a whole one.
    plan = torch.tensor_split(order, max(1, len(order) // STATISTICS_BATCH))
    with torch.no_grad(), run.autocast():
        for part in plan:
            mine = part[run.share(len(part))]
            own(augment(images.read(mine, *size).to(run.device), "none"))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    grouped(own, int(encoder.spec.get("bn_group", 0)))
    return own.eval()


def score_sources(
    source: Source,
    encoder: Encoder,
    *,
    decay: float,
    steps: int,
    apart: bool = False,
    name: str = "units",
    run: Run = QUIET,
) -> Tensor:
    """Return the normalised impact scores of every unit in every source domain.

    Args:
        source: the labelled side.
        encoder: the encoder as it stands.
        decay: of the classifiers that the impact is measured by (`ops.impact.fit`).
        steps: of their fit.
        apart: whether batch norm sees each domain by the domain's own statistics, or all by the encoder's.
        name: names the random streams.
        run: the surroundings.

    Returns:
        (D, K) float64 on the CPU, as of `ops.impact.normalised`.

    Raises:
        DataError: a domain has less than two people with two images.
    """
    found = []
    for domain, title in enumerate(domain_names(source)):
        rows, seen = scored_rows(source, domain), encoder
        if apart:
            everyone = source.training[source.domains[source.training] == domain]
            seen = with_statistics(encoder, source.images, everyone, name=f"{name}/{title}/statistics", run=run)
        units = extract(seen, source.images, rows=rows, run=run, description=f"units of {title}").relu()
        generator = run.stream(f"{name}/{title}")
        try:
            found.append(held_out_scores(units, source.pids[rows], generator, decay=decay, steps=steps))
        except DataError as error:
            raise DataError(
                f"units of {title} cannot be scored: {error}; leave it out, or give it more images"
            ) from None
    return normalised(torch.stack(found))


def score_clusters(features: Tensor, labels: Tensor, *, decay: float, steps: int, generator: torch.Generator) -> Tensor:
    """Return the normalised impact scores (K,) float64 of embeddings (N, K) float32 in clusters (N,) int64.

    Raises:
        DataError: less than two clusters have two images.
    """
    try:
        scores = held_out_scores(features.relu(), labels, generator, decay=decay, steps=steps)
    except DataError as error:
        remedy = "give it more images, use fewer clusters, or adapt.target_scores=source_mean"
        raise DataError(f"units of the target cannot be scored by its clusters: {error}; {remedy}") from None
    return normalised(scores[None])[0]


def poor_guides(scores: Tensor, names: Sequence[str], *, first: bool) -> Iterator[str]:
    """Yield which domains' scores (D, K) are no guide, in words; `first`: of the deterministic mask.

    >>> list(poor_guides(torch.tensor([[1.0, -1.0], [-0.5, 0.0]]), ["source", "target"], first=True))
    ['no unit matters to target: its deterministic mask drops them all']
    """
    for name, share in zip(names, (scores > 0).float().mean(1).tolist(), strict=False):
        if share == 0:
            what = "its deterministic mask drops them all" if first else "none is kept by a chance above one half"
            yield f"no unit matters to {name}: {what}"
        elif first and share > NEARLY_ALL:
            yield f"{share:.0%} of the units matter to {name}: its mask hardly differs from none"


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return weights (C, K) float32 for a classifier of units: how the mean direction of every class differs from all.

    Units are never negative, and all of their mean directions are alike. What they share would give every image, also
    one of other classes of the same softmax, a large logit for all of them; as in a trained classifier they sum to 0.

    Args:
        features: (N, K) float32 embeddings.
        labels: (N,) int64; every number from 0 to C - 1 occurs, rows with a negative label are in no mean.
        classes: C.

    Returns:
        (C, K) float32 of length 1, or 0 where a class does not differ.

    >>> class_means(torch.tensor([[3.0, -9.0], [4.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[ 0.7071, -0.7071],
            [-0.7071,  0.7071]])
    """
    means = cluster_means(normalise(features.relu()), labels, classes)
    return normalise(means - means.mean(0))


def source_classes(source: Source, *, run: Run = QUIET) -> dict[str, Tensor]:
    """Return `weight` (C, K) and `bias` (C,) of a classifier of units for the source's identities.

    They are those of the source's own classifier where it sees units; one that sees embeddings is of no use behind a
    ReLU, and the mean units of every identity take its place.
    """
    rows, classifier = source.training, source.classifier
    if isinstance(classifier, Classifier) and classifier.rectified:
        return {key: value.detach().cpu().clone() for key, value in classifier.linear.state_dict().items()}
    classes = int(source.pids[rows].max()) + 1
    encoder = copy.deepcopy(source.encoder)  # which `extract` may bring to another device
    features = extract(encoder, source.images, rows=rows, run=run, description="units of the source")
    return {"weight": class_means(features, source.pids[rows], classes), "bias": torch.zeros(classes)}


def merged_classifier(known: Mapping[str, Tensor], means: Tensor, *, generator: torch.Generator) -> Classifier:
    """Return one classifier of units for the classes that are known and, behind them, those of which only means are.

    What all known classes share is taken out of their weights and biases. Among themselves that changes no probability,
    but it would lift or lower all of them beside the others, whose weights sum to 0. For the same reason the others are
    scaled to the known ones' length.

    Args:
        known: `weight` (C, K) and `bias` (C,), as of `source_classes`.
        means: (M, K) float32, as of `class_means`; their biases are 0.
        generator: what the classifier draws from before it is filled.
    """
    weight, bias = (known[key] - known[key].mean(0) for key in ("weight", "bias"))
    head = Classifier(means.shape[1], len(bias) + len(means), generator=generator)
    with torch.no_grad():
        head.linear.weight.copy_(torch.cat([weight, weight.norm(dim=1).mean() * means]))
        head.linear.bias[: len(bias)] = bias
    return head
