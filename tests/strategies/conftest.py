from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.float64 import ADAPTING, use_float64
from uda_reid.data.images import unlabelled
from uda_reid.models.encoder import EncoderSpec
from uda_reid.models.heads import Classifier
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.testing import HEIGHT, WIDTH, tiny_domain
from uda_reid.types import Source, Target


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let strategies embed and train at double precision, as replays that are compared with them do."""
    use_float64(ADAPTING, monkeypatch.setattr)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source whose encoder has a batch-norm neck, so that the embeddings before and behind it differ."""
    options = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none", neck="batchnorm")
    return pretrain(tiny_domain(tmp_path_factory.mktemp("source")), options, encoder=spec)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return unlabelled(tiny_domain(tmp_path_factory.mktemp("target"), name="target", seed=1))


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source whose encoder has a hidden layer of 12 units; its six people are of two domains."""
    options = Pretrain(epochs=2, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none", hidden=12)
    source = pretrain(tiny_domain(tmp_path_factory.mktemp("source")), options, encoder=spec)
    return replace(source, domains=(source.pids >= 3).long())


@pytest.fixture(scope="module")
def held_out(hidden: Source) -> Source:
    """The same with two people of either domain held out; the two that are left are numbered 0 and 1."""
    pids = torch.tensor([0, 2, 3, 1, 4, 5])[hidden.pids]
    head = Classifier(12, 2, rectified=True, std=0.1, generator=torch.Generator().manual_seed(0))
    return replace(hidden, pids=pids, validation=torch.nonzero(pids > 1).flatten(), classifier=head)
