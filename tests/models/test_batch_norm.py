from __future__ import annotations

import torch
from torch import nn

from uda_reid.models.batch_norm import batch_norms, statistics_kept


def test_batch_norms_are_found_wherever_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm1d(4))
    assert batch_norms(net) == [net[1][0], net[2]]  # type: ignore[index]


def test_statistics_stay_inside_and_move_outside() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, momentum=0.3))
    pictures = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def statistics() -> list[torch.Tensor]:
        return [value.clone() for key, value in net.state_dict().items() if "running" in key]

    before = statistics()
    with statistics_kept(net):
        inside = net(pictures)
    assert all(map(torch.equal, statistics(), before))
    torch.testing.assert_close(net(pictures), inside)
    assert not any(map(torch.equal, statistics(), before))
    assert [layer.momentum for layer in batch_norms(net)] == [0.1, None, 0.3]


def test_momentum_comes_back_after_an_error() -> None:
    layer = nn.BatchNorm1d(2)
    try:
        with statistics_kept(layer):
            raise KeyError
    except KeyError:
        assert layer.momentum == 0.1
