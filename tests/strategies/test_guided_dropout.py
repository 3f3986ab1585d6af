from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from uda_reid.data.images import augment
from uda_reid.data.union import union
from uda_reid.models.encoder import EncoderSpec
from uda_reid.models.heads import Classifier
from uda_reid.ops.impact import normalised
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.run import Run
from uda_reid.strategies import guided_dropout
from uda_reid.strategies.guided_dropout import GuidedDropout
from uda_reid.testing import HEIGHT, WIDTH, check_strategy, fingerprint, tiny_domain
from uda_reid.training.features import extract
from uda_reid.training.pseudo_labels import PseudoLabels, assign
from uda_reid.training.units import score_sources
from uda_reid.types import Encoder, Source, Target

QUICK = GuidedDropout(
    deterministic=1, stochastic=1, clusters=5, iterations=2, batch=6, lr=0.01, augmentation="none", head_decay=0.01
)


@pytest.mark.parametrize("target_scores", ["pseudo", "source_mean", "none"])
def test_guided_dropout_keeps_every_promise_of_a_strategy(target_scores: Any) -> None:
    statistics: Any = "mixed" if target_scores == "none" else "target"
    strategy = replace(QUICK, target_scores=target_scores, batch_norm=statistics, augmentation="reid")
    strategy = replace(strategy, deterministic=2, stochastic=2, iterations=1)  # is cut within either phase
    check_strategy(strategy, without_training=replace(strategy, deterministic=0, stochastic=0))


def test_domains_of_a_joined_source_are_guided_apart(tmp_path: Path, target: Target) -> None:
    options = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none", validation=0.5)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none")
    joined = union([tiny_domain(tmp_path / name, name=name, seed=seed) for seed, name in enumerate(("one", "two"), 3)])
    result = QUICK.adapt(pretrain(joined, options, encoder=spec), target)
    assert {"kept source 1", "kept source 2", "kept target", "loss source 2"} <= set(result.history[0])
    assert result.history[0]["kept source 1"] != result.history[0]["kept source 2"]


# Masks


def test_every_row_of_a_batch_has_the_mask_of_its_own_domain() -> None:
    scores = torch.tensor([[1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, -1.0]])
    domains = torch.tensor([2, 0, 1, 0])
    found = QUICK.mask(scores, domains, torch.Generator(), first=True)
    third = 4 / 3
    expected = [[third, third, third, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0], [4.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    uniforms = torch.full((4, 4), 0.5)
    drawn = QUICK.mask(scores, domains, uniforms, first=False)
    assert torch.equal(drawn > 0, torch.tensor(expected) > 0)
    cold = replace(QUICK, temperature=1e-9).mask(scores, domains, torch.rand(4, 4), first=False)
    torch.testing.assert_close(cold, torch.tensor(expected))


def test_target_without_scores_has_plain_dropout_in_both_phases_and_the_source_has_not() -> None:
    strategy = replace(QUICK, target_scores="none")
    scores = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    uniforms = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    found = strategy.mask(scores, torch.tensor([0, 1]), uniforms, first=True)
    assert found.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    later = strategy.mask(scores, torch.tensor([1, 1]), uniforms, first=False)
    assert later.tolist() == [[0.0, 2.0], [0.0, 2.0]]
    assert QUICK.mask(scores, torch.tensor([1]), uniforms[:1], first=True).tolist() == [[0.0, 0.0]]
    assert strategy.kept(scores, first=True).tolist() == [0.5, 0.5]
    assert QUICK.kept(scores, first=True).tolist() == [0.5, 0.0]
    torch.testing.assert_close(QUICK.kept(scores, first=False), torch.tensor([0.5, 0.5]))
    warm, chances = replace(QUICK, temperature=2.0), torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    expected = [sum(1 / (1 + math.exp(-score / 2)) for score in row) / 2 for row in chances.tolist()]
    torch.testing.assert_close(warm.kept(chances, first=False), torch.tensor(expected))


def test_adapted_encoder_has_the_statistics_of_the_target_alone(source: Source, target: Target) -> None:
    still = replace(QUICK, lr=0.0, iterations=50, batch=24, stochastic=0)
    found, mixed = (replace(still, batch_norm=each).adapt(source, target).encoder for each in ("target", "mixed"))
    images = target.images.read(torch.arange(24), HEIGHT, WIDTH).float() / 255
    last = {}
    for name, encoder in (("target", found), ("mixed", mixed)):
        inputs: list[Tensor] = []
        layer = encoder.get_submodule("trunk.bn1")
        handle = layer.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))
        with torch.no_grad():
            encoder(images)
        handle.remove()
        last[name] = float((layer.get_buffer("running_mean") - inputs[0].mean((0, 2, 3))).abs().max())
    assert last["target"] < 0.4 * last["mixed"]


def test_scores_of_the_target_are_what_the_option_says(hidden: Source, target: Target) -> None:
    features = extract(hidden.encoder, target.images)
    labels = torch.arange(24) % 4

    def scores(choice: Any) -> Tensor:
        return replace(QUICK, target_scores=choice, head_steps=3).score(hidden, hidden.encoder, features, labels)

    mine = score_sources(
        hidden, hidden.encoder, decay=0.01, steps=3, apart=True, name="guided_dropout/scores/0"
    ).float()
    for choice in ("pseudo", "source_mean", "none"):
        assert torch.equal(scores(choice)[:2], mine)
        assert scores(choice).shape == (3, 12) and scores(choice).dtype == torch.float32
    torch.testing.assert_close(scores("source_mean"), torch.cat([mine, normalised((mine[:1] + mine[1:]) / 2)]))
    assert not bool(scores("none")[2].any())
    by_clusters = scores("pseudo")[2]
    assert float(by_clusters.max().sigmoid()) == pytest.approx(0.9)
    other = replace(QUICK, head_steps=3).score(hidden, hidden.encoder, features, (torch.arange(24) // 6))
    assert not torch.equal(other[2], by_clusters) and torch.equal(other[:2], mine)


def test_starts_of_k_means_are_those_asked_for(hidden: Source, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def watched(features: Tensor, *, starts: int, **options: Any) -> PseudoLabels:
        asked.append(starts)
        return assign(features, starts=starts, **options)

    monkeypatch.setattr(guided_dropout, "assign", watched)
    replace(QUICK, starts=3).adapt(hidden, target)
    assert asked == [3, 3]


@pytest.mark.parametrize("phase", ["deterministic", "stochastic"])
def test_masks_change_what_is_learned(phase: str, hidden: Source, target: Target) -> None:
    class Unmasked(GuidedDropout):
        def mask(self, scores: Tensor, domains: Tensor, chance: Any, *, first: bool) -> Tensor:
            return torch.ones(len(domains), scores.shape[1])

    epochs = {"deterministic": 0, "stochastic": 0, phase: 1}
    options = {**vars(QUICK), **epochs}
    options = {key: value for key, value in options.items() if not key.startswith("_")}
    masked, whole = GuidedDropout(**options).adapt(hidden, target), Unmasked(**options).adapt(hidden, target)
    assert fingerprint(masked.encoder) != fingerprint(whole.encoder)


# What is used


class Watched:
    """Images that remember which rows were asked for, with how many others."""

    def __init__(self, source: Source) -> None:
        self.images, self.asked = source.images, list[list[int]]()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        self.asked.append(rows.tolist())
        return self.images.read(rows, height, width)


def test_people_held_out_are_scored_on_and_not_trained_on(hidden: Source, target: Target) -> None:
    single = replace(hidden, domains=torch.zeros_like(hidden.domains))
    held_out = torch.nonzero(single.pids >= 4).flatten()
    four = Classifier(12, 4, rectified=True, generator=torch.Generator())
    images = Watched(single)
    given = replace(single, images=images, validation=held_out, classifier=four)
    replace(QUICK, batch_norm="mixed").adapt(given, target)
    scored, trained = ([rows for rows in images.asked if (len(rows) == 6) == batch] for batch in (False, True))
    assert [set(rows) for rows in scored] == [set(held_out.tolist())] * 2  # once a phase
    assert len(trained) == 4 and not {row for rows in trained for row in rows} & set(held_out.tolist())
    images.asked.clear()
    QUICK.adapt(given, target)  # batch norm sees those trained on before the others are scored by it
    scored = [rows for rows in images.asked if len(rows) != 6]
    assert [set(rows) for rows in scored] == [set(given.training.tolist()), set(held_out.tolist())] * 2


def test_batches_are_of_every_domain_in_equal_parts(hidden: Source, target: Target) -> None:
    images = Watched(hidden)
    strategy = replace(QUICK, deterministic=1, stochastic=0, batch=5, iterations=3)
    strategy.adapt(replace(hidden, images=images), target)
    parts = [hidden.domains[rows].tolist() for rows in images.asked if len(rows) == 5]
    assert parts == [[0] * 5, [1] * 5] * 3


def test_identities_of_the_source_matter(hidden: Source, target: Target) -> None:
    others = replace(hidden, pids=torch.where(hidden.pids < 3, (hidden.pids + 1) % 3, hidden.pids))
    assert fingerprint(QUICK.adapt(others, target).encoder) != fingerprint(QUICK.adapt(hidden, target).encoder)


class Plain(Encoder):
    """An encoder that is no `Embedder`."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.dim, self.spec = copy.deepcopy(inner), inner.dim, inner.spec

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.inner(images)
        return embeddings


def test_an_encoder_of_another_kind_is_trained(source: Source, target: Target) -> None:
    plain = Plain(source.encoder)
    result = QUICK.adapt(replace(source, encoder=plain), target)
    assert fingerprint(result.encoder) != fingerprint(plain)
    assert not result.encoder.training


def test_classifier_that_sees_embeddings_is_not_taken_for_one_of_units(source: Source, target: Target) -> None:
    other = copy.deepcopy(source.classifier)
    nn.init.ones_(other.get_parameter("linear.weight"))
    found = QUICK.adapt(replace(source, classifier=other), target)
    assert fingerprint(found.encoder) == fingerprint(QUICK.adapt(source, target).encoder)


def test_images_are_augmented(hidden: Source, target: Target) -> None:
    varied = replace(QUICK, augmentation="reid")
    assert fingerprint(varied.adapt(hidden, target).encoder) != fingerprint(QUICK.adapt(hidden, target).encoder)
    assert torch.equal(augment(torch.zeros(1, 3, 4, 2), "none"), torch.zeros(1, 3, 4, 2))


# What is said


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        return items


@pytest.mark.parametrize(("sign", "share"), [(-1.0, "no unit matters to"), (1.0, "100% of the units matter to")])
def test_scores_that_are_no_guide_are_said_and_stand_in_the_ledger(
    sign: float, share: str, hidden: Source, target: Target
) -> None:
    class Alike(GuidedDropout):
        def score(self, source: Source, *_: Any, **__: Any) -> Tensor:
            return sign * torch.ones(3, 12)

    heard = Heard()
    options = {key: value for key, value in vars(QUICK).items() if not key.startswith("_")}
    result = Alike(**options).adapt(hidden, target, run=Run(reporter=heard))
    epochs = (1, 2) if sign < 0 else (1,)  # a mask that hardly differs from none is the deterministic one
    for name in ("source 1", "source 2", "target"):
        for epoch in epochs:
            assert any(
                line.startswith(f"warning: guided_dropout: epoch {epoch}: {share} {name}:") for line in heard.lines
            )
    assert str(result.facts["warnings"]).count(share) == 3 * len(epochs)
    unscored = Alike(**{**options, "target_scores": "none"}).adapt(hidden, target)
    assert "target" not in str(unscored.facts["warnings"])


def test_history_and_probe_have_one_entry_per_epoch(hidden: Source, target: Target) -> None:
    steps: list[tuple[int, str, list[int]]] = []

    def probe(encoder: nn.Module, step: int, labels: Tensor | None) -> None:
        assert labels is not None
        steps.append((step, fingerprint(encoder), sorted(set(labels.tolist()))))

    result = replace(QUICK, stochastic=2).adapt(hidden, target, run=Run(prober=probe))
    assert [(step, labels) for step, _, labels in steps] == [(step, [0, 1, 2, 3, 4]) for step in (1, 2, 3)]
    assert steps[-1][1] == fingerprint(result.encoder) != steps[0][1]
    names = ("source 1", "source 2", "target")
    keys = {
        "clusters",
        "images",
        "outliers",
        "accuracy",
        *(f"{what} {name}" for what in ("kept", "loss") for name in names),
    }
    assert [set(entry) for entry in result.history] == [keys] * 3
    first, later, last = result.history
    assert {round(12 * first[f"kept {name}"], 4) % 1 for name in names} == {0.0}  # whole units
    assert [later[f"kept {name}"] for name in names] == [last[f"kept {name}"] for name in names]
    assert all(0 < later[f"kept {name}"] < 1 for name in names)


def test_ledger_says_what_was_used(hidden: Source, held_out: Source, target: Target) -> None:
    known = {
        "target images used": "all, without labels",
        "target images in batch norm": True,
        "batch norm": "every domain by itself",
        "camera ids used": False,
        "source images used": "with labels, impact scores of source 1, source 2 by images trained on",
        "impact scores of the target": "of its clusters",
        "number of clusters given": 5,
        "k-means starts": 1,
        "warnings": "none",
        "checkpoint": "last",
    }
    assert QUICK.adapt(hidden, target).facts == known
    nothing = {"target images used": "none", "target images in batch norm": False, "source images used": "none"}
    assert replace(QUICK, deterministic=0, stochastic=0).adapt(hidden, target).facts == {**known, **nothing}
    found = replace(QUICK, batch_norm="mixed").adapt(held_out, target).facts
    assert found["source images used"] == "with labels, those held out for impact scores"
    assert found["batch norm"] == "all domains together"
    for choice, said in (("source_mean", "the source's"), ("none", "none: p = 0.5")):
        options: Any = {"target_scores": choice}
        assert replace(QUICK, **options).adapt(hidden, target).facts["impact scores of the target"] == said


@pytest.mark.parametrize(
    "option",
    [
        {"target_scores": "labels"},
        {"deterministic": -1},
        {"stochastic": -1},
        {"temperature": 0.0},
        {"clusters": 1},
        {"batch": 1},
        {"iterations": 0},
        {"head_decay": 0.0},
        {"head_steps": 0},
        {"momentum": 1.0},
        {"lr": -1.0},
        {"dropout": 0.5},
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        GuidedDropout(**option)
