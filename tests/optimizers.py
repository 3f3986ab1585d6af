"""Small nets, losses and optimizers for tests of updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "plain sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01),
}


def alone(_: Sequence[Tensor]) -> None:
    return None


def layer(seed: int = 0, *, inputs: int = 3) -> nn.Linear:
    made = nn.Linear(inputs, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return made


def losses(net: nn.Module, count: int, seed: int = 0) -> list[Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(4, 3, generator=generator) for _ in range(count)]
    return [lambda batch=batch: net(batch).square().mean() for batch in batches]  # type: ignore[misc]


def infinite(net: nn.Module) -> Tensor:
    loss: Tensor = net(torch.full((1, 3), torch.inf)).square().sum()
    return loss


def state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    return [each.detach().clone() for each in (*net.parameters(), *moments)]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))
