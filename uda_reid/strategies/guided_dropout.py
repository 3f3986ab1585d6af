"""Domain-guided dropout: every domain trains through the units that matter to it, the target by its clusters.

Xiao, Li, Ouyang and Wang: Learning Deep Feature Representations with Domain Guided Dropout for Person
Re-identification, CVPR 2016, arXiv:1604.07528, and the released code, github.com/Cysu/dgd_person_reid. They train on
labelled domains; a target without labels as one more domain is this package's reading.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from uda_reid.models.heads import Classifier
from uda_reid.ops.impact import deterministic_mask, normalised, stochastic_mask
from uda_reid.ops.losses import identification
from uda_reid.run import QUIET, Run
from uda_reid.training.features import extract
from uda_reid.training.loop import Draws, Stateful, train
from uda_reid.training.mixed import embed, every_domain
from uda_reid.training.pseudo_labels import PseudoLabels, assign
from uda_reid.training.units import (
    class_means,
    domain_names,
    merged_classifier,
    poor_guides,
    score_clusters,
    score_sources,
    scored_on_training,
    source_classes,
    with_statistics,
)
from uda_reid.types import AdaptationResult, Batch, Encoder, Source, Target

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GuidedDropout:
    """One softmax over the identities of every source domain and the target's clusters, each domain with its own mask.

    A unit is an entry of relu(embedding): the hidden layer of an encoder with `hidden`. It matters to a domain by how
    much the domain's loss rises without it. At first a domain drops every unit that does not matter, later it keeps
    units by chance, the likelier the more they matter. As in the code, images are searched by the embedding, before the
    ReLU and without a mask. An encoder without `hidden` has not been pretrained through that ReLU.
    """

    target_scores: Literal["pseudo", "source_mean", "none"] = "pseudo"  # of clusters; the sources' mean; all p = 0.5
    deterministic: Natural = 20  # epochs; code: 20,000 steps of 200 images
    stochastic: Natural = 20  # epochs, by new scores; code: up to 5,000 steps, of one domain and a copy of the network
    temperature: Annotated[float, Field(gt=0)] = 1.0  # code, with scores whose highest is kept 9 times in 10
    clusters: Annotated[int, Field(gt=1)] = 500  # of the target, by k-means, anew every epoch; as MMT's baseline
    starts: Count = 1  # of k-means
    iterations: Count = 400  # steps per epoch; MMT's baseline
    batch: Annotated[int, Field(gt=1)] = 32  # of every domain; code: 200 in all, from the union
    lr: Rate = 0.01  # code, SGD
    power: Rate = 0.5  # code: the rate falls as (1 - share of the phase that is over)^0.5; here by epochs
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # code
    weight_decay: Rate = 5e-4  # code
    head_decay: Annotated[float, Field(gt=0)] = 5e-4  # of the classifiers that units are scored by; code
    head_steps: Count = 100  # of L-BFGS on all images at once, at most; code: 200 to 2,000 of SGD
    batch_norm: Literal["target", "mixed"] = "target"  # choice: domains normalised apart; code: mixed
    augmentation: Literal["none", "ide", "reid"] = "reid"  # as in the source's own training; code: crops and flips

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the encoder after the last epoch; every epoch is one step for the probe."""
        encoder, names = copy.deepcopy(source.encoder), (*domain_names(source), "target")
        history: list[dict[str, float]] = []
        warnings: list[str] = []
        scores, known = torch.zeros(0), {"weight": torch.zeros(0), "bias": torch.zeros(0)}
        saved = run.restore("guided_dropout")
        if saved is not None:
            encoder.load_state_dict(saved["encoder"])
            history, warnings, scores, known = (saved[key] for key in ("history", "warnings", "scores", "known"))
        elif self.batch_norm == "target" and self.deterministic + self.stochastic:  # as trained
            encoder = with_statistics(encoder, target.images, name="guided_dropout/statistics", run=run)
        for epoch in range(len(history), self.deterministic + self.stochastic):
            first, features = epoch < self.deterministic, extract(encoder, target.images, run=run)
            stream = run.stream(f"guided_dropout/kmeans/{epoch}")
            options: dict[str, Any] = {"method": "kmeans", "clusters": self.clusters, "starts": self.starts}
            found = run.main_only(partial(assign, features, generator=stream, **options))
            if epoch == 0:
                known = source_classes(source, run=run)
            if epoch in (0, self.deterministic):  # either phase begins with scores of the encoder as it is
                scores = self.score(source, encoder, features, found.labels, run=run, epoch=epoch)
                for warning in poor_guides(scores[:-1] if self.target_scores == "none" else scores, names, first=first):
                    warnings.append(f"epoch {epoch + 1}: {warning}")
                    run.log(f"warning: guided_dropout: {warnings[-1]}")
            centroids = class_means(features, found.labels, found.clusters)
            head = merged_classifier(known, centroids, generator=run.stream(f"guided_dropout/head/{epoch}"))
            trained = self._train(encoder, head, source, target, found, scores, epoch, run)
            known = {key: value[: len(known["bias"])].cpu() for key, value in head.linear.state_dict().items()}
            kept = zip(names, self.kept(scores, first=first).tolist(), strict=True)
            shares = {**{f"kept {name}": share for name, share in kept}, **trained}
            history.append({**found.counts, **shares})
            told = ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
            run.log(f"guided_dropout: epoch {epoch + 1}/{self.deterministic + self.stochastic}: {told}")
            run.probe(encoder, epoch + 1, found.labels)
            state = {"history": history, "warnings": warnings, "scores": scores, "known": known}
            run.save("guided_dropout", {"encoder": encoder.state_dict(), **state})
        return AdaptationResult(encoder.eval(), tuple(history), self._facts(source, history, warnings))

    def score(
        self, source: Source, encoder: Encoder, features: Tensor, labels: Tensor, *, run: Run = QUIET, epoch: int = 0
    ) -> Tensor:
        """Return impact scores (D + 1, K) float32: of every source domain, then of the target, by its clusters (N,)."""
        name = f"guided_dropout/scores/{epoch}"
        decay, steps, apart = self.head_decay, self.head_steps, self.batch_norm == "target"
        mine = score_sources(source, encoder, decay=decay, steps=steps, apart=apart, name=name, run=run)
        theirs = normalised(mine.mean(0, keepdim=True)) * (self.target_scores == "source_mean")
        if self.target_scores == "pseudo":
            stream = run.stream(f"{name}/target")
            theirs = score_clusters(features, labels, decay=decay, steps=steps, generator=stream)[None]
        return torch.cat([mine, theirs]).float()

    def mask(self, scores: Tensor, domains: Tensor, chance: Tensor | torch.Generator, *, first: bool) -> Tensor:
        """Return what to multiply the units of rows of `domains` (B,) with, (B, K) float32; `first`: deterministically.

        `chance` is as for `ops.impact.stochastic_mask`. A target without scores ("none") has plain dropout either way.
        """
        drawn = stochastic_mask(scores[domains], chance, temperature=self.temperature)
        unscored = (domains == len(scores) - 1) & (self.target_scores == "none")
        return torch.where(unscored[:, None], drawn, deterministic_mask(scores[domains])) if first else drawn

    def kept(self, scores: Tensor, *, first: bool) -> Tensor:
        """Return which share of its units every domain keeps, (D + 1,); in the stochastic phase on average."""
        chances = (scores / self.temperature).sigmoid().mean(1)
        shares = (scores > 0).float().mean(1) if first else chances
        return torch.cat([shares[:-1], chances[-1:]]) if self.target_scores == "none" else shares

    def _train(
        self, encoder: Encoder, head: Classifier, source: Source, target: Target, found: PseudoLabels, scores: Tensor,
        epoch: int, run: Run,
    ) -> Mapping[str, float]:  # fmt: skip
        """Train encoder and head for one epoch, in place; return the means of the losses."""
        name, names = f"guided_dropout/epoch/{epoch}", (*domain_names(source), "target")
        first, people = epoch < self.deterministic, head.linear.out_features - found.clusters
        over = epoch / self.deterministic if first else (epoch - self.deterministic) / self.stochastic
        weights = [weight for weight in (*encoder.parameters(), *head.parameters()) if weight.requires_grad]
        lr, decay = self.lr * (1 - over) ** self.power, self.weight_decay
        optimizer = torch.optim.SGD(weights, lr=lr, momentum=self.momentum, weight_decay=decay)
        run.prepare(encoder, optimizer)
        run.prepare(head, optimizer)
        domains = torch.full((people + found.clusters,), len(names) - 1)  # of every class
        domains[source.pids[source.training]] = source.domains[source.training]
        domains, scores, draws = domains.to(run.device), scores.to(run.device), Draws(run.stream(f"{name}/masks"))

        def step(parts: tuple[Batch, ...]) -> Mapping[str, Tensor]:
            encoder.train()
            labels = torch.cat([part.labels for part in parts])
            mask = self.mask(scores, domains[labels], draws.generator, first=first)
            with run.autocast():
                [embeddings] = embed(encoder, parts, apart=self.batch_norm == "target", run=run)
                logits = head(embeddings.float().relu() * mask)
            pairs = zip(*(torch.split(each, self.batch) for each in (logits.float(), labels)), strict=True)
            losses = [identification(*pair) for pair in pairs]
            run.step(torch.stack(losses).mean(), optimizer)
            right = (logits.detach().argmax(1) == labels).float().mean()
            return {**{f"loss {title}": loss for title, loss in zip(names, losses, strict=True)}, "accuracy": right}

        plan = every_domain(
            source, target, found.labels + people, names, encoder, batch=self.batch,
            batches=self.iterations, augmentation=self.augmentation, name=name, run=run,
        )  # fmt: skip
        parts: dict[str, Stateful] = {"encoder": encoder, "head": head, "optimizer": optimizer, "draws": draws}
        # An epoch and its labels are saved together, or neither: a head is of no use with other clusters.
        return train(step, lambda _: plan, epochs=1, parts=parts, name=name, run=run, keep=False)[-1]

    def _facts(self, source: Source, history: Sequence[Mapping[str, float]], warnings: Sequence[str]) -> dict[str, Any]:
        learned = ", ".join(scored_on_training(source))
        scored = f"impact scores of {learned} by images trained on" if learned else "those held out for impact scores"
        by = {"pseudo": "of its clusters", "source_mean": "the source's", "none": "none: p = 0.5"}
        return {
            "target images used": "all, without labels" if history else "none",
            "target images in batch norm": bool(history),
            "batch norm": "every domain by itself" if self.batch_norm == "target" else "all domains together",
            "camera ids used": False,
            "source images used": f"with labels, {scored}" if history else "none",
            "impact scores of the target": by[self.target_scores],
            "number of clusters given": self.clusters,
            "k-means starts": self.starts,
            "warnings": "; ".join(warnings) or "none",
            "checkpoint": "last",
        }
