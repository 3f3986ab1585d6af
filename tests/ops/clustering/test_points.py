from __future__ import annotations

import pytest
import torch

from uda_reid.ops.clustering import cluster_means
from uda_reid.ops.clustering.points import centred, row_blocks


def test_cluster_means_are_the_means_of_the_rows_and_leave_out_negative_labels() -> None:
    features = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 6 - 1
    expected = [[column.tolist() for column in features[labels == number].double().mean(0)] for number in range(5)]
    torch.testing.assert_close(cluster_means(features, labels, 5), torch.tensor(expected))


def test_no_cluster_has_no_mean() -> None:
    assert cluster_means(torch.ones(4, 3), torch.full((4,), -1), 0).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_centred_points_give_the_features_back(dtype: torch.dtype) -> None:
    features = (3000 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    points, centre, scale = centred(features)
    assert points.dtype == torch.float32
    assert float(points.abs().max()) <= 1
    assert float(torch.tensor(scale).log2()) % 1 == 0
    torch.testing.assert_close(points.double() * scale + centre, features.double(), atol=1e-6, rtol=1e-7)


def test_row_blocks_are_all_rows_in_order() -> None:
    points = torch.arange(200.0)[:, None]
    parts = list(row_blocks(points, 1 << 30))
    assert [start for start, _ in parts] == [0, 64, 128, 192]
    assert torch.equal(torch.cat([block for _, block in parts]), points)
