from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.foreign.made import options, people, shown, table
from uda_reid.errors import CheckpointError, DataError, RecipeError
from uda_reid.foreign import (
    Clustered,
    Grouping,
    audit_clusters,
    cluster_features,
    clustered_json,
    read_ids,
    show_clustered,
    write_labels,
)
from uda_reid.foreign.clustering import FARTHEST
from uda_reid.ops.clustering import climb_graph, dbscan_graph, graph_eps, hdbscan_graph, infomap_graph, kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.jaccard import encode_features, jaccard
from uda_reid.ops.quality import audit, silhouette, soft_neighbourhood_density
from uda_reid.run import Run


def graph(features: torch.Tensor) -> Any:
    return jaccard(encode_features(features, k1=10, k2=3))


@pytest.fixture(scope="module")
def crowd() -> torch.Tensor:
    return people(20, 8, dim=32)[0]


def test_dbscan_with_a_radius_is_that_of_the_whole_graph_without_a_ladder(crowd: torch.Tensor) -> None:
    for eps in (0.0, 0.3, 0.6):
        found = cluster_features(crowd, options(eps=eps, ladder=False))
        np.testing.assert_array_equal(found.labels, dbscan_graph(graph(crowd), eps=eps))
        assert (found.eps, found.steps, found.backend, found.recall) == (eps, (), "tiles", 1.0)
        assert found.sizes.tolist() == np.bincount(found.labels[found.labels >= 0]).tolist()


@pytest.mark.parametrize("rule", ["knee", "pairs"])
def test_dbscan_by_rule_climbs_as_on_the_whole_graph(crowd: torch.Tensor, rule: Any) -> None:
    found = cluster_features(crowd, options(eps=rule))
    other = climb_graph(graph(crowd), eps=graph_eps(graph(crowd), rule=rule))
    np.testing.assert_array_equal(found.labels, other.labels)
    assert (found.eps, found.steps) == (other.eps, other.steps)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", ["knee", "pairs"])
def test_rules_see_what_is_farther_than_is_kept(rule: Any, seed: int) -> None:
    features = people(400, 3, seed=seed, dim=64)[0]
    found = cluster_features(features, Grouping(eps=rule, k1=4, k2=2))
    whole = jaccard(encode_features(features, k1=4, k2=2))
    assert math.isclose(
        cluster_features(features, Grouping(eps=rule, k1=4, k2=2, ladder=False)).eps, graph_eps(whole, rule=rule)
    )
    other = climb_graph(whole, eps=graph_eps(whole, rule=rule), limit=max(graph_eps(whole, rule=rule), FARTHEST))
    np.testing.assert_array_equal(found.labels, other.labels)
    assert found.steps == other.steps


def test_ladder_changes_a_given_radius_only_when_asked_to(crowd: torch.Tensor) -> None:
    assert len(cluster_features(crowd, options(eps=0.001, ladder=False)).sizes) == 0
    climbed = cluster_features(crowd, options(eps=0.001))
    assert len(climbed.sizes) > 1
    assert climbed.steps[0].startswith("eps 0.001 finds 0 clusters, try ")
    text = shown(show_clustered("x", climbed))
    assert f"radius {climbed.eps:.4g}, as given; then the ladder" in text
    assert "ladder: eps 0.001 finds 0 clusters" in text


def test_hdbscan_infomap_and_kmeans_are_those_of_the_core(crowd: torch.Tensor) -> None:
    close = jaccard(encode_features(crowd, k1=10, k2=3), most=FARTHEST)
    hdbscan = cluster_features(crowd, options(method="hdbscan", min_samples=5))
    np.testing.assert_array_equal(hdbscan.labels, hdbscan_graph(close, min_cluster_size=5, ties="apart"))
    assert math.isnan(hdbscan.eps)
    pytest.importorskip("infomap")
    infomap = cluster_features(crowd, options(method="infomap", eps=0.5), seed=3)
    seed = 1 + Run(seed=3).seed_for("cluster/infomap") % (1 << 31)
    np.testing.assert_array_equal(infomap.labels, infomap_graph(graph(crowd), eps=0.5, seed=seed, min_cluster_size=4))
    means = cluster_features(crowd, Grouping(method="kmeans", clusters=20), seed=3)
    other = kmeans(normalise(crowd), 20, generator=Run(seed=3).stream("cluster/kmeans"))
    np.testing.assert_array_equal(means.labels, other.labels)
    assert (means.backend, means.steps) == ("", ())


def test_lengths_of_features_do_not_matter(crowd: torch.Tensor) -> None:
    longer = crowd * torch.linspace(0.1, 10, len(crowd))[:, None]
    for grouping in (options(), Grouping(method="kmeans", clusters=9)):
        one, other = (cluster_features(features, grouping).labels for features in (crowd, longer))
        np.testing.assert_array_equal(one, other)


def test_approximate_neighbours_state_their_recall(crowd: torch.Tensor) -> None:
    pytest.importorskip("faiss")
    found = cluster_features(crowd, options(backend="faiss-hnsw", eps=0.6))
    assert 0.5 < found.recall <= 1
    for recall, told in ((0.875, "87.5%"), (0.99996, "99.9%"), (1.0, "100.0%")):
        poor = Clustered(found.labels, found.grouping, backend="faiss HNSW", recall=recall)
        assert f"neighbours: faiss HNSW, {told} of the true neighbours found, on a sample" in shown(
            show_clustered("", poor)
        )
    with pytest.raises(RecipeError, match=r"^backend 'faiss-hnsw' does not see the farthest rows; use tiles$"):
        cluster_features(crowd, options(backend="faiss-hnsw", reading="zhong"))


def test_what_speaks_for_clusters_without_labels(crowd: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster_features(crowd, options(eps=0.6), seed=5)
    stream = Run(seed=5).stream("cluster/silhouette")
    assert found.silhouette == tuple(silhouette(crowd, found.labels, generator=stream))
    assert found.density == soft_neighbourhood_density(crowd)
    monkeypatch.setattr("uda_reid.foreign.clustering.DENSITY_ROWS", 100)
    assert math.isnan(cluster_features(crowd, options(eps=0.6)).density)
    nothing = cluster_features(torch.eye(5), options(eps=0.0, ladder=False))
    text = shown(show_clustered("x", nothing))
    assert "n/a" in text and "radius 0, as given" in text
    content = json.loads(clustered_json(nothing, labels=Path("labels.csv")))
    assert (content["clusters"], content["outliers"], content["silhouette"]["value"], content["median"]) == (
        0, 5, None, None
    )  # fmt: skip
    assert content["asked"].keys() == {"eps", "ladder", "min_samples", "k1", "k2", "reading", "backend"}
    assert content["eps"] == 0 and content["recall"] == 1
    means = json.loads(clustered_json(cluster_features(crowd, Grouping(method="kmeans", clusters=20))))
    assert means["asked"] == {"clusters": 20}
    assert means["eps"] is means["recall"] is means["neighbours"] is means["reach"] is None
    assert content["labels"] == "labels.csv"


def identified(folder: Path, pids: Iterable[Any], cams: Iterable[Any], *, splits: Sequence[str] = ()) -> Any:
    rows = list(zip(pids, cams, *([splits] if splits else []), strict=True))
    header = "identity,camera" + (",split" if splits else "")
    return read_ids(table(folder, "\n".join([header, *(",".join(map(str, row)) for row in rows)])))


def test_audit_is_that_of_the_rows_with_an_identity(tmp_path: Path) -> None:
    features, pids, cams = people(20, 8, dim=32)
    labels = cluster_features(features, options(eps=0.6)).labels
    pids[:3] = -1
    pids[3:5] = 0
    names = ["" if row == 5 else str(pid) for row, pid in enumerate(pids)]
    found = audit_clusters(labels, identified(tmp_path, names, cams))
    rows = np.arange(len(pids)) > 5
    assert found.values == audit(labels[rows], pids[rows], cams=cams[rows])
    assert found.rows == len(pids) - 6
    assert 0 < found.chance < 1
    assert found.notes == ("the audit leaves out 6 rows of junk (-1), of distractors (0) or without an identity",)
    text = shown(show_clustered("x", cluster_features(features, options(eps=0.6)), found))
    assert f"camera purity of these clusters with the cameras shuffled: {100 * found.chance:.1f}" in text
    assert "over the rows in clusters, of 154 rows with an identity" in text


def test_audit_goes_without_cameras_and_takes_0_for_a_person_outside_the_gallery(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, 1])
    found = audit_clusters(labels, identified(tmp_path, [0, 0, 1, 1], [1, 1, 1, 1], splits=["train"] * 4))
    assert found.rows == 4
    assert "camera_purity" not in found.values
    assert found.notes == ("no camera purity: rows are without a camera, or all from one",)
    assert found.values["pair_f1"] == 1
    assert math.isnan(found.chance)
    text = shown(show_clustered("x", Clustered(labels, Grouping()), found))
    assert "camera purity of these clusters" not in text
    assert "purity" in text
    with pytest.raises(DataError, match=r"ids\.csv: no row has an identity to compare with; leave out --ids$"):
        audit_clusters(labels, identified(tmp_path, [-1, 0, "", ""], [1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "spectral"}, "method 'spectral' is unknown; use dbscan, hdbscan, kmeans, infomap"),
        ({"method": "kmeans"}, "k-means needs the number of clusters; give it with --clusters"),
        ({"eps": 1.5}, "eps 1.5 is out of range on a graph"),
        ({"eps": math.nan}, "eps nan is out of range on a graph"),
        ({"min_samples": 0}, "min_samples 0 cannot be for dbscan; use 1 or more"),
        ({"method": "hdbscan", "min_samples": 1}, "min_samples 1 cannot be for hdbscan; use 2 or more"),
        ({"reading": "zong"}, "reading 'zong' is unknown"),
        ({"k1": 0}, "k1 0 and k2 3 must be at least 1"),
    ],
)
def test_impossible_groupings_are_refused_before_the_search(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}"):
        cluster_features(torch.eye(4), options(**values))


def test_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"labels\.csv cannot be written \("):
        write_labels(tmp_path / "file" / "labels.csv", np.zeros(3, np.int64))


@pytest.mark.parametrize(("different", "noted"), [(1, True), (3, True), (5, False), (20, False)])
def test_clusters_of_equal_rows_are_said_to_be_alike(different: int, noted: bool) -> None:
    features = torch.eye(20)[torch.arange(20) % different]
    found = cluster_features(features, Grouping(method="kmeans", clusters=5))
    note = f"only {different} of the 5 clusters differ: the others are parts of equal rows"
    assert (note in found.notes) == noted
    assert (f"note: {note}" in shown(show_clustered("x", found))) == noted
