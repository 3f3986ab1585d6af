from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from sklearn.cluster import DBSCAN
from torch import Tensor, nn

from tests.float64 import assert_same, at_double, doubled, rounded
from uda_reid.data.images import augment
from uda_reid.data.sampling import identity_balanced
from uda_reid.errors import DataError, RecipeError
from uda_reid.models.encoder import Embedder
from uda_reid.ops.noise import keys_of
from uda_reid.run import QUIET, Run
from uda_reid.strategies.cluster import Cluster
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.features import extract
from uda_reid.training.pseudo_labels import PseudoLabels
from uda_reid.types import Encoder, Source, Target

QUICK = Cluster(clusters=5, epochs=2, iterations=0, batch=8, instances=2, lr=0.01)
DENSE = replace(QUICK, method="dbscan", distance="euclidean", min_samples=2)
NEIGHBOURS = replace(DENSE, distance="jaccard", k1=4, k2=2)


def options_of(strategy: Cluster) -> dict[str, Any]:
    return {field.name: getattr(strategy, field.name) for field in fields(strategy)}


@pytest.mark.parametrize("strategy", [QUICK, DENSE, NEIGHBOURS, replace(QUICK, loss="triplet", iterations=3)])
def test_cluster_keeps_every_promise_of_a_strategy(strategy: Cluster) -> None:
    check_strategy(strategy, without_training=replace(strategy, epochs=0))


# The whole method, against plain torch


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    costs = []
    for row, label in zip(logits.log_softmax(1), labels.tolist(), strict=True):
        costs.append(-(1 - smoothing) * row[label] - smoothing * row.mean())
    return torch.stack(costs).mean()


def hard_triplets(embeddings: Tensor, labels: list[int], margin: float | None) -> Tensor:
    costs = []
    for anchor in range(len(labels)):
        rows = [row for row in range(len(labels)) if row != anchor]
        far = max((embeddings[anchor] - embeddings[row]).norm() for row in rows if labels[row] == labels[anchor])
        near = min((embeddings[anchor] - embeddings[row]).norm() for row in rows if labels[row] != labels[anchor])
        costs.append((far - near).exp().log1p() if margin is None else (margin + far - near).clamp(min=0))
    return torch.stack(costs).mean()


class Adam:
    """Adam with L2 decay, as in Kingma and Ba's algorithm 1 with the decay added to the gradient."""

    def __init__(self, weights: list[Tensor], lr: float, decay: float) -> None:
        self.weights, self.lr, self.decay, self.steps = weights, lr, decay, 0
        self.first = [torch.zeros_like(weight) for weight in weights]
        self.second = [torch.zeros_like(weight) for weight in weights]

    def step(self, loss: Tensor) -> None:
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.weights)
        for number, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            with torch.no_grad():
                gradient = gradient + self.decay * weight
                self.first[number] = 0.9 * self.first[number] + 0.1 * gradient
                self.second[number] = 0.999 * self.second[number] + 0.001 * gradient**2
                mean = self.first[number] / (1 - 0.9**self.steps)
                square = self.second[number] / (1 - 0.999**self.steps)
                weight -= self.lr * mean / (square.sqrt() + 1e-8)


@pytest.mark.parametrize("margin", [None, 0.4])
def test_two_epochs_equal_a_replay_in_plain_torch(
    source: Source, target: Target, margin: float | None, float64: None
) -> None:
    eps = 0.55
    strategy = replace(DENSE, eps=eps, smoothing=0.2, margin=margin, lr=1e-4, weight_decay=0.3)
    run, source = Run(seed=5), at_double(source)
    result = strategy.adapt(source, target, run=run)

    encoder = copy.deepcopy(source.encoder)
    assert isinstance(encoder, Embedder)
    sizes = []
    for epoch in range(2):
        features = rounded(extract)(encoder, target.images)
        found = strategy.label(features, eps=eps, run=run, epoch=epoch)
        directions = nn.functional.normalize(features.double())
        labels = torch.from_numpy(DBSCAN(eps=eps, min_samples=2, algorithm="brute").fit(directions).labels_)
        assert torch.equal(labels, found.labels)
        clusters = int(labels.max()) + 1
        sizes.append((float(clusters), float((labels >= 0).sum())))
        means = [directions[labels == number].mean(0) for number in range(clusters)]
        by_hand = torch.stack([mean / mean.norm() for mean in means])
        torch.testing.assert_close(found.centroids.double(), by_hand, rtol=0, atol=1e-6)  # they are float32
        centroids = found.centroids.double().requires_grad_()
        name = f"cluster/epoch/{epoch}"
        adam = Adam([*(weight for weight in encoder.parameters() if weight.requires_grad), centroids], 1e-4, 0.3)
        encoder.train()
        batches = list(identity_balanced(labels, identities=4, instances=2, generator=run.stream(f"{name}/rows")))
        with doubled():
            for rows, noise in zip(batches, keys_of(run.seed_for(f"{name}/augmentation"), batches), strict=True):
                pictures = augment(target.images.read(rows, HEIGHT, WIDTH), "reid", noise)
                pooled = encoder.pooled(pictures)
                loss = smoothed_cross_entropy(encoder.neck(pooled) @ centroids.T, labels[rows], 0.2)
                adam.step(loss + hard_triplets(pooled, labels[rows].tolist(), margin))
    assert [(entry["clusters"], entry["images"]) for entry in result.history] == sizes
    assert 2 < sizes[0][0] < 10 and sizes[0][1] < 24
    assert_same(result.encoder, encoder, start=source.encoder)


class Recorder:
    """Images that count how many rows were asked for at a time."""

    def __init__(self, target: Target) -> None:
        self.images, self.sizes = target.images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        self.sizes.append(len(rows))
        return self.images.read(rows, height, width)


@pytest.mark.parametrize(("iterations", "expected"), [(0, 3), (1, 1), (7, 7)])
def test_an_epoch_has_the_batches_asked_for(source: Source, target: Target, iterations: int, expected: int) -> None:
    recorder = Recorder(target)
    strategy = replace(QUICK, epochs=1, iterations=iterations, lr=0.0)
    strategy.adapt(source, replace(target, images=recorder))
    assert recorder.sizes == [24] + expected * [8]  # the features, then 4 clusters x 2 images


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("identification", {"identification"}),
        ("triplet", {"triplet"}),
        ("identification+triplet", {"identification", "triplet"}),
    ],
)
def test_the_losses_asked_for_are_trained_and_reported(
    source: Source, target: Target, loss: Any, terms: set[str]
) -> None:
    result = replace(QUICK, loss=loss).adapt(source, target)
    for entry in result.history:
        assert entry.keys() == {"clusters", "images", "outliers", "accuracy"} | terms
        assert (entry["clusters"], entry["images"], entry["outliers"]) == (5.0, 24.0, 0.0)
    # Only the classifier sees what lies behind the neck: without it, the neck's scale stays.
    moved = not torch.equal(result.encoder.state_dict()["neck.weight"], source.encoder.state_dict()["neck.weight"])
    assert moved == ("identification" in terms)


def test_the_classifier_starts_at_the_centroids(source: Source, target: Target) -> None:
    # Images that are trained on as they are, without learning: what is reported is what the centroids give.
    still = copy.deepcopy(source.encoder)
    for module in still.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = 0.0
    strategy = replace(QUICK, epochs=1, lr=0.0, augmentation="none", smoothing=0.0, iterations=1, batch=8, instances=4)
    result = strategy.adapt(replace(source, encoder=still), target)
    found = strategy.label(extract(still, target.images))
    stream = Run().stream("cluster/epoch/0/rows")
    rows = next(identity_balanced(found.labels, identities=2, instances=4, generator=stream))
    assert isinstance(still, Embedder)
    still.train()
    with torch.no_grad():
        logits = still(target.images.read(rows, HEIGHT, WIDTH) / 255) @ found.centroids.T
    expected = -logits.log_softmax(1)[torch.arange(8), found.labels[rows]].mean()
    assert result.history[0]["identification"] == pytest.approx(float(expected), rel=1e-5)
    accuracy = (logits.argmax(1) == found.labels[rows]).float().mean()
    assert result.history[0]["accuracy"] == pytest.approx(float(accuracy))


# DBSCAN's radius, and what happens when there is none


class Watched(Cluster):
    """Keeps the radius of every epoch: what it was asked to begin with, and what it found."""

    radii: ClassVar[list[tuple[float, float]]] = []

    def label(self, features: Tensor, *, eps: float = 0.0, run: Run = QUIET, epoch: int = 0) -> PseudoLabels:
        found = super().label(features, eps=eps, run=run, epoch=epoch)
        self.radii.append((eps, found.eps))
        return found


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.5])
def test_every_epoch_begins_with_the_radius_of_the_one_before(source: Source, target: Target, eps: float) -> None:
    Watched.radii.clear()
    result = Watched(**{**options_of(DENSE), "epochs": 3, "eps": eps}).adapt(source, target)
    begun, found = zip(*Watched.radii, strict=True)
    assert begun == (eps, *found[:2])
    assert [entry["eps"] for entry in result.history] == list(found)
    assert min(found) > 0.01
    rule = "by rule" if eps == 0 else "given"
    assert result.facts["DBSCAN"] == f"euclidean, eps {rule}, last {found[-1]:.3f}, min_samples 2"
    assert result.facts["number of clusters given"] == "none"


def test_changes_of_the_radius_are_recorded(source: Source, target: Target) -> None:
    result = replace(DENSE, eps=0.01).adapt(source, target)
    assert str(result.facts["eps changed"]).startswith("epoch 1: eps 0.01 finds 0 clusters, try 0.015; epoch 1: ")
    assert replace(DENSE, eps=0.55, epochs=1).adapt(source, target).facts["eps changed"] == "never"


class Alike:
    """A target whose images are all the same."""

    def __len__(self) -> int:
        return 10

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        return torch.full((len(rows), 3, height, width), 99, dtype=torch.uint8)


def test_a_target_without_clusters_ends_with_a_reason(source: Source) -> None:
    result = DENSE.adapt(source, Target("alike", Alike()))
    assert result.history == ()
    assert result.facts["stopped"] == "after 0 epochs: no two clusters were found"
    assert result.facts["eps changed"] == "epoch 1: no eps finds two clusters: all rows are left as outliers"
    assert result.facts["target images in batch norm"] is False
    assert fingerprint(result.encoder) == fingerprint(source.encoder)


class Failing(Cluster):
    """Finds nothing from its second epoch on."""

    def label(self, features: Tensor, *, eps: float = 0.0, run: Run = QUIET, epoch: int = 0) -> PseudoLabels:
        found = super().label(features, eps=eps, run=run, epoch=epoch)
        return found if epoch == 0 else PseudoLabels(torch.full_like(found.labels, -1), found.centroids[:0])


def test_clusters_that_are_lost_later_leave_the_last_encoder(source: Source, target: Target) -> None:
    result = Failing(**{**options_of(QUICK), "epochs": 5}).adapt(source, target)
    assert len(result.history) == 1
    assert result.facts["stopped"] == "after 1 epochs: no two clusters were found"
    assert fingerprint(result.encoder) == fingerprint(replace(QUICK, epochs=1).adapt(source, target).encoder)
    assert not result.encoder.training


# Records, resuming, refusals


def test_probe_receives_the_labels_of_every_epoch(source: Source, target: Target) -> None:
    seen: list[tuple[int, list[int]]] = []

    def prober(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
        assert pseudo_labels is not None
        seen.append((step, pseudo_labels.tolist()))

    result = DENSE.adapt(source, target, run=Run(prober=prober))
    assert [step for step, _ in seen] == [1, 2]
    for (_, labels), entry in zip(seen, result.history, strict=True):
        assert sum(label >= 0 for label in labels) == entry["images"]
        assert sum(label < 0 for label in labels) == entry["outliers"]
        assert len(set(labels) - {-1}) == entry["clusters"]


class Cut(Exception):
    """The power went off."""


class Fragile(CheckpointFolder):
    """Fails at a number of saves."""

    left = 0

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1
        super().save(name, state)


@pytest.mark.parametrize("saves", range(3))
def test_a_run_on_disk_goes_on_to_the_same_weights_and_facts(
    source: Source, target: Target, tmp_path: Path, saves: int
) -> None:
    strategy = replace(DENSE, eps=0.01, epochs=3)
    whole = strategy.adapt(source, target)
    store = Fragile(tmp_path)
    store.left = saves
    with pytest.raises(Cut, match=r"^$"):
        strategy.adapt(source, target, run=Run(store=store))
    store.left = -1
    resumed = strategy.adapt(source, target, run=Run(store=store))
    assert fingerprint(resumed.encoder) == fingerprint(whole.encoder)
    assert resumed.history == whole.history
    assert resumed.facts == whole.facts


class Plain(Encoder):
    """An encoder that is only what the interface asks for: one embedding."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.dim, self.spec = inner, inner.dim, inner.spec

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.inner(images)
        return features


def test_an_encoder_of_another_kind_trains_on_its_one_embedding(source: Source, target: Target) -> None:
    result = QUICK.adapt(replace(source, encoder=Plain(source.encoder)), target)
    assert len(result.history) == 2
    assert fingerprint(result.encoder) != fingerprint(Plain(source.encoder))


@pytest.mark.parametrize(
    "option",
    [
        {"clusters": 1},
        {"method": "optics"},
        {"loss": "none"},
        {"batch": 1},
        {"instances": 1},
        {"eps": -0.1},
        {"eps": 2.1},
        {"epochs": -1},
        {"margin": -1.0},
        {"smoothing": 1.0},
        {"cluster": 3},
    ],
)
def test_cluster_refuses_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        Cluster(**option)


def test_more_clusters_than_images_are_refused(source: Source, target: Target) -> None:
    with pytest.raises(DataError, match=r"^cannot make 25 clusters of 24 samples; choose from 1 to 24 clusters$"):
        replace(QUICK, clusters=25).adapt(source, target)


@pytest.mark.parametrize("option", [{"batch": 10}, {"batch": 4}, {"batch": 64, "instances": 48}])
def test_cluster_refuses_a_batch_that_is_no_whole_number_of_clusters(option: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"batch \d+ holds no whole number of clusters; give a multiple of instances"):
        replace(Cluster(), **option)
