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
from uda_reid.models.heads import Discriminator
from uda_reid.ops.losses import told_apart
from uda_reid.run import QUIET, Run
from uda_reid.training.loop import Batches, SideBySide, Stateful, train
from uda_reid.types import AdaptationResult, Batch, Encoder, Images, Source, Target

Rate = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

SATURATED = 0.95
"""A discriminator that is right more often tells the encoder little: its gradient comes from few images."""
COLLAPSED = 0.1
"""Target embeddings that vary by less than this share of the source's have fallen together."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ADDA:
    """Adversarial discriminative domain adaptation.

    The source encoder M_s stays as it is, its batch norm too. The target encoder M_t starts as its copy and shares no
    weight with it. A discriminator D learns to tell M_s(source) from M_t(target), M_t to be taken for the source: the
    GAN loss with inverted labels, and no reversed gradient. Identities are of no use to it: only the source's images
    are.
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
        classifier = copy.deepcopy(source.classifier).eval() if self.on == "logits" else nn.Identity()
        discriminator = self._discriminator(encoder, source, run)
        towards = self._adam(encoder, self.lr)
        apart = self._adam(discriminator, self.discriminator_lr)
        run.prepare(encoder, towards)
        run.prepare(discriminator, apart)
        for module in (fixed, classifier):
            run.prepare(module)
            module.requires_grad_(False)

        def batches(epoch: int) -> SideBySide:
            everything = torch.arange(len(target.images))
            return SideBySide(
                self._batches(f"adda/source/{epoch}", source.images, source.training, encoder, run),
                self._batches(f"adda/target/{epoch}", target.images, everything, encoder, run),
            )

        def step(pair: tuple[Batch, Batch]) -> Mapping[str, Tensor]:
            self._train_mode(encoder)
            with run.autocast():
                with torch.no_grad():
                    mine = classifier(fixed(pair[0].images))
                theirs = classifier(encoder(pair[1].images))
            return self.update(mine.float(), theirs.float(), discriminator, towards=towards, apart=apart, run=run)

        def after(epoch: int, terms: Mapping[str, float]) -> None:
            told = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
            run.log(f"adda: epoch {epoch + 1}/{self.epochs}: {told}")
            for warning in _warnings(epoch, terms):
                run.log(f"warning: adda: {warning}")
            run.probe(encoder, epoch + 1)

        parts: dict[str, Stateful] = {
            "encoder": encoder, "discriminator": discriminator, "towards": towards, "apart": apart
        }  # fmt: skip
        history = train(step, batches, epochs=self.epochs, parts=parts, name="adda", run=run, after=after)
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
            Scalars: both losses, the share that the discriminator told apart rightly before its step, and how much the
            target's embeddings vary, as a share of the source's.
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
        spread = theirs.detach().std(0).norm() / mine.std(0).norm().clamp_min(1e-12)
        return {
            "discriminator": loss.detach(), "mapping": mapping.detach(), "told apart": right.float().mean(),
            "spread": spread,
        }  # fmt: skip

    def _batches(self, name: str, images: Images, rows: Tensor, encoder: Encoder, run: Run) -> Batches:
        return Batches(
            images,
            torch.zeros(len(images), dtype=torch.int64),  # nobody's labels are looked at
            islice(endless(rows, self.batch, run.stream(f"{name}/rows")), self.iterations),
            size=(int(encoder.spec["height"]), int(encoder.spec["width"])),
            augmentation=self.augmentation,
            name=f"{name}/augmentation",
            run=run,
        )

    def _adam(self, module: nn.Module, lr: float) -> torch.optim.Adam:
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=lr, betas=(self.beta1, 0.999), weight_decay=self.weight_decay)

    def _discriminator(self, encoder: Encoder, source: Source, run: Run) -> Discriminator:
        dim = encoder.dim if self.on == "embeddings" else int(source.pids[source.training].max()) + 1
        return Discriminator(dim, self.hidden, slope=self.slope, generator=run.stream("adda/discriminator"))

    def _train_mode(self, encoder: Encoder) -> None:
        encoder.train()
        for module in encoder.modules():
            if self.batch_norm == "source" and isinstance(module, BatchNorm):
                module.eval()

    def _facts(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        warnings = [warning for epoch, terms in enumerate(history) for warning in _warnings(epoch, terms)]
        return {
            "target images used": "all, without labels" if history else "none",
            "target images in batch norm": bool(history) and self.batch_norm == "target",
            "camera ids used": False,
            "source images used": "without labels",
            "warnings": "; ".join(warnings) or "none",
            "checkpoint": "last",
        }


def _warnings(epoch: int, terms: Mapping[str, float]) -> Iterator[str]:
    """Yield what went wrong in an epoch."""
    if terms["told apart"] > SATURATED:
        yield (
            f"epoch {epoch + 1}: the discriminator is right {terms['told apart']:.0%} of the time and teaches little; "
            "lower adapt.discriminator_lr"
        )
    if terms["spread"] < COLLAPSED:
        yield (
            f"epoch {epoch + 1}: target embeddings vary {terms['spread']:.2f} times as much as the source's, they have "
            "collapsed; lower adapt.lr"
        )
