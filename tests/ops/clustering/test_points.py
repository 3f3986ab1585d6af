from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.ops.clustering import cluster_means, points
from uda_reid.ops.clustering.points import centred, cluster_sums, row_blocks, squared_norms


def test_cluster_means_are_the_means_of_the_rows_and_leave_out_negative_labels() -> None:
    features = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 6 - 1
    expected = [[column.tolist() for column in features[labels == number].double().mean(0)] for number in range(5)]
    torch.testing.assert_close(cluster_means(features, labels, 5), torch.tensor(expected))


def test_no_cluster_has_no_mean() -> None:
    assert cluster_means(torch.ones(4, 3), torch.full((4,), -1), 0).shape == (0, 3)


def test_cluster_sums_are_the_means_times_the_counts_and_0_where_nothing_is() -> None:
    features = torch.randn(50, 130, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 6 - 1
    labels[labels == 3] = -1
    sums = cluster_sums(features, labels, 6)
    assert sums.dtype == torch.float64
    for number in range(6):
        torch.testing.assert_close(sums[number], features[labels == number].double().sum(0), rtol=0, atol=1e-12)
    assert not sums[[3, 5]].any()


def test_squared_norms_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(150, 9, generator=torch.Generator().manual_seed(0))
    for block in (1, 1 << 20):
        monkeypatch.setattr(points, "BLOCK", block)
        torch.testing.assert_close(squared_norms(features), torch.linalg.vector_norm(features, dim=1) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_centred_points_give_the_features_back(dtype: torch.dtype) -> None:
    features = (3000 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    centred_points, centre, scale = centred(features)
    assert centred_points.dtype == torch.float32
    assert 0.5 <= float(centred_points.abs().max()) <= 1
    assert float(torch.tensor(scale).log2()) % 1 == 0
    torch.testing.assert_close(centre, features.double().mean(0))
    torch.testing.assert_close(centred_points.double() * scale + centre, features.double(), atol=1e-6, rtol=1e-7)


def test_row_blocks_are_all_rows_in_order() -> None:
    rows = torch.arange(200.0)[:, None]
    parts = list(row_blocks(rows, 1 << 30))
    assert [start for start, _ in parts] == [0, 64, 128, 192]
    assert torch.equal(torch.cat([block for _, block in parts]), rows)


@pytest.mark.parametrize(
    "features", [torch.tensor([[1e300], [-1e300]], dtype=torch.float64), torch.tensor([[3e38], [-3e38]])]
)
def test_points_too_far_apart_for_float32_are_refused(features: Tensor) -> None:
    with pytest.raises(DataError, match="too far apart for float32; scale them down"):
        centred(features)
