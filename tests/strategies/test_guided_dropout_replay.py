from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.float64 import assert_same, at_double, doubled, rounded
from uda_reid.data.sampling import endless
from uda_reid.models.heads import Classifier
from uda_reid.ops.clustering import kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.impact import held_out_scores, normalised
from uda_reid.run import Run
from uda_reid.strategies.guided_dropout import GuidedDropout
from uda_reid.testing import HEIGHT, WIDTH
from uda_reid.training.features import extract
from uda_reid.training.units import class_means
from uda_reid.types import Encoder, Source, Target

QUICK = GuidedDropout(
    deterministic=1, stochastic=1, clusters=5, iterations=2, batch=6, lr=0.01, augmentation="none", head_decay=0.01
)


embedded = rounded(extract)


def scores_by_hand(
    source: Source, encoder: Encoder, features: Tensor, labels: Tensor, run: Run, epoch: int, *, apart: bool
) -> Tensor:
    """The scores of every domain, one domain and one half at a time, as `ops.impact` (tested there) makes them."""
    rows = []
    for domain, title in enumerate(["source 1", "source 2"] if bool(source.domains.any()) else ["source"]):
        used = source.training
        mine = trained = used[source.domains[used] == domain]
        if len(source.validation):
            mine = source.validation[source.domains[source.validation] == domain]
        seen = restated(encoder, source.images.read(trained, HEIGHT, WIDTH)) if apart else encoder
        units = embedded(seen, source.images)[mine].clamp(min=0)
        stream = run.stream(f"guided_dropout/scores/{epoch}/{title}")
        rows.append(held_out_scores(units, source.pids[mine], stream, decay=0.01))
    stream = run.stream(f"guided_dropout/scores/{epoch}/target")
    rows.append(held_out_scores(features.clamp(min=0), labels, stream, decay=0.01))
    return normalised(torch.stack(rows)).float()


def restated(encoder: Encoder, images: Tensor) -> Encoder:
    """A copy that has seen all images, (N, 3, H, W) uint8, in one batch, and no others."""
    seen = copy.deepcopy(encoder)
    layers = [layer for layer in seen.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad(), doubled():
        seen.train()(images.float() / 255)
    for layer in layers:
        layer.momentum = 0.1
    return seen.eval()


def mask_by_hand(scores: list[float], uniforms: list[float] | None) -> list[float]:
    """One row's mask in plain numbers; deterministic without uniform numbers."""
    if uniforms is None:
        kept = sum(score > 0 for score in scores)
        return [len(scores) / kept if score > 0 else 0.0 for score in scores]
    chances = [1 / (1 + pow(2.718281828459045, -score)) for score in scores]
    return [len(scores) / sum(chances) * (u <= p) for u, p in zip(uniforms, chances, strict=True)]


def means(units: Tensor, labels: Tensor, classes: int) -> Tensor:
    found = torch.stack([normalise(units)[labels == label].mean(0) for label in range(classes)])
    return normalise(found - found.mean(0))


@pytest.mark.parametrize(
    ("kind", "statistics", "phases", "rates"),
    [
        ("two domains, hidden layer", "target", (1, 1), (0.05, 0.05)),
        ("two domains, hidden layer", "mixed", (0, 2), (0.05, 0.05 * 0.5**1.5)),
        ("two domains, people held out", "target", (1, 2), (0.05, 0.05, 0.05 * 0.5**1.5)),
        ("one domain, no hidden layer", "mixed", (1, 1), (0.05, 0.05)),
        ("one domain, no hidden layer", "target", (2, 0), (0.05, 0.05 * 0.5**1.5)),
    ],
)
def test_epochs_are_those_of_plain_torch(
    kind: str, statistics: Any, phases: tuple[int, int], rates: tuple[float, ...],
    hidden: Source, held_out: Source, source: Source, target: Target, float64: None,
) -> None:  # fmt: skip
    given = at_double({"two domains, hidden layer": hidden, "two domains, people held out": held_out}.get(kind, source))
    domains = int(given.domains.max()) + 1
    run = Run(seed=3)
    deterministic, stochastic = phases
    strategy = replace(
        QUICK, lr=0.05, power=1.5, momentum=0.8, weight_decay=0.01, deterministic=deterministic, stochastic=stochastic,
        batch_norm=statistics,
    )  # fmt: skip
    result = strategy.adapt(given, target, run=run)
    encoder = copy.deepcopy(given.encoder)
    dim = encoder.dim
    used, people = given.training, int(given.pids[given.training].max()) + 1
    own = embedded(encoder, given.images)[used]
    weight, bias = class_means(own, given.pids[used], people), torch.zeros(people)
    torch.testing.assert_close(weight, means(own.clamp(min=0), given.pids[used], people), rtol=0, atol=1e-6)
    if domains == 2:
        assert isinstance(given.classifier, Classifier)
        weight, bias = (each.detach().clone() for each in given.classifier.linear.parameters())
    if statistics == "target":
        encoder = restated(encoder, target.images.read(torch.arange(24), HEIGHT, WIDTH))
    scores = torch.zeros(0)
    losses: list[list[float]] = []
    for epoch, rate in enumerate(rates):
        features = embedded(encoder, target.images)
        clusters = kmeans(normalise(features), 5, generator=run.stream(f"guided_dropout/kmeans/{epoch}")).labels
        if epoch in (0, deterministic):
            scores = scores_by_hand(given, encoder, features, clusters, run, epoch, apart=statistics == "target")
            assert 0 < float((scores > 0).float().mean()) < 1
        others = class_means(features, clusters, 5)
        torch.testing.assert_close(others, means(features.clamp(min=0), clusters, 5), rtol=0, atol=1e-6)  # float32
        weight, bias = weight - weight.mean(0), bias - bias.mean()
        others = others * weight.norm(dim=1).mean()
        weight, bias = torch.cat([weight, others]), torch.cat([bias, torch.zeros(5)])
        weight, bias = (each.to(torch.float32).double().requires_grad_() for each in (weight, bias))  # as a new head is
        weights = [each for each in (*encoder.parameters(), weight, bias) if each.requires_grad]
        speeds = [torch.zeros_like(each) for each in weights]
        name = f"guided_dropout/epoch/{epoch}"
        titles = [*(["source 1", "source 2"] if domains == 2 else ["source"]), "target"]
        pools = [used[given.domains[used] == domain] for domain in range(domains)]
        plans = [
            islice(endless(rows, 6, run.stream(f"{name}/{title}/rows")), 2)
            for rows, title in zip([*pools, torch.arange(24)], titles, strict=True)
        ]
        draws, again = (run.stream(f"{name}/masks") for _ in range(2))
        encoder.train()
        losses.append([])
        with doubled():
            for parts in zip(*plans, strict=True):
                pictures = [given.images.read(rows, HEIGHT, WIDTH) for rows in parts[:-1]]
                pictures.append(target.images.read(parts[-1], HEIGHT, WIDTH))
                labels = torch.cat([*(given.pids[rows] for rows in parts[:-1]), clusters[parts[-1]] + people])
                uniforms = torch.rand(len(labels), dim, generator=again)
                of_row = torch.arange(len(labels)) // 6
                by_hand = [
                    mask_by_hand(scores[domain].tolist(), None if epoch < deterministic else u.tolist())
                    for domain, u in zip(of_row, uniforms, strict=True)
                ]
                mask = strategy.mask(scores, of_row, draws, first=epoch < deterministic)
                torch.testing.assert_close(
                    mask.double(), torch.tensor(by_hand), rtol=1e-6, atol=0
                )  # scores are float32
                if statistics == "mixed":
                    units = encoder(torch.cat(pictures).float() / 255).clamp(min=0)
                else:
                    copied = [{key: value.clone() for key, value in encoder.named_buffers()} for _ in pictures[:-1]]
                    known = [
                        functional_call(encoder, buffers, (each.float() / 255,))
                        for buffers, each in zip(copied, pictures[:-1], strict=True)
                    ]
                    units = torch.cat([*known, encoder(pictures[-1].float() / 255)]).clamp(min=0)
                logits = (units * mask) @ weight.T + bias
                loss = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
                losses[-1].append(float(loss.detach()))
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for each, speed, gradient in zip(weights, speeds, gradients, strict=True):
                        speed.mul_(0.8).add_(gradient + 0.01 * each)
                        each.sub_(rate * speed)
        weight, bias = weight.detach()[:people], bias.detach()[:people]
        reported = [value for key, value in result.history[epoch].items() if key.startswith("loss")]
        assert sum(reported) / (domains + 1) == pytest.approx(sum(losses[-1]) / 2, rel=1e-6)
    assert_same(result.encoder, encoder, start=given.encoder)
