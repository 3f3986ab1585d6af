from __future__ import annotations

import pytest

from uda_reid.data.images import unlabelled
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.testing import HEIGHT, WIDTH, tiny_domain
from uda_reid.types import Source, Target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source whose encoder has a batch-norm neck, so that the embeddings before and behind it differ."""
    options = Pretrain(epochs=1, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none", neck="batchnorm")
    return pretrain(tiny_domain(tmp_path_factory.mktemp("source")), options, encoder=spec)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return unlabelled(tiny_domain(tmp_path_factory.mktemp("target"), name="target", seed=1))
