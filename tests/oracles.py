"""Slow, obvious references: loops transcribed from the definitions, sharing no code with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
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


def purity(clusters: Sequence[int], others: Sequence[int]) -> float:
    """The share of rows that have the commonest other value of their cluster."""
    members = {cluster: [o for c, o in zip(clusters, others, strict=True) if c == cluster] for cluster in clusters}
    return sum(max(values.count(value) for value in values) for values in members.values()) / len(clusters)


def churn(before: Sequence[int], after: Sequence[int]) -> float:
    """The mean Jaccard distance between a row's old and new cluster, as sets of rows; -1 is alone."""

    def cluster(labels: Sequence[int], row: int) -> set[int]:
        alone = labels[row] == -1
        return {row} if alone else {other for other, label in enumerate(labels) if label == labels[row]}

    pairs = [(cluster(before, row), cluster(after, row)) for row in range(len(before))]
    return sum(1 - len(old & new) / len(old | new) for old, new in pairs) / len(pairs)


def neighbour_overlap(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The mean Jaccard index of two lists per row."""
    pairs = [(set(mine), set(theirs)) for mine, theirs in zip(one, other, strict=True)]
    return sum(len(mine & theirs) / len(mine | theirs) for mine, theirs in pairs) / len(pairs)


def silhouettes(features: Sequence[Sequence[float]], labels: Sequence[int]) -> list[float]:
    """The silhouette by cosine distance of every row with a label from 0 on, after Rousseeuw 1987."""
    clusters = {label: [row for row, own in enumerate(labels) if own == label] for label in set(labels) - {-1}}

    def distance(row: int, members: Sequence[int]) -> float:
        return sum(cosine_distance(features[row], features[other]) for other in members) / len(members)

    found = []
    for row, label in enumerate(labels):
        if label == -1:
            continue
        inside = [other for other in clusters[label] if other != row]
        if not inside:
            found.append(0.0)
            continue
        a = distance(row, inside)
        b = min(distance(row, members) for other, members in clusters.items() if other != label)
        found.append((b - a) / max(a, b))
    return found


def soft_neighbourhood_density(features: Sequence[Sequence[float]], temperature: float) -> float:
    """The mean entropy of each row's softmax over the other rows' cosine similarities, after Saito et al. 2021."""
    entropies = []
    for row, one in enumerate(features):
        others = [1 - cosine_distance(one, other) for place, other in enumerate(features) if place != row]
        weights = [math.exp((similarity - max(others)) / temperature) for similarity in others]
        shares = [weight / sum(weights) for weight in weights]
        entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
    return sum(entropies) / len(entropies)


def density_clusters(distances: Sequence[Sequence[float]], eps: float, min_samples: int) -> list[int]:
    """DBSCAN as it is told: grow every cluster from its first core; a row keeps the first cluster that reaches it."""
    rows = range(len(distances))
    near = [[j for j in rows if j == i or distances[i][j] <= eps] for i in rows]
    core = [len(near[i]) >= min_samples for i in rows]
    labels = [-1 for _ in rows]
    clusters = 0
    for start in rows:
        if core[start] and labels[start] < 0:
            front = [start]
            while front:
                row = front.pop()
                if labels[row] < 0:
                    labels[row] = clusters
                    front += near[row] if core[row] else []
            clusters += 1
    return labels


def nearest_walk(distances: Sequence[Sequence[float]], min_samples: int) -> tuple[list[int], list[float]]:
    """Prim's order of the rows by mutual reachability, from row 0, the lowest of equals first, and the distances."""
    rows = range(len(distances))
    core = [sorted([0.0] + [distances[i][j] for j in rows if j != i])[min_samples - 1] for i in rows]
    order, lengths = [0], []
    while len(order) < len(rows):
        ahead = [row for row in rows if row not in order]
        length, row = min((max(core[i], core[j], distances[i][j]), j) for i in order for j in ahead)
        order.append(row)
        lengths.append(length)
    return order, lengths


def reciprocal_neighbours(order: Sequence[Sequence[int]], image: int, size: int) -> set[int]:
    """R(p, k) of Zhong et al. 2017: those of the first `size` images that have the image among theirs."""
    return {other for other in order[image][:size] if image in order[other][:size]}


def expanded_neighbours(order: Sequence[Sequence[int]], image: int, size: int, half: int) -> set[int]:
    """R*(p, k): also the half-sized sets of those members that share more than two thirds of theirs."""
    members = reciprocal_neighbours(order, image, size)
    expanded = set(members)
    for candidate in members:
        theirs = reciprocal_neighbours(order, candidate, half)
        if len(theirs & members) > Fraction(2, 3) * len(theirs):
            expanded |= theirs
    return expanded


def reading_distances(squared: Sequence[Sequence[float]], reading: str) -> list[list[float]]:
    """The distances that weights and the final mix are made of, from squared Euclidean ones of unit features."""
    if reading == "spcl":
        return [list(row) for row in squared]
    powered = [[d * d if reading == "zhong-squared" else d for d in row] for row in squared]
    return [[d / max(row) if max(row) > 0 else 0.0 for d in row] for row in powered]


def reciprocal_weights(squared: Sequence[Sequence[float]], k1: int, k2: int, reading: str) -> list[list[float]]:
    """V: exp(-d) on the expanded set, scaled to a sum of 1; if k2 is not 1, its mean over the k2 nearest images."""
    rows = range(len(squared))
    order = [[j for _, j in sorted(zip(row, rows, strict=True))] for row in squared]
    size = k1 if reading == "spcl" else k1 + 1
    half = min(round(k1 / 2) + 1, size)  # round() takes halves to the even number
    distances = reading_distances(squared, reading)
    weights = []
    for i in rows:
        members = expanded_neighbours(order, i, size, half)
        total = sum(math.exp(-distances[i][j]) for j in members)
        weights.append([math.exp(-distances[i][j]) / total if j in members else 0.0 for j in rows])
    nearest = [order[i][:k2] if k2 > 1 else [i] for i in rows]
    return [[sum(weights[j][g] for j in nearest[i]) / len(nearest[i]) for g in rows] for i in rows]


def jaccard_distances(weights: Sequence[Sequence[float]]) -> list[list[float]]:
    """1 minus the sum of the smaller of two weights over that of the larger; 1 where there are none."""

    def distance(one: Sequence[float], other: Sequence[float]) -> float:
        larger = sum(map(max, one, other))
        return 1 - sum(map(min, one, other)) / larger if larger > 0 else 1.0

    return [[distance(one, other) for other in weights] for one in weights]


def reranked(
    squared: Sequence[Sequence[float]], queries: int, k1: int, k2: int, share: float, reading: str
) -> list[list[float]]:
    """share * d + (1 - share) * Jaccard distance, of the first images, which are the queries, to all others."""
    direct = reading_distances(squared, reading)
    indirect = jaccard_distances(reciprocal_weights(squared, k1, k2, reading))
    return [
        [share * direct[q][g] + (1 - share) * indirect[q][g] for g in range(queries, len(squared))]
        for q in range(queries)
    ]


def merged_average_precision(distances: Sequence[float], relevance: Sequence[int]) -> float:
    """Average precision as in scikit-learn: one step of recall per distinct distance, ties of both kinds in it."""
    ap = old_recall = 0.0
    for threshold in sorted(set(distances)):
        within = [relevant for d, relevant in zip(distances, relevance, strict=True) if d <= threshold]
        recall = sum(within) / sum(relevance)
        ap += (recall - old_recall) * sum(within) / len(within)
        old_recall = recall
    return ap


def close_pairs(distances: Sequence[float], relevance: Sequence[int], near: float) -> int:
    """Pairs of a relevant and an irrelevant entry whose distances differ by `near` or less."""
    entries = list(zip(distances, relevance, strict=True))
    return sum(abs(d - e) <= near for d, right in entries if right for e, other in entries if not other)


def true_positive_rate(matches: Sequence[float], wrongs: Sequence[float], rate: float) -> float:
    """The share of matches within the largest threshold that lets in no more than that share of the wrong pairs."""
    accepted = 0
    for threshold in sorted({*matches, *wrongs}):
        if wrongs and sum(d <= threshold for d in wrongs) / len(wrongs) > rate:
            break
        accepted = sum(d <= threshold for d in matches)
    return accepted / len(matches) if matches else math.nan
