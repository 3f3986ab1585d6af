"""Where public code disagrees or is wrong: PERFORMANCE.md's list, item by item, and what PEERS.md adds on ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_curve
from torch import Tensor

from tests import oracles
from tests.ops.ranking.searches import one_query, people
from uda_reid.errors import DataError
from uda_reid.ops.distance import cosine_distances
from uda_reid.ops.ranking import Ranking, rank, rank_distances
from uda_reid.ops.single_shot import single_gallery_shot


def typical() -> tuple[Tensor, dict[str, Any]]:
    """Distances with ties, and labels with junk, distractors and queries that nobody answers."""
    query, gallery, labels = people(0, queries=60, gallery=400, dimensions=32, identities=10, noise=2.0)
    labels["query_pids"][:6] = 77
    return (cosine_distances(query, gallery) * 200).round() / 200, labels


# 1. Three definitions of average precision, two denominators


def test_three_definitions_of_average_precision_are_told_apart_by_name() -> None:
    distances, labels = typical()
    ranking = rank_distances([distances], **labels)
    trapezoid = ranking.mean(ranking.average_precision)
    step = ranking.mean(ranking.average_precision_step)
    merged = ranking.mean(ranking.average_precision_merged)
    assert 0.004 < step - trapezoid < 0.015  # what was seen between toolkits on the same features
    assert abs(merged - step) > 1e-4
    found = []
    for query in np.flatnonzero(ranking.valid):
        keep = (labels["gallery_pids"] != -1) & ~(
            (labels["gallery_pids"] == labels["query_pids"][query])
            & (labels["gallery_cams"] == labels["query_cams"][query])
        )
        rows = np.flatnonzero(keep)[np.argsort(distances[query].numpy()[keep], kind="stable")]
        relevance = (labels["gallery_pids"][rows] == labels["query_pids"][query]).astype(int).tolist()
        found.append(
            (
                oracles.trapezoid_average_precision(relevance),  # Market-1501's code, Person_reID_baseline, PUL
                oracles.step_average_precision(relevance),  # torchreid, fast-reid, OpenUnReID
                average_precision_score(relevance, -distances[query].numpy()[rows]),  # SpCL, MMT, Cluster-Contrast
            )
        )
    assert (trapezoid, step, merged) == pytest.approx(tuple(np.mean(found, axis=0)), abs=1e-12)


def test_the_tie_rule_decides_by_two_definitions_and_not_by_the_third() -> None:
    before, after = one_query([1, 0, 1], [0.5, 0.5, 0.7]), one_query([0, 1, 1], [0.5, 0.5, 0.7])
    assert (before.average_precision[0], after.average_precision[0]) == pytest.approx((19 / 24, 10 / 24))
    assert (before.average_precision_step[0], after.average_precision_step[0]) == pytest.approx((10 / 12, 7 / 12))
    assert before.average_precision_merged[0] == after.average_precision_merged[0] == pytest.approx(7 / 12)
    assert before.ties == after.ties == 1


def test_both_denominators_are_there_by_name() -> None:
    distances, labels = typical()
    ranking = rank_distances([distances], **labels)
    assert ranking.skipped == 6
    for values in (ranking.average_precision, ranking.inverse_penalty):
        assert ranking.mean(values) == pytest.approx(np.nansum(values) / 54)
        assert ranking.mean(values, over="all") == pytest.approx(np.nansum(values) / 60)  # Person_reID_baseline
    hits = int((ranking.first == 0).sum())
    assert ranking.cmc((1,)) == pytest.approx({1: hits / 54})
    assert ranking.cmc((1,), over="all") == pytest.approx({1: hits / 60})


# 2. Junk is dropped by loaders, not by metrics; identity 0 is not junk


def test_junk_handed_to_the_ranking_neither_helps_nor_harms_and_distractors_harm() -> None:
    distances, labels = typical()
    pids = labels["gallery_pids"]

    def mean(renamed: dict[int, int], kept: Sequence[bool]) -> float:
        columns = {name: column[kept] for name, column in labels.items() if name.startswith("gallery")}
        columns["gallery_pids"] = np.array([renamed.get(pid, pid) for pid in columns["gallery_pids"].tolist()])
        ranking = rank_distances([distances[:, torch.tensor(kept)]], **{**labels, **columns})
        return ranking.mean(ranking.average_precision)

    everything = (pids >= -1).tolist()
    right = mean({}, everything)
    assert mean({}, (pids != -1).tolist()) == right
    assert mean({-1: 1000}, everything) < right - 1e-3  # a metric that knows no junk
    assert mean({}, (pids > 0).tolist()) > right + 1e-3  # a loader that drops identity 0 too
    assert mean({0: 1000}, everything) == right  # a distractor is like anybody else that is not asked for


def test_junk_and_distractors_of_the_querys_camera_do_as_others_do() -> None:
    ranking = rank_distances(
        [torch.tensor([[0.0, 0.1, 0.2, 0.3]])],
        query_pids=[1],
        gallery_pids=[-1, 0, 1, 1],
        query_cams=[1],
        gallery_cams=[1, 1, 1, 2],
    )
    assert ranking.first.tolist() == [1]  # under `market` the camera's distractor stays, its own image does not
    assert ranking.average_precision_step[0] == 0.5


# 3. Fewer allowed images than the highest rank


def test_cmc_holds_beyond_the_last_allowed_gallery_image() -> None:
    wanted = {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}  # torchreid's Cython code says 0, 1, 0, 0; its Python code stops
    assert one_query([0, 1]).cmc((1, 2, 3, 4)) == wanted
    assert one_query([0, 1, -1, -1]).cmc((1, 2, 3, 4)) == wanted
    assert one_query([0, 1]).cmc((50,)) == {50: 1.0}


def test_queries_with_few_allowed_images_count_beside_those_with_many() -> None:
    # Of the first query's gallery 2 images are left, of the second one's 5.
    ranking = rank_distances(
        [torch.tensor([[1.0, 0, 2, 3, 4], [0.0, 1, 2, 3, 4]])],
        query_pids=[1, 2],
        gallery_pids=[1, 0, 3, 2, 3],
        query_cams=[1, 2],
        gallery_cams=[2, 2, 1, 1, 1],
        protocol="cross-camera",
    )
    assert ranking.cmc((1, 2, 3, 4, 5)) == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}


# 4. CUHK03's single gallery shot


def test_single_gallery_shot_is_seeded_and_holds_beyond_the_number_of_identities() -> None:
    query, gallery, labels = people(1, queries=40, gallery=200, dimensions=8, identities=12, noise=2.0)
    options: dict[str, Any] = {"ranks": (1, 5, 12, 13, 50), "repeats": 10}
    found = []
    for state in (0, 1):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        found.append(single_gallery_shot(query, gallery, **labels, **options))
    np.testing.assert_array_equal(found[0].by_repeat, found[1].by_repeat)
    assert (single_gallery_shot(query, gallery, **labels, **options, seed=1).by_repeat != found[0].by_repeat).any()
    cmc = found[0].cmc
    assert 0 < cmc[1] < cmc[5] < cmc[12] == cmc[13] == cmc[50] == 1  # 11 identities and the distractors


def test_single_gallery_shot_repeats_a_hundred_times_and_names_its_protocol() -> None:
    query, gallery, labels = people(1, queries=5, gallery=20, dimensions=8, identities=4, noise=2.0)
    found = single_gallery_shot(query, gallery, **labels, protocol="cross-camera")
    assert len(found.by_repeat) == 100  # where most of the peers draw 10 times
    assert found.protocol == rank(query, gallery, **labels, protocol="cross-camera").protocol == "cross-camera"


def test_one_image_per_identity_is_an_easier_search_than_the_whole_gallery() -> None:
    query, gallery, labels = people(2, queries=100, gallery=1000, dimensions=16, identities=40, noise=1.5)
    whole = rank(query, gallery, **labels).cmc((10,))[10]
    one = single_gallery_shot(query, gallery, **labels, ranks=(10,), repeats=5).cmc[10]
    assert whole != pytest.approx(one, abs=0.02)


# 5. A collapsed model, and one that is broken


@pytest.mark.parametrize("matches_first", [True, False])
def test_a_collapsed_model_is_flagged_whatever_the_order_of_the_gallery(matches_first: bool) -> None:
    pids = sorted([1] * 5 + [0] * 95, reverse=matches_first)
    labels: dict[str, Any] = {"query_pids": [1, 1, 1], "gallery_pids": pids, "protocol": "any-camera"}
    rates = (1e-3, 0.5, 1.0)
    by_features = rank(torch.ones(3, 8), torch.ones(100, 8), **labels, rates=rates)
    by_distances = rank_distances([torch.full((3, 100), 0.7)], **labels, rates=rates)
    for ranking in (by_features, by_distances):
        assert ranking.ties == ranking.counted == 3
        assert ranking.near.tolist() == [5 * 95] * 3
        assert ranking.cmc((1,)) == {1: float(matches_first)}  # by the rule, and worth nothing
        relevance = [int(pid == 1) for pid in pids]
        np.testing.assert_allclose(ranking.average_precision, oracles.trapezoid_average_precision(relevance))
        np.testing.assert_allclose(ranking.average_precision_merged, 0.05)
        assert ranking.accepted == {1e-3: 0.0, 0.5: 0.0, 1.0: 1.0}


def test_not_a_number_would_count_as_perfect_and_is_refused() -> None:
    distances = torch.full((2, 5), float("nan"))
    assert int((distances[0] < distances[0, 4]).sum()) == 0  # nothing is nearer than the match: rank 1
    labels: dict[str, Any] = {"query_pids": [1, 1], "gallery_pids": [0, 0, 0, 0, 1], "protocol": "any-camera"}
    with pytest.raises(DataError, match="distances of query 0 hold NaN or infinity; check the features"):
        rank_distances([distances], **labels)
    with pytest.raises(DataError, match="gallery features: row 0 holds NaN or infinity"):
        rank(torch.ones(2, 3), torch.full((5, 3), float("nan")), **labels)


def test_one_distance_that_is_not_a_number_is_refused_even_at_junk() -> None:
    distances = torch.tensor([[0.1, 0.2, float("nan")]])
    with pytest.raises(DataError, match="distances of query 0 hold NaN"):
        rank_distances([distances], query_pids=[1], gallery_pids=[1, 0, -1], protocol="any-camera")


# 8. The true-positive rate at a false-positive rate


def swapped(matches: list[float], wrongs: list[float], rate: float) -> float:
    """As fast-reid's evaluation/roc.py has it: genuine pairs labelled 0, impostors 1, the distance as the score."""
    false, true, _ = roc_curve([0] * len(matches) + [1] * len(wrongs), matches + wrongs)
    return float(np.interp(rate, false, true))


def test_acceptance_is_of_genuine_pairs_and_not_of_impostors() -> None:
    # 18 of 20 matches are nearer than any wrong image, 2 are farther than all.
    relevance = [1] * 18 + [0] * 100 + [1] * 2
    matches = [0.1 * place for place, right in enumerate(relevance) if right]
    wrongs = [0.1 * place for place, right in enumerate(relevance) if not right]
    accepted = one_query(relevance, rates=(0.01, 0.1, 0.99)).accepted
    assert accepted == {0.01: 0.9, 0.1: 0.9, 0.99: 0.9}
    assert [swapped(matches, wrongs, rate) for rate in (0.01, 0.99)] == pytest.approx([0.0, 1.0], abs=0.15)


def test_a_better_model_has_a_higher_acceptance() -> None:
    def accepted(noise: float) -> Ranking:
        query, gallery, labels = people(3, queries=50, gallery=300, dimensions=32, identities=10, noise=noise)
        return rank(query, gallery, **labels, rates=(0.01,))

    shares = [accepted(noise).accepted[0.01] for noise in (0.1, 1.0, 2.0, 10.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] < 0.1
