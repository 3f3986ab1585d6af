from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uda_reid.data.images import images_of
from uda_reid.testing import tiny_domain, tiny_source
from uda_reid.training import features
from uda_reid.training.features import extract
from uda_reid.types import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tiny_domain(tmp_path_factory.mktemp("tiny")))


def test_features_are_in_row_order_and_equal_one_by_one(source: Source) -> None:
    together = extract(source.encoder, source.images)
    size = int(source.encoder.spec["height"]), int(source.encoder.spec["width"])
    source.encoder.eval()
    with torch.inference_mode():
        for row in (0, 7, 23):
            picture = source.images.read(torch.tensor([row]), *size).float() / 255
            assert torch.allclose(source.encoder(picture)[0], together[row], atol=1e-5)


def test_features_of_chosen_rows_are_those_rows(source: Source) -> None:
    rows = torch.tensor([5, 2, 2])
    assert torch.allclose(
        extract(source.encoder, source.images, rows=rows), extract(source.encoder, source.images)[rows], atol=1e-6
    )


def test_features_need_no_more_than_a_block_at_a_time(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract(source.encoder, source.images)
    monkeypatch.setattr(features, "BATCH", 5)
    assert torch.allclose(extract(source.encoder, source.images), whole, atol=1e-5)


def test_extraction_restores_every_training_flag(source: Source) -> None:
    source.encoder.train()
    inner = next(module for module in source.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))
    inner.eval()
    before = [module.training for module in source.encoder.modules()]
    statistics = inner.running_mean.clone() if inner.running_mean is not None else None
    extract(source.encoder, source.images)
    assert [module.training for module in source.encoder.modules()] == before
    assert statistics is not None and torch.equal(inner.running_mean, statistics)  # type: ignore[arg-type]
    source.encoder.eval()


def test_no_rows_give_no_features(source: Source, tmp_path: Path) -> None:
    empty = extract(source.encoder, source.images, rows=torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, source.encoder.dim)
    assert len(images_of(tiny_domain(tmp_path).query, name="query")) == 6
