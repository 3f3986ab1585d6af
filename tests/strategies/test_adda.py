from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.float64 import assert_same, at_double, doubled
from uda_reid.data.images import augment
from uda_reid.data.sampling import endless
from uda_reid.errors import DataError, RecipeError, UdaReidError
from uda_reid.models.heads import Discriminator
from uda_reid.ops.losses import told_apart
from uda_reid.run import QUIET, Run
from uda_reid.strategies.adda import ADDA
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Source, Target

QUICK = ADDA(epochs=2, iterations=2, batch=6, lr=1e-3, discriminator_lr=1e-3, hidden=(8,), augmentation="none")


@pytest.mark.parametrize(
    "strategy",
    [QUICK, replace(QUICK, on="logits", step="alternating"), replace(QUICK, batch_norm="source", augmentation="reid")],
)
def test_adda_keeps_every_promise_of_a_strategy(strategy: ADDA) -> None:
    check_strategy(strategy, without_training=replace(strategy, epochs=0))


# The losses


def test_loss_of_a_discriminator_that_knows_nothing_is_ln_2_either_way() -> None:
    logits = torch.zeros(8)
    assert float(told_apart(logits, 4)) == pytest.approx(math.log(2), abs=1e-7)
    assert float(told_apart(-logits, 4)) == pytest.approx(math.log(2), abs=1e-7)
    # The paper adds the means of either domain; the code takes the mean over both.
    source, target = torch.nn.functional.softplus(-logits[:4]).mean(), torch.nn.functional.softplus(logits[4:]).mean()
    assert float(source + target) == pytest.approx(2 * math.log(2), abs=1e-6)


def test_loss_is_the_same_with_the_domains_and_the_logits_turned_round() -> None:
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    turned = torch.cat([-logits[5:], -logits[:5]])
    torch.testing.assert_close(told_apart(logits, 5), told_apart(turned, 5))


def test_loss_is_the_cross_entropy_of_the_code_with_two_outputs() -> None:
    outputs = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 5 + [1] * 5)
    expected = torch.nn.functional.cross_entropy(outputs, labels)
    torch.testing.assert_close(told_apart(outputs[:, 0] - outputs[:, 1], 5), expected)
    inverted = torch.nn.functional.cross_entropy(outputs, 1 - labels)
    torch.testing.assert_close(told_apart(outputs[:, 1] - outputs[:, 0], 5), inverted)


@pytest.mark.parametrize("logit", [-10.0, 0.0, 3.0])
def test_encoder_of_a_target_that_is_seen_through_still_has_a_gradient(logit: float) -> None:
    """What separates ADDA from a reversed gradient, which is -sigma(d) and vanishes."""
    logits = torch.tensor([0.0, logit], requires_grad=True)
    told_apart(-logits, 1).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert 2 * float(logits.grad[1]) == pytest.approx(-(1 - 1 / (1 + math.exp(-logit))), abs=1e-6)


@pytest.mark.parametrize(("logits", "first"), [(torch.zeros(4, 1), 2), (torch.zeros(4), 0), (torch.zeros(4), 4)])
def test_loss_refuses_a_batch_of_one_kind(logits: Tensor, first: int) -> None:
    with pytest.raises(DataError, match=r"^logits must be \(B,\) of two kinds"):
        told_apart(logits, first)


# The step, against plain torch


def pictures(images: Tensor) -> Tensor:
    return augment(images, "none")


def planned(domain: str, rows: Tensor, run: Run) -> list[Tensor]:
    """The rows of two epochs of two batches."""
    return [
        batch
        for epoch in range(2)
        for batch in islice(endless(rows, QUICK.batch, run.stream(f"adda/{domain}/{epoch}/rows")), QUICK.iterations)
    ]


@pytest.mark.parametrize("step", ["simultaneous", "alternating"])
@pytest.mark.parametrize("on", ["embeddings", "logits"])
@pytest.mark.parametrize("batch_norm", ["target", "source"])
def test_steps_are_those_of_plain_torch(
    source: Source, target: Target, step: Any, on: Any, batch_norm: Any, float64: None
) -> None:
    strategy = replace(
        QUICK, step=step, on=on, batch_norm=batch_norm, beta1=0.7, weight_decay=0.01, slope=0.3, hidden=(8, 5)
    )
    run, source = Run(seed=5), at_double(source)
    with doubled():  # no clustering here, which takes float32
        result = strategy.adapt(source, target, run=run)
        critic = Discriminator(
            6 if on == "logits" else source.encoder.dim, (8, 5), slope=0.3, generator=run.stream("adda/discriminator")
        )
    fixed, encoder, classifier = (
        copy.deepcopy(part).eval() for part in (source.encoder, source.encoder, source.classifier)
    )
    head = classifier if on == "logits" else nn.Identity()
    towards = torch.optim.Adam(encoder.parameters(), lr=1e-3, betas=(0.7, 0.999), weight_decay=0.01)
    apart = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.7, 0.999), weight_decay=0.01)
    cross = nn.BCEWithLogitsLoss()
    truth = torch.tensor([1.0] * 6 + [0.0] * 6, dtype=torch.float64)  # source, target
    losses, mappings = [], []
    everything = torch.arange(len(target.images))
    with doubled():
        for mine, theirs in zip(
            planned("source", source.training, run), planned("target", everything, run), strict=True
        ):
            with torch.no_grad():
                ours = head(fixed(pictures(source.images.read(mine, HEIGHT, WIDTH))))
            encoder.train()
            if batch_norm == "source":
                for module in encoder.modules():
                    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                        module.eval()
            yours = head(encoder(pictures(target.images.read(theirs, HEIGHT, WIDTH))))
            loss = cross(critic(torch.cat([ours, yours.detach()])), truth)
            gradients = torch.autograd.grad(loss, list(critic.parameters()))
            if step == "alternating":
                for weight, gradient in zip(critic.parameters(), gradients, strict=True):
                    weight.grad = gradient
                apart.step()
            mapping = cross(critic(torch.cat([ours, yours])), 1 - truth)
            weights = [weight for weight in encoder.parameters() if weight.requires_grad]
            for weight, gradient in zip(weights, torch.autograd.grad(mapping, weights, allow_unused=True), strict=True):
                weight.grad = gradient
            towards.step()
            if step == "simultaneous":
                for weight, gradient in zip(critic.parameters(), gradients, strict=True):
                    weight.grad = gradient
                apart.step()
            losses.append(float(loss.detach()))
            mappings.append(float(mapping.detach()))
    assert_same(result.encoder, encoder, start=source.encoder)
    for epoch, entry in enumerate(result.history):
        assert entry["discriminator"] == pytest.approx(sum(losses[2 * epoch : 2 * epoch + 2]) / 2, rel=1e-6)
        assert entry["mapping"] == pytest.approx(sum(mappings[2 * epoch : 2 * epoch + 2]) / 2, rel=1e-6)


def test_readings_of_the_step_differ(source: Source, target: Target) -> None:
    one = replace(QUICK, epochs=1).adapt(source, target).encoder
    other = replace(QUICK, epochs=1, step="alternating").adapt(source, target).encoder
    apart = [float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert max(apart) > 1e-4  # rounding alone leaves 1e-6


def test_target_encoder_starts_as_the_source_and_source_and_classifier_stay(source: Source, target: Target) -> None:
    before = fingerprint(source.encoder), fingerprint(source.classifier)
    start = replace(QUICK, epochs=0).adapt(source, target)
    assert torch.equal(extract(start.encoder, target.images), extract(source.encoder, target.images))
    assert start.facts["target images used"] == "none"
    after = replace(QUICK, on="logits").adapt(source, target)
    assert (fingerprint(source.encoder), fingerprint(source.classifier)) == before
    assert fingerprint(after.encoder) != before[0]
    assert not after.encoder.training


class Deaf(Encoder):
    """An encoder whose weights feel light images alone."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.dim, self.spec = 4, {"height": spec["height"], "width": spec["width"]}
        self.layer = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        embeddings: Tensor = self.layer(means)
        return torch.where(means.mean(1, keepdim=True) > 0.5, embeddings, embeddings.detach())


class Plain:
    """Images of one shade each."""

    def __init__(self, *shades: int) -> None:
        self.shades = torch.tensor(shades, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.shades)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        return self.shades[rows][:, None, None, None].expand(-1, 3, height, width)


def test_source_images_move_no_weight_of_the_target_encoder(source: Source) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Deaf(source.encoder.spec)
    light, dark = Plain(*range(150, 150 + len(source.images))), Plain(*range(10, 34))
    start = replace(source, encoder=encoder, images=light)
    strategy = replace(QUICK, lr=0.1)
    assert fingerprint(strategy.adapt(start, Target("dark", dark)).encoder) == fingerprint(encoder)
    assert fingerprint(strategy.adapt(start, Target("light", light)).encoder) != fingerprint(encoder)


def test_shift_of_a_line_is_undone() -> None:
    """Source N(0, 1), target N(3, 1), and an encoder that can only add a number."""
    numbers = torch.Generator().manual_seed(0)
    shift = nn.Parameter(torch.zeros(1))
    critic = Discriminator(1, (16,), generator=torch.Generator().manual_seed(1))
    towards = torch.optim.Adam([shift], lr=5e-3, betas=(0.5, 0.999))
    apart = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.999))
    path = []
    for _ in range(3000):
        mine = torch.randn(256, 1, generator=numbers)
        theirs = torch.randn(256, 1, generator=numbers) + 3 + shift
        ADDA().update(mine, theirs, critic, towards=towards, apart=apart)
        path.append(float(shift.detach()))
    assert sum(path[-1000:]) / 1000 == pytest.approx(-3, abs=0.2)


# What is said


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, items: Iterator[object], description: str, total: int | None) -> Iterator[object]:
        return items


def test_saturation_and_collapse_are_said_and_stand_in_the_ledger(source: Source, target: Target) -> None:
    heard = Heard()
    run = Run(reporter=heard)  # type: ignore[arg-type]
    sharp = replace(QUICK, epochs=2, iterations=40, lr=0.0, discriminator_lr=0.05)
    result = sharp.adapt(source, target, run=run)
    assert result.history[1]["told apart"] > 0.95
    assert any(line.startswith("warning: adda: epoch 2: the discriminator is right") for line in heard.lines)
    assert "epoch 2: the discriminator is right" in str(result.facts["warnings"])

    assert QUICK.adapt(source, target).facts["warnings"] == "none"


@pytest.mark.parametrize("shades", [1, 2])
def test_collapse_is_said_although_batch_norm_restores_the_spread(source: Source, shades: int) -> None:
    """Of a target whose images are all one picture, or two."""

    pictures = Plain(*(90 * (row % shades + 1) for row in range(24)))
    heard = Heard()
    strategy = replace(QUICK, batch=20, lr=0.0)
    result = strategy.adapt(source, Target("few", pictures), run=Run(reporter=heard))  # type: ignore[arg-type]
    if shades == 2:
        assert result.history[0]["spread"] > 0.5
    assert result.history[0]["rank"] < 0.3
    assert "have collapsed" in str(result.facts["warnings"])
    assert any(line.startswith("warning: adda: epoch 1: target embeddings vary") for line in heard.lines)


def test_history_and_probe_have_one_entry_per_epoch(source: Source, target: Target) -> None:
    steps: list[tuple[int, str]] = []
    run = Run(prober=lambda encoder, step, labels: steps.append((step, fingerprint(encoder))))
    result = QUICK.adapt(source, target, run=run)
    assert [step for step, _ in steps] == [1, 2]
    assert steps[1][1] == fingerprint(result.encoder) != steps[0][1]
    keys = {"discriminator", "mapping", "told apart", "spread", "rank"}
    assert [set(entry) for entry in result.history] == [keys] * 2


def test_ledger_says_what_was_used(source: Source, target: Target) -> None:
    known = {
        "target images used": "all, without labels", "target images in batch norm": True, "camera ids used": False,
        "source images used": "without labels", "warnings": "none", "checkpoint": "last",
    }  # fmt: skip
    assert QUICK.adapt(source, target).facts == known
    by_logits = replace(QUICK, on="logits", batch_norm="source").adapt(source, target).facts
    told = "without labels, and the classifier trained with them"
    assert by_logits == {**known, "target images in batch norm": False, "source images used": told}
    nothing = {"target images used": "none", "target images in batch norm": False, "source images used": "none"}
    assert replace(QUICK, epochs=0).adapt(source, target).facts == {**known, **nothing}


def test_source_is_used_as_it_was_trained_whatever_mode_it_is_left_in(source: Source, target: Target) -> None:
    strategy = replace(QUICK, on="logits")
    classifier = copy.deepcopy(source.classifier)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    left = replace(source, encoder=copy.deepcopy(source.encoder).train(), classifier=classifier.train())
    assert fingerprint(strategy.adapt(left, target).encoder) == fingerprint(strategy.adapt(source, target).encoder)


def test_people_held_out_are_not_used(source: Source, target: Target) -> None:
    seen: list[Tensor] = []

    class Watched:
        def __len__(self) -> int:
            return len(source.images)

        def read(self, rows: Tensor, height: int, width: int) -> Tensor:
            seen.append(rows)
            return source.images.read(rows, height, width)

    held_out = torch.nonzero(source.pids == 5).flatten()
    replace(QUICK, batch=20).adapt(replace(source, images=Watched(), validation=held_out), target)
    assert len(held_out) > 0
    assert set(torch.cat(seen).tolist()) == set(range(len(source.images))) - set(held_out.tolist())


def test_images_are_augmented(source: Source, target: Target) -> None:
    plain, varied = (replace(QUICK, augmentation=name) for name in ("none", "reid"))
    assert fingerprint(plain.adapt(source, target).encoder) != fingerprint(varied.adapt(source, target).encoder)


def test_batch_norm_of_the_source_keeps_its_statistics(source: Source, target: Target) -> None:
    result = replace(QUICK, batch_norm="source").adapt(source, target)
    for name, value in source.encoder.named_buffers():
        assert torch.equal(result.encoder.get_buffer(name), value)


def test_identities_of_the_source_are_not_looked_at(source: Source, target: Target) -> None:
    others = replace(source, pids=source.pids.flip(0))
    assert fingerprint(QUICK.adapt(others, target).encoder) == fingerprint(QUICK.adapt(source, target).encoder)


def test_step_that_is_not_finite_is_the_end(source: Source, target: Target) -> None:
    with pytest.raises(UdaReidError, match=r"^adda/0: epoch 1, step 2: the loss was not finite, "):
        replace(QUICK, lr=1e30, iterations=5).adapt(source, target, run=QUIET)


@pytest.mark.parametrize(
    "options", [{"batch": 1}, {"on": "pixels"}, {"step": "both"}, {"beta1": 1.0}, {"lr": -1.0}, {"hidden": (0,)}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADDA(**options)


def test_discriminator_refuses_sizes_below_one() -> None:
    with pytest.raises(RecipeError, match=r"^a discriminator with layers of \[0, 5, 1\] numbers cannot be"):
        Discriminator(0, (5,), generator=torch.Generator())
