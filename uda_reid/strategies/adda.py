"""ADDA: an encoder of the target's own, trained until a discriminator takes its embeddings for the source's.

Tzeng, Hoffman, Saenko and Darrell: Adversarial Discriminative Domain Adaptation, CVPR 2017, arXiv:1702.05464, and the
released code, github.com/erictzeng/adda (tools/train_adda.py, adda/adversary.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from uda_reid.data.sampling import endless
from uda_reid.models.batch_norm import batch_norms
from uda_reid.models.heads import Discriminator
from uda_reid.ops.losses import told_apart
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import Batches, SideBySide
from uda_reid.training.loop import Stateful, train
from uda_reid.types import AdaptationResult, Batch, Encoder, Images, Source, Target

Rate = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]

SATURATED = 0.95
"""A discriminator that is right more often tells the encoder little: its gradient comes from few images."""
COLLAPSED = 0.3
"""Target embeddings that vary by less than this share of the source's, or in fewer directions, have fallen together."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ADDA:
    """Adversarial discriminative domain adaptation.

    The source encoder M_s stays as it is, its batch norm too. The target encoder M_t starts as its copy and shares no
    weight with it. A discriminator D learns to tell M_s(source) from M_t(target), M_t to be taken for the source: the
    GAN loss with inverted labels, and no reversed gradient. Of the source only the images are of use to it.
    """

    on: Literal["embeddings", "logits"] = "embeddings"  # code: class logits; two re-ID domains share no identity
    step: Literal["simultaneous", "alternating"] = "simultaneous"  # code: both from one forward pass; else D, then M_t
    epochs: Annotated[int, Field(ge=0)] = 10  # an epoch is a snapshot; 10 x 500 steps, where the digits took 10,000
    iterations: Count = 500  # steps per epoch
    batch: Annotated[int, Field(gt=1)] = 32  # of either domain; code: 128 digits
    lr: Rate = 1e-5  # of M_t; code: 2e-4 from a fresh LeNet: a ResNet-50 would forget whom it tells apart
    discriminator_lr: Rate = 1e-4  # code: 2e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5  # code, of Adam
    weight_decay: Rate = 0.0  # code: 2.5e-5 is registered but never added to these losses
    hidden: tuple[Count, ...] = (1024, 1024)  # code: 500, 500 on ten logits
    slope: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the discriminator's ReLU below 0; code: 0 by its script
    batch_norm: Literal["target", "source"] = "target"  # of M_t: of its batches, or as it was; a LeNet has none
    augmentation: Literal["none", "ide", "reid"] = "reid"  # of either domain, as in the source's own training

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the target encoder after the last step; every epoch is one step for the probe."""
        encoder, fixed = copy.deepcopy(source.encoder), copy.deepcopy(source.encoder).eval()
        head = copy.deepcopy(source.classifier).eval() if self.on == "logits" else nn.Identity()
        head.requires_grad_(False)
        run.prepare(head)
        dim = head(torch.zeros(1, encoder.dim, device=run.device)).shape[1]
        discriminator = Discriminator(dim, self.hidden, slope=self.slope, generator=run.stream("adda/discriminator"))
        towards, apart = self._adam(encoder, self.lr), self._adam(discriminator, self.discriminator_lr)
        run.prepare(encoder, towards)
        run.prepare(discriminator, apart)
        run.prepare(fixed)
        parts: dict[str, Stateful] = {
            "encoder": encoder, "discriminator": discriminator, "towards": towards, "apart": apart
        }  # fmt: skip
        layers = batch_norms(encoder)
        history: list[dict[str, float]] = []
        saved = run.restore("adda")
        if saved is not None:
            history = saved["history"]
            for key, part in parts.items():
                part.load_state_dict(saved[key])

        def step(pair: tuple[Batch, ...]) -> Mapping[str, Tensor]:
            encoder.train()
            for layer in layers:
                layer.train(self.batch_norm == "target")
            with run.autocast():
                with torch.no_grad():
                    mine = head(run.gather(fixed(pair[0].images), len(pair[0].rows)))
                theirs = head(run.gather(encoder(pair[1].images), len(pair[1].rows)))
            return self.update(mine.float(), theirs.float(), discriminator, towards=towards, apart=apart, run=run)

        for epoch in range(len(history), self.epochs):
            pairs = self._pairs(source, target, encoder, epoch, run)
            name, batches = f"adda/{epoch}", {0: pairs}.__getitem__  # what an epoch changes is saved below, all at once
            history += train(step, batches, epochs=1, parts=parts, name=name, run=run, keep=False)
            told = ", ".join(f"{term} {value:.3f}" for term, value in history[-1].items())
            warnings = (f"warning: adda: {warning}" for warning in _warnings(epoch, history[-1]))
            for line in (f"adda: epoch {epoch + 1}/{self.epochs}: {told}", *warnings):
                run.log(line)
            run.probe(encoder, epoch + 1)
            run.save("adda", {"history": history, **{key: part.state_dict() for key, part in parts.items()}})
        return AdaptationResult(encoder.eval(), tuple(history), self._facts(history))

    def update(
        self,
        mine: Tensor,
        theirs: Tensor,
        discriminator: nn.Module,
        *,
        towards: torch.optim.Optimizer,
        apart: torch.optim.Optimizer,
        run: Run = QUIET,
    ) -> Mapping[str, Tensor]:
        """Make one step of the target encoder and one of the discriminator.

        Args:
            mine: (B, D) float32, what the source encoder makes of source images, without gradient.
            theirs: (B, D) float32, what the target encoder makes of target images, with its gradient.
            discriminator: (N, D) to (N,) logits; above 0 it says "source".
            towards: the target encoder's optimizer.
            apart: the discriminator's.
            run: the surroundings.

        Returns:
            Scalars: both losses, the share that the discriminator told apart rightly before its step, and how much and
            in how many directions the target's embeddings vary, as shares of the source's.
        """
        said = discriminator(torch.cat([mine, theirs.detach()]))
        loss = told_apart(said, len(mine))
        if self.step == "alternating":
            run.step(loss, apart)
        # The source's half leads to no weight of the encoder, as in the code: its gradient is half of equation 9's.
        mapping = told_apart(-discriminator(torch.cat([mine, theirs])), len(mine))
        run.step(mapping, towards)  # what falls on the discriminator's weights is cleared before its own step
        if self.step == "simultaneous":
            run.step(loss, apart)
        right = torch.cat([said[: len(mine)] > 0, said[len(mine) :] < 0])
        (spread, rank), (usual, full) = _variety(theirs.detach()), _variety(mine)
        return {
            "discriminator": loss.detach(), "mapping": mapping.detach(), "told apart": right.float().mean(),
            "spread": spread / usual.clamp_min(1e-12), "rank": rank / full.clamp_min(1e-12),
        }  # fmt: skip

    def _pairs(self, source: Source, target: Target, encoder: Encoder, epoch: int, run: Run) -> SideBySide:
        """Return the batches of an epoch."""
        size = int(encoder.spec["height"]), int(encoder.spec["width"])

        def batches(name: str, images: Images, rows: Tensor) -> Batches:
            plan = islice(endless(rows, self.batch, run.stream(f"{name}/rows")), self.iterations)
            labels, name = torch.zeros(len(images), dtype=torch.int64), f"{name}/augmentation"  # nobody's labels
            return Batches(images, labels, plan, size=size, augmentation=self.augmentation, name=name, run=run)

        return SideBySide(
            batches(f"adda/source/{epoch}", source.images, source.training),
            batches(f"adda/target/{epoch}", target.images, torch.arange(len(target.images))),
        )

    def _adam(self, module: nn.Module, lr: float) -> torch.optim.Adam:
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=lr, betas=(self.beta1, 0.999), weight_decay=self.weight_decay)

    def _facts(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        without = "without labels" + (", and the classifier trained with them" if self.on == "logits" else "")
        warnings = [warning for epoch, terms in enumerate(history) for warning in _warnings(epoch, terms)]
        return {
            "target images used": "all, without labels" if history else "none",
            "target images in batch norm": bool(history) and self.batch_norm == "target",
            "camera ids used": False,
            "source images used": without if history else "none",
            "warnings": "; ".join(warnings) or "none",
            "checkpoint": "last",
        }


def _variety(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far embeddings (B, D) are from their mean, and in how many directions, about 1 to B - 1.

    The number is tr(C)^2 / tr(C^2), C being their covariance. A batch norm behind a collapse restores the spread of
    every entry, but no direction.
    """
    away = embeddings - embeddings.mean(0)
    products = away @ away.T
    total = products.trace()
    return total.sqrt(), total.square() / products.square().sum().clamp_min(1e-30)


def _warnings(epoch: int, terms: Mapping[str, float]) -> Iterator[str]:
    """Yield what went wrong in an epoch."""
    if terms["told apart"] > SATURATED:
        yield (
            f"epoch {epoch + 1}: the discriminator is right {terms['told apart']:.0%} of the time and teaches little; "
            "lower adapt.discriminator_lr"
        )
    if min(terms["spread"], terms["rank"]) < COLLAPSED:
        yield (
            f"epoch {epoch + 1}: target embeddings vary {terms['spread']:.2f} times as much as the source's, in "
            f"{terms['rank']:.2f} times as many directions: they have collapsed; lower adapt.lr"
        )
