from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from uda_reid import gap
from uda_reid.data.images import unlabelled
from uda_reid.gap import LAYER, MEASURES, domain_gap
from uda_reid.ops.distance import normalise
from uda_reid.ops.gap import maximum_mean_discrepancy, normal_divergence, proxy_a_distance
from uda_reid.run import Run
from uda_reid.testing import HEIGHT, WIDTH, fingerprint, tiny_domain, tiny_source
from uda_reid.training.features import extract
from uda_reid.types import Encoder, Images, Source, Target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tiny_domain(tmp_path_factory.mktemp("source")), epochs=1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return unlabelled(tiny_domain(tmp_path_factory.mktemp("target"), name="target", seed=1))


def seen(encoder: Encoder, images: Images, rows: torch.Tensor) -> list[nn.BatchNorm2d]:
    """The layers of a copy that has seen all rows in one batch."""
    copied = copy.deepcopy(encoder)
    layers = [layer for layer in copied.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        copied.train()(images.read(rows, HEIGHT, WIDTH).float() / 255)
    return layers


def test_gap_is_between_the_training_images_of_either_side(source: Source, target: Target) -> None:
    run, before = Run(seed=3), fingerprint(source.encoder)
    held = replace(source, validation=torch.nonzero(source.pids == 5).flatten())
    found = domain_gap(held, target, run=run)
    rows = held.training
    mine, theirs = (
        normalise(extract(source.encoder, source.images, rows=rows)),
        normalise(extract(source.encoder, target.images)),
    )
    assert found["MMD"] == pytest.approx(maximum_mean_discrepancy(mine, theirs), abs=1e-9)
    assert found["proxy-A"] == proxy_a_distance(mine, theirs, generator=run.stream("gap/halves"))
    here, there = seen(source.encoder, source.images, rows), seen(source.encoder, target.images, torch.arange(24))
    expected = []
    for one, other in zip(here, there, strict=True):
        parts = [layer.get_buffer(name) for layer in (one, other) for name in ("running_mean", "running_var")]
        expected.append(normal_divergence(*parts))
    layers = [value for name, value in found.items() if name.startswith(LAYER)]
    assert layers == pytest.approx(expected, rel=1e-3)
    assert found["batch norm"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert set(MEASURES) <= found.keys() and min(layers) > 0
    assert fingerprint(source.encoder) == before
    assert domain_gap(held, target, run=run) == found


def test_no_more_images_are_looked_at_than_the_limit(
    source: Source, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = domain_gap(source, target)
    monkeypatch.setattr(gap, "SAMPLE", 8)
    asked: list[int] = []
    read = type(target.images).read

    def watched(self: Images, rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
        asked.append(len(rows))
        found: torch.Tensor = read(self, rows, height, width)
        return found

    monkeypatch.setattr(type(target.images), "read", watched)
    assert domain_gap(source, target) != whole
    assert max(asked) <= 8


def test_there_is_no_gap_to_the_source_itself(source: Source) -> None:
    copied = Target("copy", source.images)
    found = domain_gap(source, copied)
    assert found["batch norm"] == pytest.approx(0, abs=1e-6) and found["MMD"] < 0.05 and found["proxy-A"] < 1


def test_encoder_without_batch_norm_has_no_such_measure(source: Source, target: Target) -> None:
    class Plain(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.spec = 3, {"height": HEIGHT, "width": WIDTH}
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * self.scale

    assert domain_gap(replace(source, encoder=Plain()), target).keys() == {"MMD", "proxy-A"}
