"""What sits on an embedding while training: the identity classifier, the discriminator of domains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from uda_reid.errors import RecipeError


class Classifier(nn.Module):
    """Embeddings (B, dim) to logits (B, classes): a ReLU where asked for, dropout, then one linear layer.

    Args:
        dim: size of an embedding.
        classes: number of identities or clusters.
        dropout: share of the embedding's entries dropped in training, in [0, 1).
        std: standard deviation of the fresh weights, N(0, std^2); biases start at 0.
        bias: whether the layer has biases.
        rectified: whether the layer sees relu(embedding), the units of a hidden layer, or the embedding.
        generator: what the weights are drawn from; the global random state is untouched.

    Raises:
        RecipeError: a size under 1, or a dropout outside [0, 1).

    Source: the head of PUL's `baseline/train.py` (dropout, then weights from N(0, 0.001^2)).

    >>> head = Classifier(8, 3, generator=torch.Generator().manual_seed(0))
    >>> head(torch.ones(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        generator: torch.Generator,
        dropout: float = 0.0,
        std: float = 0.001,
        bias: bool = True,
        rectified: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or classes < 1:
            raise RecipeError(
                f"a classifier from {dim} numbers to {classes} classes cannot be; both must be at least 1"
            )
        if not 0 <= dropout < 1:
            raise RecipeError(f"a dropout of {dropout} is out of range; use at least 0 and less than 1")
        self.rectified = rectified
        self.dropout = nn.Dropout(dropout)
        # By way of "meta": the layer's own initialisation would draw from the global random state.
        self.linear = nn.Linear(dim, classes, bias=bias, device="meta").to_empty(device="cpu")
        nn.init.normal_(self.linear.weight, std=std, generator=generator)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the logits, (B, classes)."""
        seen = embeddings.relu() if self.rectified else embeddings
        logits: Tensor = self.linear(self.dropout(seen))
        return logits


class Discriminator(nn.Module):
    """Embeddings (B, dim) to one logit each, (B,): linear layers with a ReLU between them.

    Args:
        dim: size of an embedding.
        hidden: sizes of the layers between.
        slope: of the ReLU below 0, in [0, 1).
        generator: what the weights are drawn from (He et al. 2015); biases start at 0.

    Raises:
        RecipeError: a size under 1.

    Source: adda/adversary.py in github.com/erictzeng/adda, where two logits go through a softmax: their difference is
    the logit here.

    >>> Discriminator(8, (5, 5), generator=torch.Generator().manual_seed(0))(torch.ones(2, 8)).shape
    torch.Size([2])
    """

    def __init__(self, dim: int, hidden: Sequence[int], *, generator: torch.Generator, slope: float = 0.0) -> None:
        super().__init__()
        sizes = [dim, *hidden, 1]
        if min(sizes) < 1:
            raise RecipeError(f"a discriminator with layers of {sizes} numbers cannot be; all must be at least 1")
        layers: list[nn.Module] = []
        for before, behind in pairwise(sizes):
            layer = nn.Linear(before, behind, device="meta").to_empty(device="cpu")
            nn.init.kaiming_normal_(layer.weight, a=slope, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the logits, (B,)."""
        logits: Tensor = self.layers(embeddings)
        return logits.squeeze(1)
