"""Deep CORAL: learn the source's identities, and give source and target embeddings the same covariance.

Sun and Saenko: Deep CORAL: Correlation Alignment for Deep Domain Adaptation, ECCV Workshops 2016, arXiv:1607.01719.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from uda_reid.data.sampling import endless, shuffled
from uda_reid.ops.losses import identification
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import Batches, SideBySide
from uda_reid.training.loop import Stateful, train
from uda_reid.training.mixed import embed
from uda_reid.types import AdaptationResult, Batch, Source, Target


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeepCORAL:
    """Fine-tune the source model on its own labels while pulling the target's covariance towards the source's.

    The paper aligns the scores of the last layer, one for each class that both domains share. Two camera networks share
    no identity, so here the embeddings are aligned.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0  # lambda of equation 6; the paper sets it by the size of the two losses
    epochs: Annotated[int, Field(ge=0)] = 10  # over the source; the paper gives none
    batch: Annotated[int, Field(gt=1)] = 32  # images of each domain; section 4: 128
    lr: Annotated[float, Field(gt=0)] = 1e-3  # section 4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # section 4
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # section 4

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the encoder after the last epoch; every epoch is one step for the probe."""
        encoder, classifier = copy.deepcopy(source.encoder), copy.deepcopy(source.classifier)
        optimizer = torch.optim.SGD(
            [*encoder.parameters(), *classifier.parameters()],
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        run.prepare(encoder, optimizer)
        run.prepare(classifier, optimizer)

        def batches(epoch: int) -> SideBySide:
            if epoch:
                run.probe(encoder, epoch)
            name = f"deep_coral/{epoch}"
            rows = list(shuffled(source.training, self.batch, run.stream(f"{name}/source")))
            others = endless(torch.arange(len(target.images)), len(rows[0]), run.stream(f"{name}/target"))
            nobody = torch.full((len(target.images),), -1)
            size = int(encoder.spec["height"]), int(encoder.spec["width"])
            read = partial(Batches, size=size, augmentation="reid", run=run)
            labelled = read(source.images, source.pids, rows, name=f"{name}/source images")
            unlabelled = read(target.images, nobody, islice(others, len(rows)), name=f"{name}/target images")
            return SideBySide(labelled, unlabelled)

        def step(pair: tuple[Batch, ...]) -> Mapping[str, Tensor]:
            encoder.train()
            classifier.train()
            labels = pair[0].labels
            with run.autocast():
                [embeddings] = embed(encoder, pair, apart=False, run=run)
                logits = classifier(embeddings[: len(labels)])
            coral = distance_of_covariances(embeddings[: len(labels)].float(), embeddings[len(labels) :].float())
            loss = identification(logits.float(), labels)
            run.step(loss + self.weight * coral, optimizer)
            return {"identification": loss, "coral": coral}

        parts: dict[str, Stateful] = {"encoder": encoder, "classifier": classifier, "optimizer": optimizer}
        history = train(step, batches, epochs=self.epochs, parts=parts, name="deep_coral", run=run)
        if history:
            run.probe(encoder, len(history))
        facts = {
            "target images used": "all, without labels" if self.epochs else "none",
            "target images in batch norm": self.epochs > 0,
            "camera ids used": False,
            "checkpoint": "last",
        }
        return AdaptationResult(encoder.eval(), tuple(history), facts)


def distance_of_covariances(source: Tensor, target: Tensor) -> Tensor:
    """Return the CORAL loss of two batches of embeddings, (B, D) float32 each; equations 1 to 3."""
    return (source.T.cov() - target.T.cov()).square().sum() / (4 * source.shape[1] ** 2)
