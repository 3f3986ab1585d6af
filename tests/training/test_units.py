from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uda_reid.errors import DataError
from uda_reid.models.batch_norm import batch_norms
from uda_reid.models.encoder import EncoderSpec
from uda_reid.models.heads import Classifier
from uda_reid.ops.distance import normalise
from uda_reid.ops.impact import held_out_scores, normalised
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.run import Run
from uda_reid.testing import HEIGHT, WIDTH, fingerprint, tiny_domain
from uda_reid.training import units
from uda_reid.training.features import extract
from uda_reid.training.units import (
    class_means,
    domain_names,
    merged_classifier,
    poor_guides,
    score_clusters,
    score_sources,
    scored_on_training,
    scored_rows,
    source_classes,
    with_statistics,
)
from uda_reid.types import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Six people with four images each, of two domains; the last of either is held out, so numbers are made to fit."""
    options = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none", hidden=10)
    source = pretrain(tiny_domain(tmp_path_factory.mktemp("source")), options, encoder=spec)
    return replace(source, domains=(source.pids >= 3).long())


def rows_of(source: Source, *pids: int) -> Tensor:
    return torch.nonzero(torch.isin(source.pids, torch.tensor(pids))).flatten()


def test_domains_are_named_by_number_where_there_are_several(source: Source) -> None:
    assert domain_names(source) == ("source 1", "source 2")
    assert domain_names(replace(source, domains=torch.zeros(24, dtype=torch.int64))) == ("source",)


def test_held_out_people_are_scored_on_where_two_have_two_images(source: Source) -> None:
    held = replace(source, validation=rows_of(source, 1, 2, 5))
    assert torch.equal(scored_rows(held, 0), rows_of(source, 1, 2))
    assert torch.equal(scored_rows(held, 1), rows_of(source, 3, 4))  # one held-out person of that domain is not enough
    few = replace(source, validation=torch.cat([rows_of(source, 1), rows_of(source, 2)[:1]]))
    assert set(scored_rows(few, 0).tolist()) == set(rows_of(source, 0).tolist()) | set(rows_of(source, 2)[1:].tolist())
    assert torch.equal(scored_rows(source, 0), rows_of(source, 0, 1, 2))


def test_scores_are_those_of_every_domain_by_itself(source: Source) -> None:
    run = Run(seed=4)
    found = score_sources(source, source.encoder, decay=0.1, steps=50, name="x", run=run)
    units = extract(source.encoder, source.images).clamp(min=0)
    for domain, title in ((0, "source 1"), (1, "source 2")):
        rows = torch.nonzero(source.domains == domain).flatten()
        own = held_out_scores(units[rows], source.pids[rows], run.stream(f"x/{title}"), decay=0.1, steps=50)
        torch.testing.assert_close(found[domain], normalised(own[None])[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(found, score_sources(source, source.encoder, decay=0.01, steps=50, name="x", run=run))


def test_statistics_are_those_of_the_rows_alone_and_of_a_copy(source: Source) -> None:
    rows, before = rows_of(source, 0, 4), copy.deepcopy(source.encoder.state_dict())
    found = with_statistics(source.encoder, source.images, rows, name="x")
    assert not found.training and all(
        torch.equal(before[key], each) for key, each in source.encoder.state_dict().items()
    )
    given: list[Tensor] = []
    layer = found.get_submodule("trunk.bn1")
    layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    found(source.images.read(rows, HEIGHT, WIDTH).float() / 255)
    variance, mean = torch.var_mean(given[0], (0, 2, 3))
    torch.testing.assert_close(layer.get_buffer("running_mean"), mean)
    torch.testing.assert_close(layer.get_buffer("running_var"), variance)


def test_scores_apart_are_those_of_an_encoder_with_the_statistics_of_the_domain(source: Source) -> None:
    options: dict[str, Any] = {"decay": 0.1, "steps": 50, "name": "x"}
    moved = copy.deepcopy(source.encoder)
    moved.get_buffer("neck.running_mean").add_(1.0)
    found, other = (score_sources(source, each, apart=True, **options) for each in (source.encoder, moved))
    torch.testing.assert_close(found, other)  # what the encoder had does not matter
    own = [
        with_statistics(source.encoder, source.images, rows_of(source, *pids), name=f"x/{title}/statistics")
        for title, pids in (("source 1", (0, 1, 2)), ("source 2", (3, 4, 5)))
    ]
    for domain, encoder in enumerate(own):
        torch.testing.assert_close(found[domain], score_sources(source, encoder, **options)[domain])
    assert not torch.allclose(found, score_sources(source, source.encoder, **options))


def test_statistics_are_of_all_batches_and_draw_no_global_numbers(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinned = copy.deepcopy(source.encoder)
    thinned.neck = nn.Sequential(nn.Dropout(0.5), thinned.get_submodule("neck"))
    state = torch.random.get_rng_state()
    whole, again = (with_statistics(thinned, source.images, name="x") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fingerprint(whole) == fingerprint(again)
    assert [layer.momentum for layer in batch_norms(whole)] == [layer.momentum for layer in batch_norms(thinned)]
    monkeypatch.setattr(units, "STATISTICS_BATCH", 8)
    parts = with_statistics(thinned, source.images, name="x")
    mean = "trunk.bn1.running_mean"  # of three parts of eight, of what no statistics have touched yet
    torch.testing.assert_close(parts.get_buffer(mean), whole.get_buffer(mean))
    assert not torch.allclose(parts.get_buffer("neck.1.running_mean"), whole.get_buffer("neck.1.running_mean"))


def test_one_image_has_no_statistics(source: Source) -> None:
    with pytest.raises(DataError, match="1 image has no variance"):
        with_statistics(source.encoder, source.images, torch.tensor([3]), name="x")


def test_domains_scored_on_what_was_trained_on_are_named(source: Source) -> None:
    assert scored_on_training(source) == ("source 1", "source 2")
    assert scored_on_training(replace(source, validation=rows_of(source, 1, 2, 5))) == ("source 2",)
    assert scored_on_training(replace(source, validation=rows_of(source, 1, 2, 4, 5))) == ()


def test_clusters_of_one_image_cannot_be_scored() -> None:
    with pytest.raises(DataError, match=r"^units of the target .* use fewer clusters"):
        score_clusters(torch.ones(4, 2), torch.arange(4), decay=0.1, steps=5, generator=torch.Generator())


def test_poor_guides_are_told_by_phase() -> None:
    scores = torch.ones(3, 100)
    scores[1] = -1.0
    scores[2, :3] = -1.0  # 97 of 100 matter
    names = ("source", "target", "other")
    whole, nothing = "100% of the units matter to source: ", "no unit matters to target: "
    first = list(poor_guides(scores, names, first=True))
    assert [line[: len(start)] for line, start in zip(first, (whole, nothing), strict=True)] == [whole, nothing]
    assert list(poor_guides(scores, names, first=False)) == [f"{nothing}none is kept by a chance above one half"]
    scores[2, :2] = 1.0  # 99 do
    assert len(list(poor_guides(scores, names, first=True))) == 3


def test_domain_of_one_person_has_no_scores(source: Source) -> None:
    lonely = replace(source, domains=(source.pids == 0).long())
    with pytest.raises(DataError, match=r"^units of source 2 cannot be scored: 1 identity .* leave it out"):
        score_sources(lonely, source.encoder, decay=0.1, steps=5)


def test_class_means_are_mean_directions_of_what_is_above_zero_less_what_they_share() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, -1] * 3)
    directions = []
    for label in range(3):
        units = features[labels == label].clamp(min=0)
        directions.append((units / units.norm(dim=1, keepdim=True)).mean(0))
    found, shared = class_means(features, labels, 3), (directions[0] + directions[1] + directions[2]) / 3
    for label in range(3):
        own = directions[label] - shared
        torch.testing.assert_close(found[label], own / own.norm())


def test_classes_of_the_source_are_its_classifiers_where_that_sees_units(source: Source) -> None:
    found = source_classes(source)
    assert isinstance(source.classifier, Classifier)
    assert torch.equal(found["weight"], source.classifier.linear.weight)
    assert torch.equal(found["bias"], source.classifier.linear.bias)
    found["weight"].zero_()
    assert bool(source.classifier.linear.weight.any())
    embeddings = Classifier(10, 6, generator=torch.Generator())
    instead = source_classes(replace(source, classifier=embeddings))
    units = extract(source.encoder, source.images).clamp(min=0)
    expected = torch.stack([normalise(units)[source.pids == pid].mean(0) for pid in range(6)])
    torch.testing.assert_close(instead["weight"], normalise(expected - expected.mean(0)), atol=1e-5, rtol=1e-4)
    assert not bool(instead["bias"].any())


def test_merged_classifier_has_the_known_classes_first_and_the_others_of_their_length() -> None:
    known = {"weight": torch.tensor([[3.0, 1.0, 1.0], [-1.0, 1.0, -3.0]]), "bias": torch.tensor([5.0, 7.0])}
    head = merged_classifier(known, torch.eye(3), generator=torch.Generator())
    length = 8**0.5  # of (2, 0, 2) and (-2, 0, -2), what is left of either without what they share
    expected = torch.tensor([[2.0, 0, 2], [-2, 0, -2], [length, 0, 0], [0, length, 0], [0, 0, length]])
    torch.testing.assert_close(head.linear.weight.detach(), expected)
    assert head.linear.bias.tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0]
    assert not head.rectified


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_what_the_weights_of_all_people_share_changes_no_logit(source: Source, shift: float) -> None:
    features = extract(source.encoder, source.images)
    plain = class_means(features, source.pids, 6)
    others = class_means(features.flip(1), torch.arange(24) % 5, 5)

    def predicted(shared: float) -> Tensor:
        known = {"weight": plain + shared, "bias": torch.zeros(6) - shared}
        head = merged_classifier(known, others, generator=torch.Generator())
        logits: Tensor = head(features.relu()).detach()
        return logits

    torch.testing.assert_close(predicted(shift), predicted(0.0), atol=1e-4, rtol=1e-4)
