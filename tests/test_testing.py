"""The conformance kit must catch strategies that break a promise: each one here breaks exactly one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from uda_reid.data.images import unlabelled
from uda_reid.run import QUIET, Run
from uda_reid.testing import ConformanceError, check_strategy, fingerprint
from uda_reid.training.batches import Batches
from uda_reid.training.loop import Draws, Stateful, train
from uda_reid.types import AdaptationResult, Batch, Domain, Source, Target


@dataclass(frozen=True)
class Jitter:
    """Adds seeded noise to one weight: keeps every promise."""

    breaks: str = ""

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        encoder = source.encoder if self.breaks in ("caller", "same module") else copy.deepcopy(source.encoder)
        noise = torch.rand(1, generator=run.stream("jitter"))
        if self.breaks == "global":
            np.random.rand()  # noqa: NPY002
        if self.breaks == "repeat":
            noise = torch.tensor([torch.seed() % 1000 / 1000])
        if self.breaks == "seed":
            noise = torch.tensor([0.5])
        if self.breaks == "leak" and target.cams is not None:
            # Which images show the same person is all that a triplet loss would need.
            noise = noise + (target.cams[:-1] == target.cams[1:]).float().sum()
        if self.breaks == "resume":
            noise = noise if run.restore("jitter") is None else noise + 1
            run.save("jitter", {"done": 1})
            run.save("jitter", {"done": 2})
        if self.breaks == "finite":
            noise = torch.tensor([torch.nan])
        with torch.no_grad():
            if self.breaks != "same module":
                next(encoder.parameters()).add_(noise)
        facts = {"weights": [1, 2]} if self.breaks == "facts" else {}
        history = ({"loss": "low"},) if self.breaks == "history" else ()
        return AdaptationResult(encoder, history, facts)  # type: ignore[arg-type]


def test_a_strategy_that_keeps_its_promises_passes() -> None:
    check_strategy(Jitter())


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ("caller", "the caller's encoder changed"),
        ("same module", "the caller's own module"),
        ("global", "global random states changed"),
        ("repeat", "global random states changed|the same seed gave other weights"),
        ("seed", "another seed gave the same weights"),
        ("finite", "not finite"),
        ("facts", "fact 'weights' is a list"),
        ("history", "history holds something else"),
    ],
)
def test_a_broken_promise_is_named(breaks: str, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_strategy(Jitter(breaks))


def test_a_target_that_leaks_its_labels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(domain: Domain, *, cameras: bool = False) -> Target:
        return replace(unlabelled(domain), cams=torch.from_numpy(domain.train.pids))

    monkeypatch.setattr("uda_reid.testing.unlabelled", leaking)
    check_strategy(Jitter())
    with pytest.raises(ConformanceError, match="permuting the target's hidden labels changed the weights"):
        check_strategy(Jitter("leak"))


def test_a_strategy_that_forgets_part_of_its_state_is_named() -> None:
    with pytest.raises(ConformanceError, match="interrupted after 1 saves and resumed, the weights differ"):
        check_strategy(Jitter("resume"))


@dataclass(frozen=True)
class Trained:
    """Trains for two epochs with a head and momentum, and gives `train` the parts that are named."""

    parts: tuple[str, ...] = ("encoder", "head", "optimizer", "draws")
    keep: bool = True

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        encoder = copy.deepcopy(source.encoder)
        with run.randomness("head"):
            head = nn.Linear(encoder.dim, 2)
        weights = [*encoder.parameters(), *head.parameters()]
        optimizer, draws = torch.optim.SGD(weights, lr=0.05, momentum=0.9), Draws(run.stream("draws"))
        run.prepare(encoder, optimizer)
        size = int(encoder.spec["height"]), int(encoder.spec["width"])

        def batches(epoch: int) -> Batches:
            rows = torch.split(torch.randperm(24, generator=run.stream(f"rows/{epoch}")), 8)
            labels = torch.arange(24) % 2
            return Batches(
                target.images, labels, rows, size=size, augmentation="ide", name=f"noise/{epoch}", run=run
            )  # fmt: skip

        def step(batch: Batch) -> dict[str, torch.Tensor]:
            encoder.train()
            mask = torch.rand(encoder.dim, generator=draws.generator)
            loss = nn.functional.cross_entropy(head(encoder(batch.images) * mask), batch.labels)
            run.step(loss, optimizer)
            return {"loss": loss}

        every: dict[str, Stateful] = {"encoder": encoder, "head": head, "optimizer": optimizer, "draws": draws}
        parts = {name: every[name] for name in self.parts}
        train(step, batches, epochs=2 if self.keep else 1, parts=parts, name="trained", run=run, keep=self.keep)
        return AdaptationResult(encoder.eval(), (), {})


@pytest.mark.parametrize("keep", [True, False])
def test_a_strategy_that_gives_all_its_parts_can_be_stopped(keep: bool) -> None:
    check_strategy(Trained(keep=keep))


@pytest.mark.parametrize("forgotten", ["encoder", "head", "optimizer", "draws"])
def test_a_strategy_that_forgets_a_part_of_a_step_is_named(forgotten: str) -> None:
    parts = tuple(part for part in Trained().parts if part != forgotten)
    with pytest.raises(ConformanceError, match=r"stopped after [12] steps and resumed, the weights differ"):
        check_strategy(Trained(parts, keep=False))


def test_training_without_training_is_named() -> None:
    with pytest.raises(ConformanceError, match="without training the features differ"):
        check_strategy(Jitter(), without_training=Jitter())


def test_fingerprint_sees_one_bit() -> None:
    layer = nn.Linear(2, 2)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert fingerprint(layer) != before
