"""What sits on embeddings while training: the identity classifier, and what tells domains apart or unites them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uda_reid.errors import RecipeError
from uda_reid.ops.losses import told_apart

OneClass = Literal["three", "bce", "svdd"]
"""The forms of the one-class loss: classes source, target and nominal; one logistic class; a ball."""
SOURCE, TARGET, NOMINAL = 0, 1, 2


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


def centroid_classifier(centroids: Tensor, *, generator: torch.Generator, dropout: float = 0.0) -> Classifier:
    """Return a classifier of clusters without biases whose weights are the clusters' centroids (C, D) float32.

    Where there are no clusters, it has one output of no meaning.

    Source: examples/mmt_train_kmeans.py in github.com/yxgeee/MMT (Ge et al. 2020).
    """
    classes, dim = centroids.shape
    head = Classifier(dim, max(classes, 1), dropout=dropout, bias=False, generator=generator)
    with torch.no_grad():
        head.linear.weight[:classes].copy_(centroids)
    return head


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


class DomainSimilarity(nn.Module):
    """The two domain losses of DAAM, on the embeddings of its shared and its specific branch, (B, dim) each.

    The shared embeddings of both domains are drawn to one class, the nominal domain; nothing tells their domain. The
    specific ones are told apart by domain. Nothing is reversed: head and embeddings descend the same losses.

    - `three`: a layer to source, target and nominal; shared embeddings are nominal, specific ones of their domain. The
      specific embeddings are what keeps "nominal" from being the answer to everything.
    - `bce`: -ln sigma(w f / |w|), without a bias, whose growth alone would satisfy it; told apart by another layer. On
      embeddings that are means of ReLUs, which are positive, a positive w satisfies it all the same.
    - `svdd`: |G f - c|^2 with a layer G without bias and c the mean of G f over the first batch (Ruff et al., Deep
      One-Class Classification, ICML 2018); told apart by another layer. G may learn to give c for everything.

    Args:
        dim: size of an embedding.
        form: of the one-class loss.
        generator: what the weights are drawn from.

    Raises:
        RecipeError: the form is unknown.

    Source: the one-class loss to a nominal domain is from the abstract of Huang et al. (arXiv:1905.10529v1), which
    gives no formula; the forms are this package's.

    >>> head = DomainSimilarity(8, "three", generator=torch.Generator().manual_seed(0))
    >>> [round(float(loss.detach()), 4) for loss in head(torch.zeros(4, 8), torch.zeros(4, 8), 2)]  # ln 3
    [1.0986, 1.0986]
    """

    centre: Tensor
    centred: Tensor

    def __init__(self, dim: int, form: OneClass, *, generator: torch.Generator) -> None:
        super().__init__()
        if form not in get_args(OneClass):
            raise RecipeError(f"one-class loss {form!r} is unknown; use {', '.join(get_args(OneClass))}")
        self.form = form
        classes = {"three": 3, "bce": 1, "svdd": dim}[form]
        std = dim**-0.5 if form == "svdd" else 0.001
        self.one = Classifier(dim, classes, std=std, bias=form == "three", generator=generator)
        self.two = Discriminator(dim, (), generator=generator) if form != "three" else nn.Identity()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("centred", torch.tensor(False))

    def forward(self, shared: Tensor, specific: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return the loss of the shared and the loss of the specific embeddings; the first rows are the source's."""
        similarity = self.similarity(shared.float())
        if self.form != "three":
            return similarity, told_apart(self.two(specific.float()), first)
        domains = torch.full((len(specific),), TARGET, device=specific.device)
        domains[:first] = SOURCE
        return similarity, F.cross_entropy(self.one(specific.float()), domains)

    def similarity(self, shared: Tensor) -> Tensor:
        """Return how far embeddings (B, dim) float32 are from the nominal domain, a scalar."""
        found: Tensor = self.one(shared)
        if self.form == "three":
            return F.cross_entropy(found, torch.full((len(found),), NOMINAL, device=found.device))
        if self.form == "bce":
            return F.softplus(-found / self.one.linear.weight.norm()).mean()
        # Chosen on the device: to ask it in every step would be to wait for it.
        self.centre.copy_(torch.where(self.centred, self.centre, found.detach().mean(0)))
        self.centred.fill_(True)
        return (found - self.centre).square().sum(1).mean()
