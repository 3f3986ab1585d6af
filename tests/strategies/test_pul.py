from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from tests.float64 import assert_same, at_double, doubled, rounded
from uda_reid.data.images import augment, unlabelled
from uda_reid.data.sampling import shuffled
from uda_reid.models.heads import Classifier
from uda_reid.ops.noise import keys
from uda_reid.run import Run
from uda_reid.strategies.pul import PUL, reliable
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint, tiny_domain, tiny_source
from uda_reid.training.features import extract
from uda_reid.types import Source, Target

QUICK = PUL(clusters=5, rounds=2, epochs=1, batch=8, lr=0.05, tolerance=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tiny_domain(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return unlabelled(tiny_domain(tmp_path_factory.mktemp("target"), name="target", seed=1))


def features(rows: int = 60, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).abs()


def test_pul_keeps_every_promise_of_a_strategy() -> None:
    check_strategy(QUICK, without_training=replace(QUICK, rounds=0))


# What the selection rule promises


def test_selection_never_grows_with_the_threshold() -> None:
    clusters, _ = PUL(clusters=6).choose(features())
    centres = features()[:6]
    sizes = []
    for threshold in (-1.0001, 0.0, 0.5, 0.8, 0.9, 0.99, 1.001):
        sizes.append(int(reliable(features(), centres, clusters.labels, threshold=threshold, select="any").sum()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 60
    assert sizes[-1] == 0


@pytest.mark.parametrize("select", ["any", "own"])
def test_selection_just_below_one_keeps_the_centres(select: str) -> None:
    _, kept = PUL(clusters=6, threshold=0.9999, select=select).choose(features())  # type: ignore[arg-type]
    assert 1 <= int(kept.sum()) <= 6


@pytest.mark.parametrize("select", ["any", "own"])
def test_selection_is_invariant_to_scale_and_rotation(select: str) -> None:
    strategy = PUL(clusters=6, threshold=0.9, select=select)  # type: ignore[arg-type]
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    points = features(300)  # enough that no cluster has two members, equally near to their centroid
    clusters, kept = strategy.choose(points)
    for changed in (points * 7.5, points @ rotation):
        other, other_kept = strategy.choose(changed)
        assert adjusted_rand_score(other.labels, clusters.labels) == pytest.approx(1.0)
        assert torch.equal(other_kept, kept)


def test_own_centre_selects_a_part_of_what_any_centre_selects() -> None:
    _, any_centre = PUL(clusters=6, threshold=0.9).choose(features())
    _, own_centre = PUL(clusters=6, threshold=0.9, select="own").choose(features())
    assert bool((any_centre | ~own_centre).all())
    assert int(own_centre.sum()) < int(any_centre.sum()) < 60


def test_selection_gives_the_worked_example() -> None:
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.6]])
    labels = torch.tensor([0, 0, 1, 1])
    for threshold, expected in ((0.85, [True, True, True, False]), (0.7, [True] * 4)):
        assert reliable(points, points[[0, 2]], labels, threshold=threshold, select="any").tolist() == expected


def test_as_many_clusters_as_samples_selects_all() -> None:
    clusters, kept = PUL(clusters=60, threshold=0.9999).choose(features())
    assert len(torch.unique(clusters.labels)) == 60
    assert bool(kept.all())


def test_zero_learning_rate_keeps_the_selection_constant(source: Source, target: Target) -> None:
    # Batch norm's running statistics would move even so: they are frozen here by a momentum of zero.
    still = copy.deepcopy(source.encoder)
    for module in still.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    result = replace(QUICK, lr=0.0, rounds=3, select="own", threshold=0.99).adapt(
        replace(source, encoder=still), target
    )
    before, after = extract(still, target.images), extract(result.encoder, target.images)
    assert torch.equal(before, after)
    strategy = replace(QUICK, select="own", threshold=0.99)
    for number, entry in enumerate(result.history):
        assert entry["selected"] == float(strategy.choose(before, number=number)[1].sum())


def test_separate_blobs_are_found_exactly() -> None:
    truth = torch.arange(40) % 4
    points = 10 * torch.eye(4)[truth] + 0.1 * features(40, 4)
    clusters, kept = PUL(clusters=4).choose(points)
    assert bool(kept.all())
    assert adjusted_rand_score(truth, clusters.labels) == pytest.approx(1.0)


# The whole method, against plain torch


def test_one_round_equals_a_replay_in_plain_torch(source: Source, target: Target, float64: None) -> None:
    strategy, run, source = replace(QUICK, rounds=1, dropout=0.0), Run(seed=5), at_double(source)
    result = strategy.adapt(source, target, run=run)

    encoder = copy.deepcopy(source.encoder)
    embedded = rounded(extract)(encoder, target.images)
    clusters, _ = strategy.choose(embedded, run=run)
    distances = torch.cdist(embedded.double(), clusters.centroids.double())
    centres = nn.functional.normalize(embedded[distances.argmin(0)].double())
    kept = ((nn.functional.normalize(embedded.double()) @ centres.T) > 0.85).any(1)
    rows = kept.nonzero().flatten()
    head = Classifier(encoder.dim, 5, std=0.001, generator=run.stream("pul/round/0/head")).double()
    weights = [*encoder.parameters(), *head.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    encoder.train()
    seed = run.seed_for("pul/round/0/augmentation/0")
    with doubled():
        for batch in shuffled(rows, 8, run.stream("pul/round/0/rows/0")):
            pictures = augment(target.images.read(batch, HEIGHT, WIDTH), "ide", keys(seed, batch))
            logits = head(encoder(pictures))
            loss = -logits.log_softmax(1)[torch.arange(len(batch)), clusters.labels[batch]].mean()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, speed, gradient in zip(weights, velocity, gradients, strict=True):
                    speed.mul_(0.9).add_(gradient)
                    weight.sub_(0.05 * speed)
    assert result.history[0]["selected"] == len(rows)
    assert_same(result.encoder, encoder, start=source.encoder)


def test_every_round_restarts_from_the_source_model_unless_told_otherwise(source: Source, target: Target) -> None:
    # Without learning, a restart gives the source's weights whatever the round; continuing lets weight decay add up.
    decaying = replace(QUICK, lr=0.01, weight_decay=5.0, rounds=1)
    one = decaying.adapt(source, target).encoder.state_dict()
    twice = replace(decaying, rounds=2).adapt(source, target).encoder.state_dict()
    on = replace(decaying, rounds=2, restart="previous").adapt(source, target).encoder.state_dict()
    name = next(key for key in one if key.endswith("weight") and one[key].dim() == 4)
    assert torch.isclose(twice[name].norm(), one[name].norm(), rtol=0.05)
    assert on[name].norm() < 0.97 * one[name].norm()


def test_pul_stops_when_nothing_is_reliable(source: Source, target: Target) -> None:
    result = replace(QUICK, threshold=1.1).adapt(source, target)
    assert result.history == ()
    assert result.facts["stopped"] == "after 0 rounds: 0 reliable images are too few to train on"
    assert fingerprint(result.encoder) == fingerprint(source.encoder)
    assert result.facts["target images in batch norm"] is False
    assert result.facts["target images used"] == "all, without labels"
    untouched = replace(QUICK, rounds=0).adapt(source, target)
    assert untouched.facts["target images used"] == "none"


def test_pul_trains_on_when_everything_is_reliable(source: Source, target: Target) -> None:
    result = replace(QUICK, threshold=-2.0).adapt(source, target)
    assert [entry["selected"] for entry in result.history] == [24.0, 24.0]


def test_pul_stops_once_the_reliable_set_is_stable(source: Source, target: Target) -> None:
    result = replace(QUICK, threshold=-2.0, tolerance=0.01, rounds=9).adapt(source, target)
    assert len(result.history) == 1
    assert "the reliable set changed by less than 1%" in str(result.facts["stopped"])


def test_probe_receives_a_snapshot_of_every_round(source: Source, target: Target) -> None:
    seen: list[tuple[int, list[int]]] = []

    def prober(encoder: nn.Module, step: int, pseudo_labels: Tensor | None) -> None:
        assert pseudo_labels is not None
        seen.append((step, pseudo_labels.tolist()))

    result = QUICK.adapt(source, target, run=Run(prober=prober))
    assert [step for step, _ in seen] == [1, 2]
    for (_, labels), entry in zip(seen, result.history, strict=True):
        assert sum(label >= 0 for label in labels) == entry["selected"]


def test_pul_refuses_options_out_of_range() -> None:
    for option in ({"clusters": 0}, {"select": "some"}, {"batch": 1}, {"dropout": 1.0}, {"rounds": -1}):
        with pytest.raises(ValidationError, match=next(iter(option))):
            PUL(**option)


def test_more_clusters_than_images_is_refused(source: Source, target: Target) -> None:
    from uda_reid.errors import DataError

    with pytest.raises(DataError, match="25"):
        replace(QUICK, clusters=25).adapt(source, target)
