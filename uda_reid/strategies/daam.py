"""DAAM: attention parts what the domains share from what is specific to each; people are learned on the shared part.

Huang, Peng, Jin, Xing, Lang and Feng: Domain Adaptive Attention Model, arXiv:1905.10529v1, 2019 ("v1" below); with Li
and Ge: Domain Adaptive Attention Learning, AAAI 2020 ("v2"). Beyond the abstracts neither text nor code could be had:
what these leave open is a "choice". "SpCL": Ge et al., NeurIPS 2020, with its code, github.com/yxgeee/SpCL.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from uda_reid.errors import RecipeError
from uda_reid.models.attention import Shape
from uda_reid.models.branches import Parted, TwoBranches, with_attention
from uda_reid.models.heads import DomainSimilarity, OneClass, centroid_classifier
from uda_reid.ops.losses import batch_hard_triplet, by_nearness, identification, smoothed, soft_identification
from uda_reid.ops.transfer import moved
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.training.loop import Stateful, train
from uda_reid.training.mixed import embed, mixed
from uda_reid.training.pseudo_labels import Method, PseudoLabels, assign
from uda_reid.types import AdaptationResult, Batch, Source, Target

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DAAM:
    """Domain adaptive attention.

    Before the last stage an attention A parts the maps F into shared ones, A F, and specific ones, F - A F, each with a
    last stage of its own. The shared embedding learns the source's identities and the target's clusters and is drawn to
    one nominal domain of both. The specific one tells the domains apart, and is dropped in the end.
    """

    variant: Literal["v1", "v2"] = "v1"  # of the target's loss: triplets or hard labels; triplets and soft labels
    attention: Shape = "both"  # choice
    one_class: OneClass = "three"  # choice; v1: one-class classification, towards a nominal domain
    domain_weight: Weight = 0.1  # choice, of either domain loss
    target_weight: Weight = 1.0  # choice
    unsupervised: Literal["triplet", "identification"] = "triplet"  # of v1; choice
    soft: Literal["smoothed", "nearness"] = "smoothed"  # of v2; choice: smoothed clusters, or nearness to all centroids
    smoothing: Share = 0.1  # of `smoothed`; choice
    temperature: Annotated[float, Field(gt=0)] = 0.05  # of `nearness`; choice, SpCL's
    margin: Weight | None = 0.3  # of all triplets, None: soft; choice, that of the source's training
    method: Method = "dbscan"  # choice; SpCL's
    clusters: Annotated[int, Field(gt=1)] = 500  # of k-means
    k1: Count = 20  # of DBSCAN's Jaccard distance; SpCL: 30
    k2: Count = 6  # SpCL
    eps: Annotated[float, Field(ge=0, lt=1)] = 0.6  # of DBSCAN, SpCL; 0: from the nearest 0.16 % of pairs
    min_samples: Count = 4  # of DBSCAN, SpCL
    epochs: Natural = 50  # choice; SpCL's
    iterations: Natural = 400  # batches per epoch, SpCL; 0: about as many as the clustered images fill
    batch: Annotated[int, Field(gt=1)] = 64  # of either domain, SpCL
    instances: Annotated[int, Field(gt=1)] = 4  # images per identity or cluster in a batch, SpCL
    lr: Weight = 3.5e-4  # of Adam, SpCL
    fresh_lr: Weight = 3.5e-3  # of the attention and the domain losses' layers, which start from nothing; choice
    milestones: tuple[Count, ...] = (20, 40)  # epochs after which both rates are divided by 10, SpCL
    weight_decay: Weight = 5e-4  # SpCL
    batch_norm: Literal["target", "mixed"] = "target"  # choice: domains normalised apart, and tested as the target
    augmentation: Literal["none", "ide", "reid"] = "reid"  # choice, that of the source's training

    def __post_init__(self) -> None:
        if self.batch % self.instances or self.batch < 2 * self.instances:
            rule = f"give a multiple of instances ({self.instances}), at least two of them"
            raise RecipeError(f"batch {self.batch} holds no whole number of identities; {rule}")

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the shared branch after the last epoch; every epoch is one step for the probe."""
        if not self.epochs:
            return AdaptationResult(copy.deepcopy(source.encoder).eval(), (), self._facts([], []))
        encoder = with_attention(source.encoder, self.attention, seed=run.seed_for("daam/attention"))
        domains = DomainSimilarity(encoder.dim, self.one_class, generator=run.stream("daam/domains"))
        net = nn.ModuleDict({
            "branches": TwoBranches(encoder), "identities": copy.deepcopy(source.classifier), "domains": domains
        })  # fmt: skip
        layers: tuple[list[Tensor], list[Tensor]] = [], []  # learned before, and fresh
        for name, weight in net.named_parameters():
            if weight.requires_grad:
                layers[name.startswith(("branches.encoder.attention", "domains"))].append(weight)
        optimizer = torch.optim.Adam([{"params": part} for part in layers], weight_decay=self.weight_decay)
        run.prepare(net, optimizer)
        history: list[dict[str, float]] = []
        changes: list[str] = []
        saved = run.restore("daam")
        if saved is not None:
            history, changes = saved["history"], saved["changes"]
            net.load_state_dict(saved["net"])
            optimizer.load_state_dict(saved["optimizer"])
        for epoch in range(len(history), self.epochs):
            for group, rate in zip(optimizer.param_groups, (self.lr, self.fresh_lr), strict=True):
                group["lr"] = rate * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
            features = extract(encoder, target.images, run=run)
            found = run.main_only(partial(self.label, features, run=run, epoch=epoch))
            trained = self._train(net, optimizer, source, target, features, found, epoch, run)
            changes += [f"epoch {epoch + 1}: {step}" for step in found.steps]
            history.append({**found.counts, **({"eps": found.eps} if self.method == "dbscan" else {}), **trained})
            told = ", ".join(f"{term} {value:.3f}" for term, value in trained.items())
            for line in (*found.steps, f"epoch {epoch + 1}/{self.epochs}: {found.clusters} clusters, {told}"):
                run.log(f"daam: {line}")
            run.probe(encoder, epoch + 1, found.labels)
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
            run.save("daam", {"history": history, "changes": changes, **state})
        return AdaptationResult(encoder.eval(), tuple(history), self._facts(history, changes))

    def label(self, features: Tensor, *, run: Run = QUIET, epoch: int = 0) -> PseudoLabels:
        """Cluster the target's shared embeddings (N, D) float32 of one epoch."""
        return assign(
            features, method=self.method, clusters=self.clusters, k1=self.k1, k2=self.k2, eps=self.eps,
            min_samples=self.min_samples, generator=run.stream(f"daam/kmeans/{epoch}"),
        )  # fmt: skip

    def target_losses(
        self, logits: Tensor, pooled: Tensor, labels: Tensor, features: Tensor, centroids: Tensor
    ) -> dict[str, Tensor]:
        """Return by name the losses of target images in clusters (B,) int64, from logits (B, C) of all C clusters.

        `pooled` (B, D) is before the neck, `features` (B, D) is what was clustered, the centroids (C, D) with it.
        """
        if self.variant == "v1" and self.unsupervised == "identification":
            return {"target identification": identification(logits, labels)}
        triplet = {"target triplet": batch_hard_triplet(pooled, labels, margin=self.margin)}
        if self.variant == "v1":
            return triplet
        soft = smoothed(labels, len(centroids), self.smoothing)
        if self.soft == "nearness":
            soft = by_nearness(features, centroids, temperature=self.temperature)
        return {"target identification": soft_identification(logits, soft), **triplet}

    def _train(
        self, net: Any, optimizer: torch.optim.Optimizer, source: Source, target: Target, features: Tensor,
        found: PseudoLabels, epoch: int, run: Run,
    ) -> Mapping[str, float]:  # fmt: skip
        """Train for one epoch, in place, and return the means of the losses."""
        name, branches = f"daam/epoch/{epoch}", net["branches"]
        head = centroid_classifier(found.centroids, generator=run.stream(f"{name}/head"))  # new, as the clusters are
        own = torch.optim.Adam(head.parameters(), lr=optimizer.param_groups[0]["lr"], weight_decay=self.weight_decay)
        run.prepare(head, own)
        centroids = found.centroids.to(run.device)

        def step(pair: tuple[Batch, ...]) -> Mapping[str, Tensor]:
            net.train()
            first, (known, clustered) = len(pair[0].rows), (batch.labels for batch in pair)
            with run.autocast():
                both = Parted(*embed(branches, pair, apart=self.batch_norm == "target", run=run))
                logits, guesses = net["identities"](both.embeddings[:first]), head(both.embeddings[first:])
            terms = {
                "identification": identification(logits, known),
                "triplet": batch_hard_triplet(both.pooled[:first], known, margin=self.margin),
            }
            loss = torch.stack(list(terms.values())).sum()
            terms["similarity"], terms["specific"] = net["domains"](both.pooled, both.specific, first)
            loss = loss + self.domain_weight * (terms["similarity"] + terms["specific"])
            if found.clusters > 1:
                places = moved(features[pair[1].rows], run.device), centroids
                wanted = self.target_losses(guesses, both.pooled[first:], clustered, *places)
                loss = loss + self.target_weight * torch.stack(list(wanted.values())).sum()
                terms |= wanted
            run.step(loss, optimizer, own)
            return {**terms, "shared": both.share.mean()}

        pairs = mixed(
            source, target, found.labels, branches.encoder, batch=self.batch, instances=self.instances,
            batches=self.iterations, augmentation=self.augmentation, name=name, run=run,
        )  # fmt: skip
        parts: dict[str, Stateful] = {"net": net, "optimizer": optimizer, "head": head, "own": own}
        return train(step, lambda _: pairs, epochs=1, parts=parts, name=name, run=run, keep=False)[-1]

    def _facts(self, history: list[dict[str, float]], changes: list[str]) -> dict[str, Any]:
        by_radius = f"none; DBSCAN, Jaccard, eps {self.eps or 'by rule'}, min_samples {self.min_samples}"
        loss = self.unsupervised if self.variant == "v1" else f"identification by {self.soft} labels and triplet"
        return {
            "target images used": "all, without labels" if history else "none",
            "target images in batch norm": bool(history),
            "camera ids used": False,
            "source images used": "with labels" if history else "none",
            "target's loss": f"{self.variant}: {loss}",
            "number of clusters given": self.clusters if self.method == "kmeans" else by_radius,
            "eps changed": "; ".join(changes) or "never",
            "checkpoint": "last",
        }
