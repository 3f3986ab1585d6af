from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

from tests import oracles
from uda_reid.errors import DataError
from uda_reid.ops.quality import (
    adjusted_rand_index,
    audit,
    camera_purity,
    normalised_mutual_information,
    pair_scores,
    purity,
)

labellings = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=2, max_size=25)


@settings(deadline=None, max_examples=200)
@given(rows=labellings)
def test_pair_scores_equal_brute_force_and_sklearn(rows: list[tuple[int, int]]) -> None:
    clusters, pids = (list(column) for column in zip(*rows, strict=True))
    both, in_clusters, in_pids = oracles.pair_counts(clusters, pids)
    scores = pair_scores(clusters, pids)
    if in_clusters == in_pids == 0:
        assert scores == (1.0, 1.0, 1.0)
        return
    precision, recall = both / max(in_clusters, 1), both / max(in_pids, 1)
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    np.testing.assert_allclose(scores, (precision, recall, f1), rtol=1e-12)
    (_, false), (missed, true) = pair_confusion_matrix(pids, clusters)
    assert scores.precision == pytest.approx(true / max(true + false, 1))
    assert scores.recall == pytest.approx(true / max(true + missed, 1))


@settings(deadline=None, max_examples=100)
@given(rows=labellings)
def test_nmi_and_ari_equal_the_formulas(rows: list[tuple[int, int]]) -> None:
    clusters, pids = (list(column) for column in zip(*rows, strict=True))
    expected = oracles.normalised_mutual_information(clusters, pids)
    assert normalised_mutual_information(clusters, pids) == pytest.approx(expected, abs=1e-9)
    if clusters != pids and (len(set(clusters)) > 1 or len(set(pids)) > 1):
        both, in_clusters, in_pids = oracles.pair_counts(clusters, pids)
        if not both == in_clusters == in_pids:
            assert adjusted_rand_index(clusters, pids) == pytest.approx(
                oracles.adjusted_rand_index(clusters, pids), abs=1e-9
            )


@settings(deadline=None, max_examples=100)
@given(rows=labellings, seed=st.integers(0, 99))
def test_purity_equals_the_loops_and_sklearn_for_every_naming_and_order(rows: list[tuple[int, int]], seed: int) -> None:
    clusters, pids = np.array(rows).T
    expected = oracles.purity(clusters.tolist(), pids.tolist())
    assert purity(clusters, pids) == pytest.approx(expected)
    table = contingency_matrix(clusters, pids)
    assert purity(clusters, pids) == pytest.approx(table.max(axis=1).sum() / table.sum())
    generator = np.random.default_rng(seed)
    order, names = generator.permutation(len(rows)), generator.permutation(6)
    assert purity(names[clusters[order]], names[pids[order]]) == purity(clusters, pids)
    assert np.unique(pids, return_counts=True)[1].max() / len(pids) <= purity(clusters, pids) <= 1


def test_purity_of_no_rows_is_zero_and_of_single_rows_one() -> None:
    assert purity([], []) == 0
    assert purity(torch.arange(7), torch.zeros(7, dtype=torch.int32)) == 1


def test_purity_of_many_clusters_needs_no_dense_table() -> None:
    rows = np.arange(200_000)  # 100,000 clusters x 66,667 identities would be 53 GB
    assert purity(rows // 2, rows // 3) == pytest.approx(5 / 6, abs=1e-4)


def test_agreement_does_not_depend_on_names_or_order() -> None:
    clusters, pids = np.array([0, 0, 1, 1, 2, 2]), np.array([7, 7, 7, 9, 9, 3])
    order, names = np.array([5, 3, 1, 0, 2, 4]), np.array([40, 2, 7])
    assert pair_scores(names[clusters][order], pids[order]) == pair_scores(clusters, pids)
    for score in (normalised_mutual_information, adjusted_rand_index):
        assert score(names[clusters][order], pids[order]) == pytest.approx(score(clusters, pids))


def test_perfect_clusters_score_one() -> None:
    pids = np.repeat(np.arange(30), 3) + 100
    report = audit(pids - 100, pids)
    assert report.pop("clusters") == 30
    assert report == {key: pytest.approx(1.0) for key in report}


def test_random_clusters_have_an_adjusted_rand_index_near_zero() -> None:
    generator = np.random.default_rng(0)
    clusters, pids = generator.integers(0, 20, 4000), generator.integers(0, 20, 4000)
    assert abs(adjusted_rand_index(clusters, pids)) < 0.01


@pytest.mark.parametrize(
    ("clusters", "pids", "expected"),
    [
        ([], [], (0.0, 0.0, 0.0)),
        ([0, 1, 2, 3], [5, 6, 7, 8], (1.0, 1.0, 1.0)),
        ([0, 1, 2, 3], [5, 5, 6, 6], (0.0, 0.0, 0.0)),
        ([0, 0, 0, 0], [5, 6, 7, 8], (0.0, 0.0, 0.0)),
        ([0, 0, 0, 0], [5, 5, 6, 6], (1 / 3, 1.0, 0.5)),
        ([0, 0, 0, 0], [5, 5, 5, 5], (1.0, 1.0, 1.0)),
        ([3], [5], (1.0, 1.0, 1.0)),
    ],
)
def test_pair_scores_have_a_value_where_there_are_no_pairs(
    clusters: list[int], pids: list[int], expected: tuple[float, float, float]
) -> None:
    assert pair_scores(clusters, pids) == pytest.approx(expected)


def test_pair_scores_do_not_overflow_at_a_million_rows() -> None:
    rows = np.arange(1_000_000)
    scores = pair_scores(np.zeros_like(rows), rows % 2)
    assert scores.precision == pytest.approx(0.5, abs=1e-6)
    assert scores.recall == 1.0


def test_audit_ignores_unused_rows() -> None:
    labels, pids = [0, -1, 0, 1, -1, 1, 1, 2], [4, 4, 4, 5, 5, 5, 6, 6]
    used = [row for row, label in enumerate(labels) if label >= 0]
    clusters, identities = [labels[row] for row in used], [pids[row] for row in used]
    report = audit(torch.tensor(labels), torch.tensor(pids))
    precision, recall, f1 = pair_scores(clusters, identities)
    assert report == {
        "nmi": normalised_mutual_information(clusters, identities),
        "ari": adjusted_rand_index(clusters, identities),
        "purity": 5 / 6,
        "pair_precision": precision,
        "pair_recall": recall,
        "pair_f1": f1,
        "used": 6 / 8,
        "clusters": 3.0,
    }
    assert (precision, recall) == (2 / 4, 2 / 3)


def test_audit_with_cameras_adds_their_purity_and_changes_nothing_else() -> None:
    labels, pids, cams = [0, -1, 0, 1, -1, 1, 1, 2], [4, 4, 4, 5, 5, 5, 6, 6], [1, 1, 1, 1, 2, 2, 2, 3]
    report = audit(labels, pids, cams=cams)
    assert report.pop("camera_purity") == camera_purity(labels, cams) == 4 / 5
    assert report == audit(labels, pids)


@pytest.mark.parametrize("rows", [0, 5])
def test_audit_of_no_used_rows_is_all_zero(rows: int) -> None:
    assert set(audit([-1] * rows, list(range(rows))).values()) == {0.0}


def test_audit_of_one_cluster_finds_everything_and_says_nothing() -> None:
    report = audit([0] * 6, [1, 1, 2, 2, 3, 3])
    assert (report["nmi"], report["ari"], report["pair_recall"]) == (0.0, 0.0, 1.0)
    assert report["pair_precision"] == pytest.approx(3 / 15)


def test_audit_of_singletons_has_no_pairs_and_no_warning() -> None:
    report = audit(np.arange(60), np.arange(60) // 2)
    assert (report["ari"], report["pair_precision"], report["pair_recall"], report["pair_f1"]) == (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    assert 0.8 < report["nmi"] < 1.0
    assert report["clusters"] == 60


@pytest.mark.parametrize(
    ("clusters", "pids", "message"),
    [
        ([0, 1], [1], "2 rows of pseudo labels but 1 of pids; one of each per row is needed"),
        ([0.5, 1.0], [1, 2], r"pseudo labels: float64 of shape \(2,\) given, integers"),
        ([0, 1], [[1, 2]], r"pids: int64 of shape \(1, 2\)"),
        ([0, -2], [1, 2], "pseudo labels: label -2 given; clusters count from 0"),
    ],
)
def test_audit_refuses_bad_labels(clusters: list[int], pids: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        audit(clusters, pids)


def test_scores_name_the_column_that_is_wrong() -> None:
    for score in (pair_scores, normalised_mutual_information, adjusted_rand_index, purity):
        with pytest.raises(DataError, match="3 rows of clusters but 2 of pids"):
            score([0, 1, 1], [0, 1])
        with pytest.raises(DataError, match="pids: bool of shape"):
            score([0, 1], np.array([True, False]))
    with pytest.raises(DataError, match="2 rows of clusters but 1 of cams"):
        audit([0, 1], [0, 1], cams=[3])
