from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from tests.float64 import assert_same, at_double, doubled, rounded
from uda_reid.data.images import augment
from uda_reid.data.sampling import identity_balanced
from uda_reid.errors import RecipeError
from uda_reid.models.branches import with_attention
from uda_reid.models.encoder import Embedder
from uda_reid.models.heads import DomainSimilarity
from uda_reid.ops.clustering import kmeans
from uda_reid.ops.losses import batch_hard_triplet
from uda_reid.run import Run
from uda_reid.strategies.daam import DAAM
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Source, Target

QUICK = DAAM(
    variant="v2",
    method="kmeans",
    clusters=5,
    epochs=2,
    iterations=2,
    batch=8,
    instances=2,
    milestones=(1,),
    augmentation="none",
)
DENSE = replace(QUICK, method="dbscan", k1=4, k2=2, eps=0.5, min_samples=2, iterations=0)


@pytest.mark.parametrize(
    "strategy",
    [
        QUICK,
        replace(DENSE, soft="nearness", one_class="svdd", attention="channel"),
        replace(QUICK, variant="v1", one_class="bce", batch_norm="mixed", attention="spatial", augmentation="reid"),
        replace(QUICK, variant="v1", unsupervised="identification", margin=None),
    ],
)
def test_daam_keeps_every_promise_of_a_strategy(strategy: DAAM) -> None:
    check_strategy(strategy, without_training=replace(strategy, epochs=0))


# One step, against plain torch


def step_by_hand(strategy: DAAM, source: Source, target: Target, run: Run) -> tuple[nn.Module, dict[str, float]]:
    """One step in plain torch, with what other tests have examined: sampling, clustering, heads, triplets."""
    start = source.encoder
    assert isinstance(start, Embedder)
    encoder = with_attention(start, "both", seed=run.seed_for("daam/attention"))
    late = nn.Sequential(encoder.trunk[encoder.last_stage :], encoder.pooling)
    specific_late, identities = copy.deepcopy(late), copy.deepcopy(source.classifier)
    domains = DomainSimilarity(encoder.dim, strategy.one_class, generator=run.stream("daam/domains"))
    features = rounded(extract)(encoder, target.images)
    found = strategy.label(features, run=run)
    labels, directions = found.labels, F.normalize(features.double())
    by_hand = kmeans(directions.float(), 5, generator=run.stream("daam/kmeans/0"))
    assert torch.equal(labels, by_hand.labels)
    centroids = F.normalize(found.centroids.double())
    torch.testing.assert_close(centroids, F.normalize(by_hand.centroids.double()), rtol=0, atol=1e-6)  # float32
    head = found.centroids.double().requires_grad_()
    for module in (specific_late, identities, domains):
        module.double()
    assert encoder.attention is not None
    fresh = [*encoder.attention.parameters(), *domains.parameters()]
    learned = [
        weight
        for module in (encoder, specific_late, identities)
        for weight in module.parameters()
        if weight.requires_grad and all(weight is not other for other in fresh)
    ]
    groups = [{"params": [*learned, head], "lr": strategy.lr}, {"params": fresh, "lr": strategy.fresh_lr}]
    adam = torch.optim.Adam(groups, weight_decay=strategy.weight_decay)
    streams = [run.stream(f"daam/epoch/0/{domain}/rows") for domain in ("source", "target")]
    mine = next(identity_balanced(source.pids, identities=4, instances=2, generator=streams[0]))
    theirs = next(identity_balanced(labels, identities=4, instances=2, generator=streams[1]))
    for module in (encoder, specific_late):
        module.train()

    def embedded(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = encoder.trunk[: encoder.last_stage]((pictures - encoder.mean) / encoder.std)
        assert encoder.attention is not None
        shared = encoder.attention.weights(maps) * maps
        pooled = late(shared)
        return pooled, encoder.neck(pooled), specific_late(maps - shared)

    with doubled():
        pictures = [
            augment(images.read(rows, HEIGHT, WIDTH), "none")
            for images, rows in ((source.images, mine), (target.images, theirs))
        ]
        if strategy.batch_norm == "mixed":
            pooled, embeddings, specific = embedded(torch.cat(pictures))
        else:
            layers = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
            kept = [copy.deepcopy(layer.state_dict()) for layer in layers]
            known = embedded(pictures[0])
            for layer, state in zip(layers, kept, strict=True):
                layer.running_mean, layer.running_var = state["running_mean"], state["running_var"]
            both = zip(known, embedded(pictures[1]), strict=True)
            pooled, embeddings, specific = (torch.cat(parts) for parts in both)
        terms = {
            "identification": F.cross_entropy(identities(embeddings[:8]), source.pids[mine]),
            "triplet": batch_hard_triplet(pooled[:8], source.pids[mine], margin=strategy.margin),
        }
        similarity, told = domains(pooled, specific, 8)
        terms |= {"similarity": similarity, "specific": told}
        logits = embeddings[8:] @ head.T
        triplet = batch_hard_triplet(pooled[8:], labels[theirs], margin=strategy.margin)
        if strategy.variant == "v1" and strategy.unsupervised == "identification":
            wanted = {"target identification": F.cross_entropy(logits, labels[theirs])}
        elif strategy.variant == "v1":
            wanted = {"target triplet": triplet}
        else:
            soft = F.one_hot(labels[theirs], 5) * (1 - strategy.smoothing) + strategy.smoothing / 5
            if strategy.soft == "nearness":
                soft = (directions[theirs] @ centroids.T / strategy.temperature).softmax(1)
            wanted = {"target identification": -(soft * logits.log_softmax(1)).sum(1).mean(), "target triplet": triplet}
        loss = terms["identification"] + terms["triplet"] + strategy.domain_weight * (similarity + told)
        loss = loss + strategy.target_weight * torch.stack(list(wanted.values())).sum()
        loss.backward()
        adam.step()
    return encoder, {term: float(value.detach()) for term, value in (terms | wanted).items()}


@pytest.mark.parametrize("batch_norm", ["target", "mixed"])
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "v1"},
        {"variant": "v1", "unsupervised": "identification", "one_class": "bce"},
        {"smoothing": 0.3, "margin": None},
        {"soft": "nearness", "temperature": 0.2, "one_class": "svdd"},
    ],
)
def test_a_step_is_that_of_plain_torch(
    source: Source, target: Target, options: dict[str, Any], batch_norm: Any, float64: None
) -> None:
    strategy = replace(
        QUICK, epochs=1, iterations=1, lr=1e-5, fresh_lr=2e-5, domain_weight=0.7, target_weight=0.4,
        batch_norm=batch_norm, **options,
    )  # fmt: skip
    run, source = Run(seed=5), at_double(source)
    result = strategy.adapt(source, target, run=run)
    encoder, terms = step_by_hand(strategy, source, target, run)
    entry = dict(result.history[0])
    assert {term: entry[term] for term in terms} == pytest.approx(terms, rel=1e-6, abs=1e-9)  # losses are float32
    assert entry.keys() - terms.keys() == {"clusters", "images", "outliers", "shared"}
    assert_same(result.encoder, encoder, start=source.encoder)


def test_weights_of_the_losses_and_the_readings_matter(source: Source, target: Target) -> None:
    usual = fingerprint(QUICK.adapt(source, target).encoder)
    others: list[dict[str, Any]] = [
        {"domain_weight": 1.0}, {"target_weight": 0.5}, {"variant": "v1"}, {"soft": "nearness"}, {"smoothing": 0.9},
        {"one_class": "bce"}, {"one_class": "svdd"}, {"margin": 2.0}, {"batch_norm": "mixed"}, {"milestones": (5,)},
        {"attention": "spatial"}, {"lr": 1e-4}, {"fresh_lr": 1e-4}, {"weight_decay": 0.1}, {"augmentation": "reid"},
        {"instances": 4},
    ]  # fmt: skip
    found = [fingerprint(replace(QUICK, **other).adapt(source, target).encoder) for other in others]
    assert len({usual, *found}) == 1 + len(others)


def test_epochs_after_a_milestone_have_a_tenth_of_the_rate(source: Source, target: Target) -> None:
    def moved(milestones: tuple[int, ...]) -> float:
        steps: list[dict[str, Tensor]] = []
        run = Run(prober=lambda encoder, step, labels: steps.append(copy.deepcopy(encoder.state_dict())))
        replace(QUICK, iterations=1, milestones=milestones, lr=1e-4).adapt(source, target, run=run)
        key = "trunk.conv1.weight"
        return float((steps[1][key] - steps[0][key]).abs().mean())

    assert moved((1,)) == pytest.approx(moved((5,)) / 10, rel=0.05)


# What comes of it


def test_result_is_the_shared_branch_with_its_attention(source: Source, target: Target) -> None:
    encoder = QUICK.adapt(source, target).encoder
    assert isinstance(encoder, Embedder)
    assert encoder.spec["attention"] == "both" and encoder.attention is not None
    assert not encoder.training
    maps = torch.rand(2, 96, 4, 2, generator=torch.Generator().manual_seed(0))
    assert not bool((encoder.attention.weights(maps) == 0.5).any())  # it has learned


def test_statistics_are_the_targets_alone_unless_they_are_mixed(source: Source, target: Target) -> None:
    """With a rate of 0 nothing but the running statistics moves, and these do not feel other source images."""

    class Dark:
        def __len__(self) -> int:
            return len(source.images)

        def read(self, rows: Tensor, height: int, width: int) -> Tensor:
            return source.images.read(rows, height, width) // 4

    still = replace(QUICK, lr=0.0, fresh_lr=0.0)
    dark = replace(source, images=Dark())
    usual, other = (fingerprint(still.adapt(each, target).encoder) for each in (source, dark))
    assert usual == other != fingerprint(with_attention(source.encoder, "both"))
    mixed = replace(still, batch_norm="mixed")
    usual, other = (fingerprint(mixed.adapt(each, target).encoder) for each in (source, dark))
    assert usual != other


def test_without_two_clusters_the_epoch_learns_source_and_domains(source: Source, target: Target) -> None:
    lonely = replace(QUICK, method="dbscan", eps=0.01, min_samples=20, k1=4, k2=2, epochs=1, iterations=3)
    seen: list[Tensor] = []
    run = Run(prober=lambda encoder, step, labels: seen.append(labels))  # type: ignore[arg-type]
    result = lonely.adapt(source, target, run=run)
    assert result.history[0]["clusters"] == 0
    terms = {"identification", "triplet", "similarity", "specific", "shared", "clusters", "images", "outliers", "eps"}
    assert set(result.history[0]) == terms
    assert seen[0].tolist() == [-1] * 24
    assert "eps 0.01 finds 0 clusters" in str(result.facts["eps changed"])
    assert fingerprint(result.encoder) != fingerprint(with_attention(source.encoder, "both"))


def test_history_probe_and_ledger_say_what_was_done(source: Source, target: Target) -> None:
    steps: list[tuple[int, str, int]] = []
    run = Run(prober=lambda encoder, step, labels: steps.append((step, fingerprint(encoder), len(labels))))  # type: ignore[arg-type]
    result = QUICK.adapt(source, target, run=run)
    assert [(step, rows) for step, _, rows in steps] == [(1, 24), (2, 24)]
    assert steps[1][1] == fingerprint(result.encoder) != steps[0][1]
    assert all(0.4 < entry["shared"] < 0.6 and entry["clusters"] == 5 for entry in result.history)
    known = {
        "target images used": "all, without labels", "target images in batch norm": True, "camera ids used": False,
        "source images used": "with labels", "number of clusters given": 5, "eps changed": "never",
        "target's loss": "v2: identification by smoothed labels and triplet",
        "checkpoint": "last",
    }  # fmt: skip
    assert result.facts == known
    radius = "none; DBSCAN, Jaccard, eps 0.5, min_samples 2"
    dense = DENSE.adapt(source, target)
    changed = ["epoch 1: ", "epoch 2: "]
    assert {**dense.facts, "eps changed": ""} == {**known, "number of clusters given": radius, "eps changed": ""}
    lowered = [entry["eps"] != 0.5 for entry in dense.history]
    assert [start in str(dense.facts["eps changed"]) for start in changed] == lowered
    v1 = replace(QUICK, variant="v1", epochs=0)
    assert v1.adapt(source, target).facts["target's loss"] == "v1: triplet"
    nothing = {"target images used": "none", "target images in batch norm": False, "source images used": "none"}
    assert replace(QUICK, epochs=0).adapt(source, target).facts == {**known, **nothing}


class Foreign(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.dim, self.spec = 3, {"height": HEIGHT, "width": WIDTH}


def test_encoder_without_stages_is_refused(source: Source, target: Target) -> None:
    with pytest.raises(RecipeError, match=r"^the encoder Foreign has no known last stage to part"):
        QUICK.adapt(replace(source, encoder=Foreign()), target)


@pytest.mark.parametrize("options", [{"batch": 10}, {"batch": 4}, {"batch": 64, "instances": 48}])
def test_batch_that_is_no_whole_number_of_identities_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^batch \d+ holds no whole number of identities; give a multiple"):
        DAAM(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "v3"},
        {"attention": "none"},
        {"one_class": "two"},
        {"temperature": 0.0},
        {"smoothing": 1.5},
        {"eps": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DAAM(**options)
