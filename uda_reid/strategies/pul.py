"""PUL: cluster the target, keep what lies near a cluster's centre, fine-tune on it, repeat.

Fan, Zheng, Yan and Yang: Unsupervised Person Re-identification: Clustering and Fine-tuning, ACM ToMM 2018,
doi 10.1145/3243316. Where the text and the released code (github.com/hehefan/Unsupervised-Person-Re-identification-
Clustering-and-Fine-tuning, PUL/unsupervised.py) differ, the code decides and the text is an option.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from uda_reid.data.sampling import shuffled
from uda_reid.models.heads import Classifier
from uda_reid.ops.clustering import KMeans, kmeans, nearest_samples
from uda_reid.ops.distance import normalise
from uda_reid.ops.losses import identification
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.training.loop import Stateful, train
from uda_reid.types import AdaptationResult, Batch, Encoder, Source, Target

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PUL:
    """Progressive unsupervised learning."""

    clusters: Count = 700  # code: 700 for Duke, 750 for Market and CUHK03, close to the true 702/751/767
    threshold: float = 0.85  # code: LAMBDA, the least cosine to a centre, strictly greater
    rounds: Annotated[int, Field(ge=0)] = 25  # code
    tolerance: Share = 0.01  # text: stop once the reliable set is stable; its size changed by less than this. 0: never
    select: Literal["any", "own"] = "any"  # code: near any centre; text: near the centre of its own cluster
    restart: Literal["initial", "previous"] = "initial"  # code: every round fine-tunes the source model anew
    starts: Count = 1  # k-means restarts; code: 10, scikit-learn's default then
    epochs: Annotated[int, Field(ge=0)] = 20  # code, per round
    batch: Annotated[int, Field(gt=1)] = 16  # code
    lr: Annotated[float, Field(ge=0)] = 1e-3  # code
    momentum: Share = 0.9  # code
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # code: none
    dropout: Share = 0.5  # code, before the classifier
    head_std: Annotated[float, Field(gt=0)] = 0.001  # code: classifier weights ~ N(0, head_std^2)
    augmentation: Literal["none", "ide", "reid"] = "ide"  # code: the same as for the source model

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the encoder after the last round; every round is one step for the probe."""
        encoder = copy.deepcopy(source.encoder)
        history: list[dict[str, float]] = []
        stopped = f"after {self.rounds} rounds"
        saved = run.restore("pul")
        if saved is not None:
            encoder.load_state_dict(saved["encoder"])
            history = saved["history"]
        for number in range(len(history), self.rounds):
            features = extract(encoder, target.images, run=run)
            clusters, reliable = run.main_only(partial(self.choose, features, run=run, number=number))
            for line in clusters.alike:
                run.log(f"PUL: {line}")
            reason = self._stop(int(reliable.sum()), history)
            if reason:
                stopped = f"after {number} rounds: {reason}"
                run.log(f"PUL: stopped {stopped}")
                break
            start = source.encoder if self.restart == "initial" else encoder
            encoder, trained = self._fine_tune(start, target, clusters.labels, reliable, number, run)
            history.append({"selected": float(reliable.sum()), "inertia": clusters.inertia, **trained})
            run.log(
                f"PUL: round {number + 1}/{self.rounds}: {int(reliable.sum())} of {len(reliable)} images are reliable, "
                + ", ".join(f"{name} {value:.3f}" for name, value in trained.items())
            )
            run.probe(encoder, number + 1, torch.where(reliable, clusters.labels, -1))
            run.save("pul", {"encoder": encoder.state_dict(), "history": history})
        return AdaptationResult(encoder, tuple(history), self._facts(stopped, len(history)))

    def choose(self, features: Tensor, *, run: Run = QUIET, number: int = 0) -> tuple[KMeans, Tensor]:
        """Cluster the features and mark the reliable ones.

        Args:
            features: (N, D) float32, raw: k-means runs on them as they are.
            run: the surroundings.
            number: the round, for the random stream.

        Returns:
            The clusters, and (N,) bool: True where the image is trained on.
        """
        clusters = kmeans(features, self.clusters, generator=run.stream(f"pul/kmeans/{number}"), starts=self.starts)
        # A centre is the sample nearest to the centroid, of whatever cluster (code: a column-wise argmin).
        centres = features[nearest_samples(features, clusters.centroids)]
        return clusters, reliable(features, centres, clusters.labels, threshold=self.threshold, select=self.select)

    def _stop(self, selected: int, history: list[dict[str, float]]) -> str:
        if selected < 2:
            return f"{selected} reliable images are too few to train on"
        if history and abs(selected - history[-1]["selected"]) < self.tolerance * history[-1]["selected"]:
            return f"the reliable set changed by less than {self.tolerance:.0%}"
        return ""

    def _fine_tune(
        self, start: Encoder, target: Target, labels: Tensor, reliable: Tensor, number: int, run: Run
    ) -> tuple[Encoder, dict[str, float]]:
        encoder = copy.deepcopy(start)
        name = f"pul/round/{number}"
        head = Classifier(
            encoder.dim,
            self.clusters,  # all of them: a cluster without a reliable image is an output that is never right
            dropout=self.dropout,
            std=self.head_std,
            generator=run.stream(f"{name}/head"),
        )
        optimizer = torch.optim.SGD(
            [*encoder.parameters(), *head.parameters()],
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        run.prepare(encoder, optimizer)
        run.prepare(head, optimizer)
        rows = torch.nonzero(reliable).flatten()

        def batches(epoch: int) -> Batches:
            return Batches(
                target.images,
                labels,
                shuffled(rows, self.batch, run.stream(f"{name}/rows/{epoch}")),
                size=(int(encoder.spec["height"]), int(encoder.spec["width"])),
                augmentation=self.augmentation,
                name=f"{name}/augmentation/{epoch}",
                run=run,
            )

        def step(batch: Batch) -> Mapping[str, Tensor]:
            encoder.train()
            head.train()
            with run.autocast():
                logits = head(run.gather(encoder(batch.images), len(batch.rows)))
            loss = identification(logits.float(), batch.labels)
            run.step(loss, optimizer)
            return {"loss": loss, "accuracy": (logits.detach().argmax(1) == batch.labels).float().mean()}

        parts: dict[str, Stateful] = {"encoder": encoder, "head": head, "optimizer": optimizer}
        trained = train(step, batches, epochs=self.epochs, parts=parts, name=name, run=run, slot="pul/round")
        encoder.eval()
        return encoder, trained[-1] if trained else {}

    def _facts(self, stopped: str, rounds: int) -> dict[str, Any]:
        return {
            "target images used": "all, without labels" if self.rounds else "none",
            "target images in batch norm": rounds > 0 and self.epochs > 0,
            "camera ids used": False,
            "number of clusters given": self.clusters,
            "k-means starts": f"{self.starts} (the official code used 10)",
            "stopped": stopped,
            "checkpoint": "last",
        }


def reliable(
    features: Tensor, centres: Tensor, labels: Tensor, *, threshold: float, select: Literal["any", "own"]
) -> Tensor:
    """Mark the samples whose cosine to a centre is strictly greater than the threshold.

    Args:
        features: (N, D) float32.
        centres: (K, D) float32, the features of the samples nearest to the centroids.
        labels: (N,) int64 cluster of every sample.
        threshold: least cosine; -1 or less keeps all, more than 1 none.
        select: "any" centre, or the centre of the sample's "own" cluster.

    Returns:
        (N,) bool.

    Source: PUL/unsupervised.py of the released code (any); equation 3 of the paper (own).

    >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.6]])
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> reliable(features, features[[0, 2]], labels, threshold=0.85, select="any").tolist()
    [True, True, True, False]
    """
    similarity = normalise(features) @ normalise(centres).T
    if select == "own":
        return similarity.gather(1, labels[:, None]).squeeze(1) > threshold
    return (similarity > threshold).any(1)
