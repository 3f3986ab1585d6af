"""The clustering baseline: label the target by its clusters, train on these labels for an epoch, repeat.

"Song" below: Song et al., Unsupervised domain adaptive re-identification: theory and practice, Pattern Recognition 2020
(arXiv:1807.11334), and their code, github.com/lsongx/DomainAdaptiveReID, selftraining.py. "MMT": the baseline that Ge,
Chen and Li compare with, Mutual Mean-Teaching, ICLR 2020 (arXiv:2001.01526), in their code, github.com/yxgeee/MMT,
examples/base_train_kmeans.py and base_train_dbscan.py.
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

from uda_reid.data.sampling import identity_balanced
from uda_reid.errors import RecipeError
from uda_reid.models.encoder import Embedder
from uda_reid.models.heads import centroid_classifier
from uda_reid.ops.losses import batch_hard_triplet, identification
from uda_reid.run import QUIET, Run
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.training.loop import Stateful, train
from uda_reid.training.pseudo_labels import Distance, Method, PseudoLabels, assign
from uda_reid.types import AdaptationResult, Batch, Encoder, Source, Target

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Loss = Literal["identification", "triplet", "identification+triplet"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Cluster:
    """Every epoch: cluster the target's features, then train on the clusters as if they were identities."""

    method: Method = "kmeans"  # MMT: both; Song: DBSCAN
    clusters: Annotated[int, Field(gt=1)] = 500  # k-means; MMT: 500, and 700 and 900 for comparison
    starts: Count = 1  # of k-means; MMT: 10, scikit-learn's default then
    distance: Distance = "jaccard"  # of DBSCAN: k-reciprocal as in both (Song adds a tenth of a distance to the source)
    k1: Count = 20  # of the Jaccard distance; both
    k2: Count = 6  # both
    eps: Annotated[float, Field(ge=0, le=2)] = 0.0  # DBSCAN; 0: from the nearest 0.16 % of pairs, as in both
    min_samples: Count = 4  # DBSCAN; both
    loss: Loss = "identification+triplet"  # MMT; Song: triplet
    epochs: Natural = 40  # MMT
    iterations: Natural = 400  # batches per epoch, MMT's scripts; 0: about as many as the clustered images fill
    batch: Annotated[int, Field(gt=1)] = 64  # MMT: 16 clusters x 4 images
    instances: Annotated[int, Field(gt=1)] = 4  # images per cluster in a batch; both
    lr: Annotated[float, Field(ge=0)] = 3.5e-4  # MMT, Adam; Song: 6e-5, SGD
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # MMT
    smoothing: Share = 0.1  # MMT
    margin: Annotated[float, Field(ge=0)] | None = None  # of the triplet loss; MMT: soft, Song: 0.5
    dropout: Share = 0.0  # before the classifier; MMT
    augmentation: Literal["none", "ide", "reid"] = "reid"  # MMT: flip, pad and crop, erasing; ours also jitters colours

    def __post_init__(self) -> None:
        if self.batch % self.instances or self.batch < 2 * self.instances:
            rule = f"give a multiple of instances ({self.instances}), twice that or more"
            raise RecipeError(f"batch {self.batch} holds no whole number of clusters; {rule}")
        if self.distance == "jaccard" and self.eps >= 1:
            raise RecipeError(f"eps {self.eps} is every pair by Jaccard distance; give less than 1, or 0 for the rule")

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the encoder after the last epoch; every epoch is one step for the probe."""
        encoder = copy.deepcopy(source.encoder)
        history: list[dict[str, float]] = []
        changes: list[str] = []
        stopped = f"after {self.epochs} epochs"
        saved = run.restore("cluster")
        if saved is not None:
            encoder.load_state_dict(saved["encoder"])
            history, changes = saved["history"], saved["changes"]
        for epoch in range(len(history), self.epochs):
            # Both codes choose the radius in the first epoch and keep it; one that had to be changed is kept, too.
            eps = history[-1].get("eps", self.eps) if history else self.eps
            features = extract(encoder, target.images, run=run)
            found = run.main_only(partial(self.label, features, eps=eps, run=run, epoch=epoch))
            changes += [f"epoch {epoch + 1}: {step}" for step in found.steps]
            for step in found.steps:
                run.log(f"cluster: {step}")
            if found.clusters < 2:
                stopped = f"after {epoch} epochs: no two clusters were found"
                run.log(f"cluster: stopped {stopped}")
                break
            trained = self._train(encoder, target, found, epoch, run)
            radius = {"eps": found.eps} if self.method == "dbscan" else {}
            history.append({**found.counts, **radius, **trained})
            run.log(
                f"cluster: epoch {epoch + 1}/{self.epochs}: {found.clusters} clusters of "
                f"{found.counts['images']:.0f} images, "
                + ", ".join(f"{name} {value:.3f}" for name, value in trained.items())
            )
            run.probe(encoder, epoch + 1, found.labels)
            run.save("cluster", {"encoder": encoder.state_dict(), "history": history, "changes": changes})
        return AdaptationResult(encoder.eval(), tuple(history), self._facts(stopped, history, changes))

    def label(self, features: Tensor, *, eps: float = 0.0, run: Run = QUIET, epoch: int = 0) -> PseudoLabels:
        """Cluster the features (N, D) float32 of one epoch; `eps` is DBSCAN's radius, 0 for the automatic one."""
        return assign(
            features, method=self.method, clusters=self.clusters, starts=self.starts, distance=self.distance,
            k1=self.k1, k2=self.k2, eps=eps, min_samples=self.min_samples,
            generator=run.stream(f"cluster/kmeans/{epoch}"),
        )  # fmt: skip

    def _train(
        self, encoder: Encoder, target: Target, found: PseudoLabels, epoch: int, run: Run
    ) -> Mapping[str, float]:
        """Train the encoder for one epoch, in place, and return the means of the losses."""
        name = f"cluster/epoch/{epoch}"
        head = centroid_classifier(found.centroids, dropout=self.dropout, generator=run.stream(f"{name}/head"))
        weights = [weight for weight in (*encoder.parameters(), *head.parameters()) if weight.requires_grad]
        # A new one every epoch, as in MMT's code: the classifier is a new one too.
        optimizer = torch.optim.Adam(weights, lr=self.lr, weight_decay=self.weight_decay)
        run.prepare(encoder, optimizer)
        run.prepare(head, optimizer)

        def batches(_: int) -> Batches:
            return Batches(
                target.images,
                found.labels,
                identity_balanced(
                    found.labels,
                    identities=self.batch // self.instances,
                    instances=self.instances,
                    generator=run.stream(f"{name}/rows"),
                    batches=self.iterations,
                ),
                size=(int(encoder.spec["height"]), int(encoder.spec["width"])),
                augmentation=self.augmentation,
                name=f"{name}/augmentation",
                run=run,
            )

        def step(batch: Batch) -> Mapping[str, Tensor]:
            encoder.train()
            head.train()
            with run.autocast():
                pooled, embeddings = (run.gather(each, len(batch.rows)) for each in _both(encoder, batch.images))
                logits = head(embeddings)
            terms = {}
            if "identification" in self.loss:
                terms["identification"] = identification(logits.float(), batch.labels, smoothing=self.smoothing)
            if "triplet" in self.loss:
                terms["triplet"] = batch_hard_triplet(pooled.float(), batch.labels, margin=self.margin)
            run.step(torch.stack(list(terms.values())).sum(), optimizer)
            return {**terms, "accuracy": (logits.detach().argmax(1) == batch.labels).float().mean()}

        parts: dict[str, Stateful] = {"encoder": encoder, "head": head, "optimizer": optimizer}
        # An epoch and its labels are saved together, or neither: a head is of no use with other clusters.
        return train(step, batches, epochs=1, parts=parts, name=name, run=run, keep=False)[-1]

    def _facts(self, stopped: str, history: list[dict[str, float]], changes: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "number of clusters given": self.clusters,
            "k-means starts": f"{self.starts} (MMT's code used 10)",
        }
        if self.method == "dbscan":
            radius = "by rule" if self.eps == 0 else "given"
            last = f"{history[-1]['eps']:.3f}" if history else "none"
            found = {
                "number of clusters given": "none",
                "DBSCAN": f"{self.distance}, eps {radius}, last {last}, min_samples {self.min_samples}",
                "eps changed": "; ".join(changes) or "never",
            }
        return {
            "target images used": "all, without labels" if self.epochs else "none",
            "target images in batch norm": bool(history),
            "camera ids used": False,
            **found,
            "stopped": stopped,
            "checkpoint": "last",
        }


def _both(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings before the neck, which triplets compare, and behind it, which the classifier gets."""
    if isinstance(encoder, Embedder):
        pooled = encoder.pooled(images)
        return pooled, encoder.neck(pooled)
    embeddings: Tensor = encoder(images)
    return embeddings, embeddings
