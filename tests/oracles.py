"""Slow, obvious references: loops transcribed from the definitions, sharing no code with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def cosine_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """1 minus the cosine of the angle between two vectors, in double precision."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def squared_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The squared Euclidean distance between two vectors, in double precision."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def is_removed(protocol: str, query_pid: int, query_cam: int, pid: int, cam: int) -> bool:
    """Whether a gallery image takes no part in a query's ranking."""
    if pid == -1:
        return True
    if protocol == "market":
        return pid == query_pid and cam == query_cam
    if protocol == "cross-camera":
        return cam == query_cam
    return False


def ranked(
    distances: Sequence[float],
    query_pid: int,
    query_cam: int,
    pids: Sequence[int],
    cams: Sequence[int],
    protocol: str,
) -> list[int]:
    """The gallery rows that are left, nearest first, equal distances in the gallery's order."""
    rows = [g for g in range(len(pids)) if not is_removed(protocol, query_pid, query_cam, pids[g], cams[g])]
    return sorted(rows, key=lambda g: (distances[g], g))


def trapezoid_average_precision(relevance: Sequence[int]) -> float:
    """Average precision as in the Oxford and Market-1501 code: the area under precision over recall."""
    ap, old_recall, old_precision, found = 0.0, 0.0, 1.0, 0
    for place, relevant in enumerate(relevance, start=1):
        found += relevant
        recall, precision = found / sum(relevance), found / place
        ap += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return ap


def step_average_precision(relevance: Sequence[int]) -> float:
    """The mean, over the relevant places, of the share of relevant entries up to there."""
    precisions = [sum(relevance[:place]) / place for place in range(1, len(relevance) + 1) if relevance[place - 1]]
    return sum(precisions) / len(precisions)


def inverse_penalty(relevance: Sequence[int]) -> float:
    """The number of relevant entries over the place of the last one."""
    return sum(relevance) / max(place for place, relevant in enumerate(relevance, start=1) if relevant)


def cmc_curve(relevances: Sequence[Sequence[int]], ranks: int) -> list[float]:
    """The share of queries with a relevant entry among the first k, k = 1 .. ranks."""
    answered = [relevance for relevance in relevances if any(relevance)]
    return [sum(any(relevance[:k]) for relevance in answered) / len(answered) for k in range(1, ranks + 1)]


def single_shot_first(
    distances: Sequence[float],
    query_pid: int,
    query_cam: int,
    pids: Sequence[int],
    cams: Sequence[int],
    protocol: str,
    order: Sequence[int],
) -> int:
    """Wrong images before the match if only each identity's first allowed image in `order` is shown."""
    shown: dict[int, int] = {}
    for row in order:
        if not is_removed(protocol, query_pid, query_cam, pids[row], cams[row]):
            shown.setdefault(pids[row], row)
    if query_pid not in shown:
        return -1
    return sorted(shown.values(), key=lambda g: (distances[g], g)).index(shown[query_pid])


def pair_counts(clusters: Sequence[int], pids: Sequence[int]) -> tuple[int, int, int]:
    """Pairs of rows that are together in both, in `clusters`, and in `pids`."""
    pairs = list(combinations(range(len(pids)), 2))
    in_clusters = {(i, j) for i, j in pairs if clusters[i] == clusters[j]}
    in_pids = {(i, j) for i, j in pairs if pids[i] == pids[j]}
    return len(in_clusters & in_pids), len(in_clusters), len(in_pids)


def normalised_mutual_information(clusters: Sequence[int], pids: Sequence[int]) -> float:
    """Mutual information over the mean of the two entropies, from the joint frequencies."""
    rows = list(zip(clusters, pids, strict=True))

    def share(cluster: int | None, pid: int | None) -> float:
        return sum((cluster in (None, c)) and (pid in (None, p)) for c, p in rows) / len(rows)

    mutual = sum(share(c, p) * math.log(share(c, p) / (share(c, None) * share(None, p))) for c, p in set(rows))
    entropies = [
        -sum(share(c, None) * math.log(share(c, None)) for c in set(clusters)),
        -sum(share(None, p) * math.log(share(None, p)) for p in set(pids)),
    ]
    return 1.0 if sum(entropies) == 0 else mutual / (sum(entropies) / 2)


def adjusted_rand_index(clusters: Sequence[int], pids: Sequence[int]) -> float:
    """(pairs in both - expected) / (mean of the two pair counts - expected), after Hubert and Arabie."""
    both, in_clusters, in_pids = pair_counts(clusters, pids)
    expected = in_clusters * in_pids / (len(pids) * (len(pids) - 1) / 2)
    return (both - expected) / ((in_clusters + in_pids) / 2 - expected)
