from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.float64 import NEAR, assert_same, doubled, use_float64
from uda_reid.data.sampling import identity_balanced, shuffled
from uda_reid.data.union import union
from uda_reid.errors import DataError
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.models.heads import Classifier
from uda_reid.ops.losses import batch_hard_triplet, identification
from uda_reid.pretraining import Pretrain, pretrain, rate, validate
from uda_reid.run import Run
from uda_reid.testing import HEIGHT, WIDTH, fingerprint, tiny_domain
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.features import extract
from uda_reid.types import UNKNOWN, Domain

SPEC = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none")
QUICK = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("tiny"))


def test_source_numbers_the_known_identities_first(domain: Domain) -> None:
    source = pretrain(domain, replace(QUICK, validation=0.4, epochs=0), encoder=SPEC)
    assert len(source.validation) == 8  # 2 of 6 identities, 4 images each
    assert set(source.pids[source.training].tolist()) == {0, 1, 2, 3}
    assert set(source.pids[source.validation].tolist()) == {4, 5}
    assert sorted([*source.training.tolist(), *source.validation.tolist()]) == list(range(24))
    for pid in np.unique(domain.train.pids):  # renumbering keeps identities together
        assert len(torch.unique(source.pids[torch.from_numpy(domain.train.pids == pid)])) == 1
    assert source.classifier(torch.zeros(1, source.encoder.dim)).shape == (1, 4)
    # Who is held out of a single domain depends on the seed alone.
    drawn = torch.randperm(6, generator=Run().stream("pretrain/validation"))[:2] + 1
    assert set(domain.train.pids[source.validation.numpy()].tolist()) == set(drawn.tolist())


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Another domain, of the same pids and cameras but fewer identities."""
    return tiny_domain(tmp_path_factory.mktemp("second"), name="second", identities=4, seed=1)


def test_every_domain_has_its_share_of_held_out_identities(domain: Domain, second: Domain) -> None:
    options = replace(QUICK, validation=0.5, epochs=0)
    for pair, sizes in (((domain, second), (24, 16)), ((second, domain), (16, 24))):
        for seed in range(4):
            run = Run(seed=seed)
            source = pretrain(union(pair), options, encoder=SPEC, run=run)
            assert source.domains.tolist() == [0] * sizes[0] + [1] * sizes[1]
            held = source.domains[source.validation]
            assert [int((held == home).sum()) for home in (0, 1)] == [size // 2 for size in sizes]
            assert set(source.pids[source.training].tolist()) == set(range(5))
            assert set(source.pids[source.validation].tolist()) == set(range(5, 10))
            assert source.classifier(torch.zeros(1, source.encoder.dim)).shape == (1, 5)
            # A domain that comes first holds out whom it holds out alone.
            alone = pretrain(pair[0], options, encoder=SPEC, run=run)
            assert torch.equal(source.validation[held == 0], alone.validation)


def test_nobody_and_no_camera_of_a_domain_is_taken_for_one_of_another(domain: Domain, second: Domain) -> None:
    source = pretrain(union([domain, second]), replace(QUICK, validation=0.5, epochs=0), encoder=SPEC)
    assert source.cams is not None
    for numbers in (source.pids, source.cams):
        of_each = [set(numbers[source.domains == home].tolist()) for home in (0, 1)]
        assert not of_each[0] & of_each[1]
    assert len(torch.unique(source.pids)) == 10 and len(torch.unique(source.cams)) == 4


def test_domains_of_one_are_all_the_first(domain: Domain) -> None:
    assert pretrain(domain, replace(QUICK, epochs=0), encoder=SPEC).domains.tolist() == [0] * 24


def test_validation_of_two_domains_is_that_of_a_loop_over_their_labels(domain: Domain, second: Domain) -> None:
    blind = replace(second, train=replace(second.train, cams=None))
    options = replace(QUICK, validation=0.5, epochs=0)
    for pair in ((domain, second), (domain, blind), (blind, domain)):
        source = pretrain(union(pair), options, encoder=SPEC)
        labels = [
            (home, int(pid), row if part.train.cams is None else int(part.train.cams[row]))
            for home, part in enumerate(pair)
            for row, pid in enumerate(part.train.pids)
        ]
        features = nn.functional.normalize(extract(source.encoder, source.images, rows=source.validation).double())
        held = [labels[row] for row in source.validation.tolist()]
        average_precisions, firsts = [], []
        for query, (home, pid, cam) in enumerate(held):
            # Removed are a person's images in one camera, and both are the query's only where the domain is too.
            kept = [row for row, label in enumerate(held) if label != (home, pid, cam)]
            kept.sort(key=lambda row: -float(features[query] @ features[row]))
            right = [held[row][:2] == (home, pid) for row in kept]
            assert any(right)
            places = [place for place, is_right in enumerate(right) if is_right]
            # Trapezoid rule: the mean of the precision with and without the match, as Market-1501's code has it.
            average_precisions.append(
                np.mean([((n / place if place else 1.0) + (n + 1) / (place + 1)) / 2 for n, place in enumerate(places)])
            )
            firsts.append(right[0])
        scores = validate(source)
        assert scores["mean_ap"] == pytest.approx(np.mean(average_precisions), abs=1e-6)
        assert scores["rank1"] == pytest.approx(np.mean(firsts), abs=1e-6)


def test_two_domains_train_and_resume_to_the_same_weights(domain: Domain, second: Domain, tmp_path: Path) -> None:
    joined, options = union([domain, second]), replace(QUICK, epochs=2)
    whole = pretrain(joined, options, encoder=SPEC)
    pretrain(joined, replace(options, epochs=1), encoder=SPEC, run=Run(store=CheckpointFolder(tmp_path)))
    resumed = pretrain(joined, options, encoder=SPEC, run=Run(store=CheckpointFolder(tmp_path)))
    assert fingerprint(resumed.encoder) == fingerprint(whole.encoder)
    assert fingerprint(whole.encoder) != fingerprint(pretrain(domain, options, encoder=SPEC).encoder)


def test_pretraining_repeats_bit_by_bit_and_differs_by_seed(domain: Domain) -> None:
    first = pretrain(domain, QUICK, encoder=SPEC)
    assert fingerprint(first.encoder) == fingerprint(pretrain(domain, QUICK, encoder=SPEC).encoder)
    assert fingerprint(first.encoder) != fingerprint(pretrain(domain, QUICK, encoder=SPEC, run=Run(seed=1)).encoder)


def test_pretraining_learns_the_training_identities(domain: Domain) -> None:
    options = replace(QUICK, epochs=12, lr=2e-3, batch=12)
    source = pretrain(domain, options, encoder=SPEC)
    with torch.inference_mode():
        pictures = source.images.read(torch.arange(24), HEIGHT, WIDTH).float() / 255
        predicted = source.classifier(source.encoder(pictures)).argmax(1)
    assert float((predicted == source.pids).float().mean()) > 0.9


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pretraining compute at double precision, as the replays do."""
    use_float64(["pretraining"], monkeypatch.setattr)


def test_one_ide_epoch_equals_a_replay_in_plain_torch(domain: Domain, float64: None) -> None:
    ide = Pretrain(
        loss="identification", smoothing=0.0, optimizer="sgd", lr=1e-3, weight_decay=0.0, epochs=1, warmup=0,
        schedule="constant", batch=16, augmentation="none", dropout=0.0, validation=0.0,
    )  # fmt: skip
    spec, run = replace(SPEC, neck="none"), Run(seed=2)
    source = pretrain(domain, ide, encoder=spec, run=run)
    start = build(spec, seed=run.seed_for("pretrain/encoder"))
    encoder = copy.deepcopy(start).double()
    head = Classifier(encoder.dim, 6, std=0.001, generator=run.stream("pretrain/classifier")).double()
    weights = [*encoder.parameters(), *head.parameters()]
    speeds = [torch.zeros_like(weight) for weight in weights]
    encoder.train()
    with doubled():
        for rows in shuffled(torch.arange(24), 16, run.stream("pretrain/rows/0")):
            logits = head(encoder(source.images.read(rows, HEIGHT, WIDTH).float() / 255))
            loss = -logits.log_softmax(1)[torch.arange(16), source.pids[rows]].mean()
            with torch.no_grad():
                for weight, speed, gradient in zip(weights, speeds, torch.autograd.grad(loss, weights), strict=True):
                    speed.mul_(0.9).add_(gradient)
                    weight.sub_(1e-3 * speed)
    assert_same(source.encoder, encoder, start=start)
    ours, expected = source.classifier.state_dict()["linear.weight"], head.state_dict()["linear.weight"]
    torch.testing.assert_close(ours, expected, rtol=NEAR, atol=NEAR)


def test_hidden_layer_is_classified_by_its_units_and_compared_before_its_batch_norm(
    domain: Domain, float64: None
) -> None:
    """One step, replayed: the classifier sees relu(embedding), and triplets the linear layer's output."""
    spec, run = replace(SPEC, hidden=12), Run(seed=2)
    options = replace(QUICK, batch=24, instances=4, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    source = pretrain(domain, options, encoder=spec, run=run)
    encoder = build(spec, seed=run.seed_for("pretrain/encoder")).double()
    weight = Classifier(12, 6, std=0.001, generator=run.stream("pretrain/classifier")).double().linear.weight
    bias = torch.zeros(6, requires_grad=True, dtype=torch.float64)
    rows = next(identity_balanced(source.pids, identities=6, instances=4, generator=run.stream("pretrain/rows/0")))
    encoder.train()
    with doubled():
        pooled = encoder.pooled(source.images.read(rows, HEIGHT, WIDTH).float() / 255)
        units = encoder.neck(pooled).clamp(min=0)
        loss = identification(units @ weight.T + bias, source.pids[rows], smoothing=0.1)
        loss = loss + batch_hard_triplet(pooled, source.pids[rows], margin=0.3)
    assert pooled.shape == (24, 12)
    shift = encoder.neck.get_parameter("bias")
    moved = torch.autograd.grad(loss, [weight, bias, shift, encoder.projection.get_parameter("weight")])
    ours = (*source.classifier.parameters(), source.encoder.get_parameter("neck.bias"))
    for now, before, gradient in zip(ours, (weight, bias, shift), moved, strict=False):
        torch.testing.assert_close(now, before - 0.1 * gradient, atol=NEAR, rtol=NEAR)
        assert bool(gradient.any())
    was, now = encoder.projection.get_parameter("weight"), source.encoder.get_parameter("projection.weight")
    torch.testing.assert_close(now, was - 0.1 * moved[3], atol=NEAR, rtol=NEAR)


def test_loss_at_the_start_is_the_logarithm_of_the_number_of_identities(domain: Domain) -> None:
    encoder = build(replace(SPEC, neck="none"))
    head = Classifier(encoder.dim, 751, std=0.001, generator=torch.Generator().manual_seed(0))
    features = encoder(torch.rand(16, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)))
    loss = nn.functional.cross_entropy(head(features), torch.arange(16))
    assert loss.item() == pytest.approx(math.log(751), abs=0.05)


def test_a_frozen_encoder_with_separable_features_is_classified_without_error() -> None:
    features = 5 * torch.eye(4).repeat(6, 1)
    head = Classifier(4, 4, std=0.001, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        Run().step(nn.functional.cross_entropy(head(features), torch.arange(24) % 4), optimizer)
    assert head(features).argmax(1).tolist() == [number % 4 for number in range(24)]


def test_rates_follow_the_schedule() -> None:
    options = Pretrain(warmup=10, milestones=(30, 50))
    assert rate(options, 0) == pytest.approx(0.1)
    assert rate(options, 9) == rate(options, 29) == pytest.approx(1.0)
    assert rate(options, 30) == pytest.approx(0.1)
    assert rate(options, 55) == pytest.approx(0.01)
    assert rate(replace(options, schedule="constant"), 55) == 1.0
    assert rate(replace(options, schedule="cosine"), 10) == 1.0
    assert 0 < rate(replace(options, schedule="cosine"), 59) < 0.01


def test_validation_scores_the_held_out_identities(domain: Domain) -> None:
    source = pretrain(domain, replace(QUICK, validation=0.5, epochs=0), encoder=SPEC)
    scores = validate(source)
    assert 0 < scores["mean_ap"] <= 1
    blind = replace(source, cams=None)
    assert 0 < validate(blind)["mean_ap"] <= 1
    assert validate(pretrain(domain, replace(QUICK, epochs=0), encoder=SPEC)) == {}


def test_validation_of_a_perfect_encoder_is_perfect(domain: Domain) -> None:
    source = pretrain(domain, replace(QUICK, validation=0.5, epochs=0), encoder=SPEC)
    oracle = copy.copy(source.encoder)

    class Perfect(type(oracle)):  # type: ignore[misc]
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = [int(((all_pictures - picture).abs().sum((1, 2, 3))).argmin()) for picture in images]
            return torch.eye(8)[source.pids[rows]]

    all_pictures = source.images.read(torch.arange(24), HEIGHT, WIDTH).float() / 255
    oracle.__class__ = Perfect
    assert validate(replace(source, encoder=oracle)) == {"mean_ap": 1.0, "rank1": 1.0}


def test_one_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 identity to train on; identification needs at least 2"):
        pretrain(tiny_domain(tmp_path, identities=1), QUICK, encoder=SPEC)


def test_source_without_identities_is_refused_before_an_image_is_read(domain: Domain, tmp_path: Path) -> None:
    absent = tuple(tmp_path / path.name for path in domain.train.paths)
    train = replace(domain.train, paths=absent, pids=np.full(len(domain.train), UNKNOWN))
    message = f"^{domain.root}: its training images have no identities, so no source model can be trained on them; "
    with pytest.raises(DataError, match=message):
        pretrain(replace(domain, train=train), QUICK, encoder=SPEC)


def test_options_out_of_range_are_refused() -> None:
    for option in ({"lr": 0}, {"loss": "triplet"}, {"batch": 1}, {"validation": 1.0}, {"epochs": -1}):
        with pytest.raises(ValidationError, match=next(iter(option))):
            Pretrain(**option)
