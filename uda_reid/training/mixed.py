"""Labelled sources and a clustered target side by side: their batches, and how they are embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from uda_reid.data.sampling import endless, identity_balanced
from uda_reid.errors import RecipeError
from uda_reid.models.batch_norm import group_of, statistics_kept
from uda_reid.run import Run
from uda_reid.training.batches import Batches, SideBySide
from uda_reid.types import Batch, Encoder, Images, Source, Target


def mixed(
    source: Source,
    target: Target,
    clusters: Tensor,
    encoder: Encoder,
    *,
    batch: int,
    instances: int,
    batches: int,
    augmentation: str,
    name: str,
    run: Run,
) -> SideBySide:
    """Return pairs of batches: several images of each of several identities, and of each of several clusters.

    Args:
        source: its training rows are used, with their identities as labels.
        target: its rows in clusters are used, with these as labels; all, at random, where there are no two clusters.
            With fewer clusters than a batch has room for, its batches are smaller, as `identity_balanced` makes them.
        clusters: (N,) int64 cluster of every target row, -1 for none.
        encoder: whose size the images are read at.
        batch: images of either domain in a batch, a multiple of `instances`, at least twice that.
        instances: images of an identity or cluster in a batch.
        batches: how many; 0 for about as many as the target's rows fill.
        augmentation: a name from `data.images.AUGMENTATIONS`.
        name: names the random streams.
        run: the surroundings.

    Returns:
        The pairs, source first.

    Raises:
        DataError: the source has fewer than two identities to train on.
    """
    size = int(encoder.spec["height"]), int(encoder.spec["width"])

    def side(domain: str, images: Images, labels: Tensor, rows: Tensor, many: int) -> Batches:
        draw = run.stream(f"{name}/{domain}/rows")
        plan: Iterator[Tensor]
        if domain == "target" and len(torch.unique(labels[rows])) < 2:
            plan = islice(endless(torch.arange(len(labels)), batch, draw), many or -(-len(labels) // batch))
        else:
            people = batch // instances
            plan = identity_balanced(
                labels, identities=people, instances=instances, generator=draw, rows=rows, batches=many
            )
        noise = f"{name}/{domain}/augmentation"
        return Batches(images, labels, plan, size=size, augmentation=augmentation, name=noise, run=run)

    theirs = side("target", target.images, clusters, torch.nonzero(clusters >= 0).flatten(), batches)
    return SideBySide(side("source", source.images, source.pids, source.training, len(theirs)), theirs)


def every_domain(
    source: Source,
    target: Target,
    labels: Tensor,
    names: Sequence[str],
    encoder: Encoder,
    *,
    batch: int,
    batches: int,
    augmentation: str,
    name: str,
    run: Run,
) -> SideBySide:
    """Return batches of every source domain and of the target, rows in a random order that begins anew at its end.

    Args:
        source: the training rows of its domains are used, with their identities as labels.
        target: all its rows are used.
        labels: (N,) int64 label of every target row.
        names: what the domains are called, the target last; they name random streams.
        encoder: whose size the images are read at.
        batch: images of each domain in a batch.
        batches: how many.
        augmentation: a name from `data.images.AUGMENTATIONS`.
        name: names the random streams.
        run: the surroundings.

    Returns:
        The batches of every domain, in the order of `names`.
    """
    size = int(encoder.spec["height"]), int(encoder.spec["width"])

    def side(images: Images, labels: Tensor, rows: Tensor, domain: str) -> Batches:
        plan = islice(endless(rows, batch, run.stream(f"{name}/{domain}/rows")), batches)
        noise = f"{name}/{domain}/augmentation"
        return Batches(images, labels, plan, size=size, augmentation=augmentation, name=noise, run=run)

    parts = []
    for number, title in enumerate(names[:-1]):
        rows = source.training[source.domains[source.training] == number]
        parts.append(side(source.images, source.pids, rows, title))
    return SideBySide(*parts, side(target.images, labels, torch.arange(len(labels)), names[-1]))


def embed(module: nn.Module, batches: Sequence[Batch], *, apart: bool, run: Run) -> tuple[Tensor, ...]:
    """Return what `module` makes of the images of every domain, one domain below the other.

    Args:
        module: images (b, 3, H, W) to one tensor (b, ...), or to a tuple of them.
        batches: one of every domain, the target last.
        apart: batch norm normalises every domain by itself, and keeps the statistics of the target; else all together.
        run: the surroundings; of several processes each embeds its own images, and gets the embeddings of all.

    Returns:
        Every tensor, (B, ...) of all domains and processes.
    """
    images = [batch.images for batch in batches]
    _check_groups(module, images)
    parts = images if apart else [torch.cat(images)]
    with statistics_kept(module):
        known = [module(part) for part in parts[:-1]]
    found = [each if isinstance(each, tuple) else (each,) for each in (*known, module(parts[-1]))]
    sizes, totals = [len(each) for each in images], [len(batch.rows) for batch in batches]
    every = (torch.split(torch.cat(column), sizes) for column in zip(*found, strict=True))
    return tuple(torch.cat([*map(run.gather, domains, totals)]) for domains in every)


def _check_groups(module: nn.Module, images: Sequence[Tensor]) -> None:
    """Refuse a group of batch norm that would reach over two domains: over other ones on every process."""
    group = group_of(module)
    if group and any(len(each) % group for each in images):
        sizes = " and ".join(str(len(each)) for each in images)
        raise RecipeError(f"encoder.bn_group {group} does not divide the {sizes} images of the domains; choose another")
