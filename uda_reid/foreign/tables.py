"""Scores and clusters of somebody's features, for a terminal and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from uda_reid import __version__
from uda_reid.data.layouts.labels import count
from uda_reid.evaluation import RANKS
from uda_reid.foreign.clustering import RULES, Audited, Clustered
from uda_reid.foreign.scoring import Scored
from uda_reid.ops.distance import NEAR
from uda_reid.ops.protocols import PROTOCOLS
from uda_reid.ops.ranking import Over, Ranking
from uda_reid.report.tables import percent
from uda_reid.terminal import paragraph, words

FORMAT = 1
"""Raised when a field of the JSON changes its meaning."""
LITTLE = 0.0005
"""What a change of the mAP is told from on."""
COLLAPSED = 0.1
"""Where equal distances change the APs by more than this share of them, in the mean, they say little of features."""
DEFINITIONS = (
    "mAP: by the trapezoid rule, as the Market-1501 code and Person_reID_baseline (there over all queries); step: as "
    "torchreid, fast-reid and OpenUnReID; merged: equal distances in one step, as scikit-learn and with it SpCL, MMT "
    "and Cluster-Contrast. rank: CMC. mINP: matches / rank of the last one. TPR: share of the matching pairs nearer "
    "than the threshold that lets 1e-4 or 1e-3 of the wrong pairs pass"
)
GRAPH = ("min_samples", "k1", "k2", "reading", "backend")
OPTIONS = {
    "dbscan": ("eps", "ladder", *GRAPH),
    "hdbscan": GRAPH,
    "infomap": ("eps", *GRAPH),
    "kmeans": ("clusters",),
}
"""Which options mean something to each method."""
AUDIT = {
    "nmi": "NMI",
    "ari": "ARI",
    "pair_precision": "pair\nprecision",
    "pair_recall": "pair\nrecall",
    "pair_f1": "pair\nF1",
    "purity": "purity",
    "camera_purity": "camera\npurity",
}


def show_scored(title: str, scored: Scored) -> RenderableType:
    """Return the table of a ranking, or of two, with what has to be known of the numbers."""
    table = _table(title)
    table.add_column("")
    headings = ["mAP", "mAP\nstep", "mAP\nmerged", *(f"rank\n{rank}" for rank in RANKS), "mINP"]
    headings += [f"TPR\n{_rate(rate)}" for rate in scored.plain.accepted]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, ranking in scored.rankings.items():
        table.add_row(name, *map(percent, (*_Means.of(ranking).values, *ranking.accepted.values())))
    lines = [_protocol_line(scored), *_query_lines(scored), *_tie_lines(scored)]
    if scored.metric == "euclidean":
        lines.append("compared by Euclidean distance, lengths and all")
    if scored.reranking is not None:
        how = scored.reranking
        part = f"{count(scored.junk, 'junk row')} {'took part' if how.junk else 'left out'}" if scored.junk else ""
        options = f"reading {how.reading}, k1 {how.k1}, k2 {how.k2}, lambda {how.share:g}"
        lines.append(f"re-ranked: {', '.join(filter(None, [options, part]))}")
    lines += [f"note: {note}" for note in scored.notes]
    took = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in scored.seconds.items())
    return Group(table, paragraph(lines), paragraph([DEFINITIONS, f"took: {took}"], "dim"))


def show_clustered(title: str, clustered: Clustered, audited: Audited | None = None) -> RenderableType:
    """Return the table of a clustering, with its audit if there is one."""
    table = _table(title)
    for heading in ("clusters", "outliers", "largest", "median", "silhouette", "density"):
        table.add_column(heading, justify="right", no_wrap=True)
    value, error, _ = clustered.silhouette
    silhouette = "n/a" if math.isnan(value) else f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"
    sizes = clustered.sizes
    table.add_row(
        f"{len(sizes):,}",
        f"{int((clustered.labels < 0).sum()):,}",
        f"{int(sizes.max(initial=0)):,}",
        f"{float(np.median(sizes)):g}" if len(sizes) else "n/a",
        silhouette,
        "n/a" if math.isnan(clustered.density) else f"{clustered.density:.2f}",
    )
    parts: list[RenderableType] = [table, paragraph(_method_lines(clustered))]
    if audited is not None and len(sizes):
        parts += [_audit_table(audited), paragraph(_audit_lines(audited))]
    took = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in clustered.seconds.items())
    return Group(*parts, paragraph([*_signs(clustered), f"took: {took}"], "dim"))


def scored_json(scored: Scored, **beside: Any) -> str:
    """Return scores as JSON text; `beside` is put in front."""
    plain = scored.plain
    content = {
        "format": FORMAT,
        "version": __version__,
        **beside,
        "queries": len(plain.valid),
        "gallery": scored.gallery,
        "junk": scored.junk,
        "dim": scored.dim,
        "metric": scored.metric,
        "protocol": plain.protocol,
        "protocol_removes": PROTOCOLS[plain.protocol],
        "counted": plain.counted,
        "skipped": plain.skipped,
        "reranking": None if scored.reranking is None else asdict(scored.reranking),
        "notes": scored.notes,
        "rankings": {
            name: {
                **_Means.of(ranking)._asdict(),
                "all_queries": _Means.of(ranking, "all")._asdict(),
                "tpr_at_fpr": {_rate(rate): share for rate, share in ranking.accepted.items()},
                "ties": ranking.ties,
                "near_queries": int((ranking.near > 0).sum()),
                "near_pairs": int(ranking.near.sum()),
                "seconds": scored.seconds[name],
            }
            for name, ranking in scored.rankings.items()
        },
    }
    return _text(content)


def clustered_json(clustered: Clustered, audited: Audited | None = None, **beside: Any) -> str:
    """Return a clustering as JSON text; `beside` is put in front."""
    sizes = clustered.sizes
    value, error, rows = clustered.silhouette
    content = {
        "format": FORMAT,
        "version": __version__,
        **beside,
        "rows": len(clustered.labels),
        "method": clustered.grouping.method,
        "asked": {
            name: value
            for name, value in asdict(clustered.grouping).items()
            if name in OPTIONS[clustered.grouping.method]
        },
        "eps": clustered.eps,
        "steps": clustered.steps,
        "reach": clustered.reach,
        "neighbours": clustered.backend or None,
        "recall": clustered.recall if clustered.backend else math.nan,
        "clusters": len(sizes),
        "outliers": int((clustered.labels < 0).sum()),
        "largest": int(sizes.max(initial=0)),
        "median": float(np.median(sizes)) if len(sizes) else math.nan,
        "silhouette": {"value": value, "error": error, "rows": rows},
        "density": clustered.density,
        "seconds": dict(clustered.seconds),
        "audit": None if audited is None else {**audited.values, "camera_chance": audited.chance, "rows": audited.rows},
        "notes": (*clustered.notes, *(() if audited is None else audited.notes)),
    }
    return _text(content)


def _table(title: str) -> Table:
    return Table(title=words(title, "bold"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


class _Means(NamedTuple):
    """The measures of a ranking that are means over queries."""

    mean_ap: float
    mean_ap_step: float
    mean_ap_merged: float
    cmc: Mapping[int, float]
    mean_inp: float

    @classmethod
    def of(cls, ranking: Ranking, over: Over = "valid") -> _Means:
        """Return them over the valid queries, or all."""
        return cls(
            ranking.mean(ranking.average_precision, over=over),
            ranking.mean(ranking.average_precision_step, over=over),
            ranking.mean(ranking.average_precision_merged, over=over),
            ranking.cmc(RANKS, over=over),
            ranking.mean(ranking.inverse_penalty, over=over),
        )

    @property
    def values(self) -> tuple[float, ...]:
        """All of them, one after the other."""
        return self.mean_ap, self.mean_ap_step, self.mean_ap_merged, *self.cmc.values(), self.mean_inp


def _protocol_line(scored: Scored) -> str:
    protocol = scored.plain.protocol
    return f"protocol {protocol}: {PROTOCOLS[protocol]}"


def _query_lines(scored: Scored) -> list[str]:
    ranking = scored.plain
    if not ranking.skipped:
        return [f"queries: all {ranking.counted:,} have a match, so the means over all queries are the same"]
    lines = [
        f"queries: {ranking.counted:,} counted, {ranking.skipped:,} skipped: no match in the gallery is left for them"
    ]
    for name, ranking in scored.rankings.items():
        means = _Means.of(ranking, "all")
        ranks = ", ".join(f"{rank} {percent(share)}" for rank, share in means.cmc.items())
        maps = (
            f"mAP {percent(means.mean_ap)}, step {percent(means.mean_ap_step)}, merged {percent(means.mean_ap_merged)}"
        )
        told = f"{maps}, rank-{ranks}, mINP {percent(means.mean_inp)}"
        lines.append(f"over all {len(ranking.valid):,} queries, skipped ones as 0, {name}: {told}")
    return lines


def _tie_lines(scored: Scored) -> list[str]:
    lines = []
    for name, ranking in scored.rankings.items():
        near = int((ranking.near > 0).sum())
        parts = []
        if ranking.ties:
            step, merged = ranking.average_precision_step, ranking.average_precision_merged
            change = ranking.mean(np.abs(step - merged))
            ties = count(ranking.ties, "query has", "queries have")
            told = f"{100 * change:.1f}" if change >= LITTLE else "less than 0.1"
            parts.append(f"{ties} equal distances that change the AP, in the mean by {told} points")
            if change > COLLAPSED * ranking.mean(merged):
                parts[0] += ": the order of the gallery decides, have the features collapsed?"
        if near:
            pairs = count(int(ranking.near.sum()), "pair")
            many = count(near, "query has", "queries have")
            parts.append(f"{many} near ties ({pairs} within {_rate(NEAR)}, which rounding may swap)")
        if parts:
            lines.append(f"{name}: {'; '.join(parts)}")
    return lines or [f"ties: none, and no distances within {_rate(NEAR)} of one another that would change a number"]


def _method_lines(clustered: Clustered) -> list[str]:
    how, notes = clustered.grouping, [f"note: {note}" for note in clustered.notes]
    if how.method == "kmeans":
        return [f"kmeans on unit features, {how.clusters:,} clusters asked for", *notes]
    options = f"reading {how.reading}, k1 {how.k1}, k2 {how.k2}, min samples {how.min_samples}"
    # Rounded down: what is 100 % was found whole.
    share = f"{math.floor(1000 * clustered.recall) / 10:.1f}%"
    exact = "exact" if clustered.exact else f"{share} of the true neighbours found, on a sample"
    lines = [
        f"{how.method} on Jaccard distances: {options}; farther than {clustered.reach:.4g} is apart",
        f"neighbours: {clustered.backend}, {exact}",
    ]
    if not math.isnan(clustered.eps):
        what = "links up to" if how.method == "infomap" else "radius"
        origin = f"by rule {how.eps}: {RULES[how.eps]}" if isinstance(how.eps, str) else "as given"
        lines.append(f"{what} {clustered.eps:.4g}, {origin}{'; then the ladder' if clustered.steps else ''}")
    return [*lines, *(f"ladder: {step}" for step in clustered.steps), *notes]


def _signs(clustered: Clustered) -> list[str]:
    rows = clustered.silhouette[2]
    over = f"over {count(rows, 'clustered row')}, by cosine" if rows else "there are no two clusters"
    lines = [f"silhouette: {over}; high for clusters that are cameras, too"]
    if not math.isnan(clustered.density):
        lines.append("density: soft neighbourhood density of all rows in nats; compares models on the same rows only")
    return lines


def _audit_table(audited: Audited) -> Table:
    table = _table("audit, by the identities")
    for heading in (*(AUDIT[name] for name in AUDIT if name in audited.values), "rows in\nclusters"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = [audited.values[name] for name in AUDIT if name in audited.values]
    table.add_row(*map(percent, (*shown, audited.values["used"])))
    return table


def _audit_lines(audited: Audited) -> list[str]:
    lines = [f"over the rows in clusters, of {count(audited.rows, 'row')} with an identity; outliers are in no measure"]
    if not math.isnan(audited.chance):
        lines.append(f"camera purity of these clusters with the cameras shuffled: {percent(audited.chance)}")
    return lines + [f"note: {note}" for note in audited.notes]


def _rate(rate: float) -> str:
    """Return a rate as one writes it.

    >>> _rate(1e-4)
    '1e-4'
    """
    digits, _, exponent = f"{rate:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return what JSON can hold: no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value
