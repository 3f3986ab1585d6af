from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from tests import oracles
from tests.foreign.made import people, searched, shown, table
from uda_reid.errors import DataError, RecipeError
from uda_reid.foreign import (
    Grouping,
    Reranking,
    Search,
    cluster_features,
    score_features,
    score_files,
    scored_json,
    show_scored,
    write_per_query,
)
from uda_reid.ops.distance import normalise
from uda_reid.ops.jaccard import rerank
from uda_reid.ops.ranking import rank, rank_distances
from uda_reid.types import JUNK

T = TypeVar("T")


def expected(search: Search, protocol: str = "market") -> tuple[list[float], list[float], list[float], list[int]]:
    """Trapezoid AP, step AP, INP and place of the first match of the queries that have one, by the oracles."""
    found: tuple[list[float], ...] = ([], [], [])
    first = []
    gallery, query = search.gallery.double().tolist(), search.query.double().tolist()
    pids = search.gallery_pids.tolist()
    cams = [0] * len(pids) if search.gallery_cams is None else search.gallery_cams.tolist()
    for row, pid in enumerate(search.query_pids.tolist()):
        distances = [oracles.cosine_distance(query[row], other) for other in gallery]
        cam = 0 if search.query_cams is None else int(search.query_cams[row])
        relevance = [int(pids[g] == pid) for g in oracles.ranked(distances, pid, cam, pids, cams, protocol)]
        if any(relevance):
            for values, measure in zip(
                found,
                (oracles.trapezoid_average_precision, oracles.step_average_precision, oracles.inverse_penalty),
                strict=True,
            ):
                values.append(measure(relevance))
            first.append(relevance.index(1) + 1)
    return found[0], found[1], found[2], first


@pytest.mark.parametrize("protocol", ["market", "cross-camera", "any-camera"])
def test_scores_are_those_of_the_definitions(protocol: str) -> None:
    search = searched()
    scored = score_features(search, protocol=protocol)
    trapezoid, step, penalty, first = expected(search, protocol)
    plain = scored.plain
    assert plain.protocol == protocol
    assert plain.mean(plain.average_precision) == pytest.approx(np.mean(trapezoid), abs=1e-9)
    assert plain.mean(plain.average_precision_step) == pytest.approx(np.mean(step), abs=1e-9)
    assert plain.mean(plain.average_precision_merged) == pytest.approx(np.mean(step), abs=1e-9)  # there are no ties
    assert plain.mean(plain.inverse_penalty) == pytest.approx(np.mean(penalty), abs=1e-9)
    assert (plain.first[plain.valid] + 1).tolist() == first
    assert plain.skipped == 12 - len(first) == 1
    content = json.loads(scored_json(scored, ids=Path("ids.csv")))
    assert content["ids"] == "ids.csv"
    assert content["rankings"]["plain"]["mean_ap"] == pytest.approx(np.mean(trapezoid), abs=1e-9)
    everyone = content["rankings"]["plain"]["all_queries"]
    assert everyone["mean_ap"] == pytest.approx(sum(trapezoid) / 12, abs=1e-9)  # as Person_reID_baseline divides
    assert everyone["cmc"]["1"] == pytest.approx(sum(place == 1 for place in first) / 12, abs=1e-9)
    assert (content["counted"], content["skipped"], content["protocol"]) == (11, 1, protocol)


@pytest.mark.parametrize("reading", ["zhong", "zhong-squared", "spcl"])
def test_reranked_scores_are_those_of_reranked_distances(reading: Any) -> None:
    search = searched()
    scored = score_features(search, reranking=Reranking(k1=6, k2=3, share=0.2, reading=reading, junk=True))
    assert list(scored.rankings) == ["plain", "re-ranked"]
    labels: dict[str, Any] = {
        "query_pids": search.query_pids, "gallery_pids": search.gallery_pids, "query_cams": search.query_cams,
        "gallery_cams": search.gallery_cams,
    }  # fmt: skip
    blocks = rerank(search.query, search.gallery, k1=6, k2=3, share=0.2, reading=reading)
    again = rank_distances(blocks, **labels), rank(search.query, search.gallery, **labels)
    for found, other in zip((scored.rankings["re-ranked"], scored.plain), again, strict=True):
        np.testing.assert_array_equal(found.average_precision, other.average_precision)
        assert dict(found.accepted) == dict(other.accepted)
    content = json.loads(scored_json(scored))
    assert content["reranking"] == {"k1": 6, "k2": 3, "share": 0.2, "reading": reading, "junk": True}
    assert set(content["rankings"]["re-ranked"]["tpr_at_fpr"]) == {"1e-4", "1e-3"}
    assert f"re-ranked: reading {reading}, k1 6, k2 3, lambda 0.2" in shown(show_scored("x", scored))


def test_small_memory_changes_nothing_and_progress_is_shown() -> None:
    search = searched()
    descriptions: list[tuple[str, int | None]] = []
    whole = score_features(search, reranking=Reranking(k1=6))
    parts = score_features(search, reranking=Reranking(k1=6), memory=4 * 60 * 4, progress=quietly(descriptions))
    for name in whole.rankings:
        np.testing.assert_allclose(
            parts.rankings[name].average_precision, whole.rankings[name].average_precision, atol=1e-6
        )
    assert [description for description, _ in descriptions] == ["re-ranking", "neighbours"]
    assert descriptions[0][1] == 3  # 5 queries' distances at a time
    with pytest.raises(RecipeError, match=r"^memory of 100 bytes is too small: one row takes 192$"):
        score_features(search, memory=100)


def quietly(descriptions: list[tuple[str, int | None]]) -> Any:
    """A progress that remembers what it was told and checks that as many items pass as were announced."""

    def progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        descriptions.append((description, total))
        passed = 0
        for item in items:
            passed += 1
            yield item
        assert total is None or passed == total

    return progress


def test_protocol_goes_by_the_cameras_and_must_be_known() -> None:
    search = searched()
    assert score_features(search).plain.protocol == "market"
    blind = Search(search.query, search.gallery, search.query_pids, search.gallery_pids)
    assert score_features(blind).plain.protocol == "any-camera"
    with pytest.raises(DataError, match=r"^protocol 'market' needs the camera of every row, and two"):
        score_features(blind, protocol="market")
    with pytest.raises(RecipeError, match=r"^protocol 'markt' is unknown"):
        score_features(search, protocol="markt")
    with pytest.raises(RecipeError, match=r"^protocol 'single-gallery-shot' draws galleries at random and knows no av"):
        score_features(search, protocol="single-gallery-shot")
    strangers = Search(search.query, search.gallery, search.query_pids + 100, search.gallery_pids)
    with pytest.raises(DataError, match=r"^none of the 12 queries has a match in the gallery under protocol 'any-came"):
        score_features(strangers, reranking=Reranking())


def test_euclidean_distances_count_lengths_as_torchreid_does() -> None:
    search = searched()
    longer = search.gallery * torch.linspace(0.2, 3, len(search.gallery))[:, None] + 5
    uneven = Search(
        search.query + 5, longer, search.query_pids, search.gallery_pids, search.query_cams, search.gallery_cams
    )
    labels: dict[str, Any] = {
        name: getattr(search, name) for name in ("query_pids", "gallery_pids", "query_cams", "gallery_cams")
    }
    distances = torch.cdist(uneven.query.double(), longer.double())
    expected = rank_distances([distances], **labels)
    for memory in (1 << 20, 16 * len(longer)):  # one query at a time
        scored = score_features(uneven, metric="euclidean", memory=memory)
        np.testing.assert_array_equal(scored.plain.average_precision, expected.average_precision)
        assert scored.notes == ()
    assert not np.array_equal(score_features(uneven).plain.average_precision, expected.average_precision)
    assert "compared by Euclidean distance, lengths and all" in shown(show_scored("", scored))
    assert json.loads(scored_json(scored))["metric"] == "euclidean"
    for stretch in (1e6, 1e15):  # one row far away changes nothing for the others, nor do large numbers
        far = uneven.gallery.clone()
        far[3] *= stretch
        distances = torch.cdist(uneven.query.double(), far.double())
        outlying = score_features(replace(uneven, gallery=far), metric="euclidean").plain
        wanted = rank_distances([distances], **labels)
        np.testing.assert_array_equal(outlying.average_precision, wanted.average_precision)
        assert outlying.near.sum() == 0
    high = replace(uneven, query=uneven.query * 1e20, gallery=uneven.gallery * 1e20)
    found = score_features(high, metric="euclidean").plain
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    whole = replace(uneven, query=(search.query > 0).float(), gallery=(search.gallery > 0).float())
    ties = rank_distances([torch.cdist(whole.query.double(), whole.gallery.double()).square().round()], **labels)
    assert ties.ties > 0
    assert score_features(whole, metric="euclidean").plain.ties == ties.ties
    same_place = Search(torch.ones(2, 3), torch.ones(4, 3), np.array([1, 2]), np.array([3, 1, 3, 2]))
    assert score_features(same_place, metric="euclidean").plain.ties == 2
    with pytest.raises(RecipeError, match=r"^metric 'l2' is unknown; use cosine or euclidean$"):
        score_features(uneven, metric="l2")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"^re-ranking compares by cosine; use one or the other"):
        score_features(uneven, metric="euclidean", reranking=Reranking())


def test_output_says_what_the_numbers_are() -> None:
    text = shown(show_scored("mine [b]", score_features(searched())))
    for part in (
        "mine [b]", "mAP", "merged", "mINP", "1e-4", "1e-3", "protocol market: gallery images with the query's",
        "queries: 11 counted, 1 skipped: no match in the gallery is left for them", "over all 12 queries, skipped ones",
        "ties: none, and no distances within 1e-6 of one another", "torchreid", "Person_reID_baseline", "took: plain ",
        "note: features of lengths from 2.", "(torchreid by default) ranks otherwise",
    ):  # fmt: skip
        assert part in text, part


def test_output_speaks_of_lengths_only_where_they_differ_and_of_ties_where_there_are() -> None:
    search = searched()
    even = Search(normalise(search.query), normalise(search.gallery), search.query_pids, search.gallery_pids)
    assert score_features(even).notes == ()
    assert "queries: 11 counted, 1 skipped" in shown(show_scored("", score_features(even)))
    for stretch, told in ((1.002, True), (1.0005, False)):
        almost = Search(even.query * stretch, even.gallery, search.query_pids, search.gallery_pids)
        assert bool(score_features(almost).notes) == told
    lost = Search(even.query, torch.cat([even.gallery[:-3], torch.zeros(3, 16)]), even.query_pids, even.gallery_pids)
    assert score_features(lost).notes == ("3 of 60 rows are all zeros: was a batch lost on the way?",)
    both = score_features(Search(search.query, lost.gallery, search.query_pids, search.gallery_pids)).notes
    assert [note[:18] for note in both] == ["3 of 60 rows are a", "features of length"]
    flat = Search(torch.ones(2, 3), torch.ones(4, 3), np.array([1, 2]), np.array([3, 1, 3, 2]))
    text = shown(show_scored("", score_features(flat)))
    assert "queries: all 2 have a match, so the means over all queries are the same" in text
    assert "plain: 2 queries have equal distances that change the AP, in the mean by 12.5 points: the order of" in text
    assert "have the features collapsed?" in text
    assert "2 queries have near ties (6 pairs within 1e-6, which rounding may swap)" in text
    # However the gallery is ordered, and however little such features find.
    pids = np.random.default_rng(0).permutation(np.arange(400) % 100)
    flat = Search(torch.ones(50, 3), torch.ones(400, 3), np.arange(50) + 1, pids + 1)
    assert "have the features collapsed?" in shown(show_scored("", score_features(flat)))
    # Among many images some are equally far by chance; that is no collapse.
    features, pids, cams = people(30, 6)
    features[7] = features[14]
    few = Search(features[::6], features, pids[::6], pids, cams[::6], cams)
    text = shown(show_scored("", score_features(few, protocol="any-camera")))
    assert "equal distances" in text and "collapsed" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_table_of_two_rankings_is_whole_on_a_narrow_terminal(width: int) -> None:
    text = shown(show_scored("x", score_features(searched(), reranking=Reranking(k1=6))), width)
    assert "\u2026" not in text
    assert all(len(line) <= width for line in text.splitlines())


def test_every_query_is_a_line(tmp_path: Path) -> None:
    search = searched()
    scored = score_features(search, reranking=Reranking(k1=6))
    write_per_query(tmp_path / "queries.csv", scored, search)
    with (tmp_path / "queries.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["ranking"] for line in lines] == ["plain"] * 12 + ["re-ranked"] * 12
    for at, name in ((0, "plain"), (12, "re-ranked")):
        ranking = scored.rankings[name]
        for query, line in enumerate(lines[at : at + 12]):
            assert (line["query"], line["row"]) == (str(query), str(query))
            assert line["identity"] == str(search.query_pids[query])
            assert search.query_cams is not None and line["camera"] == str(search.query_cams[query])
            assert line["valid"] == str(int(ranking.valid[query]))
            assert line["tied"] == "0" and line["near_pairs"] == "0"
            if not ranking.valid[query]:
                assert line["ap_trapezoid"] == line["inp"] == line["first_match_rank"] == ""
                continue
            assert float(line["ap_trapezoid"]) == ranking.average_precision[query]
            assert float(line["ap_step"]) == ranking.average_precision_step[query]
            assert float(line["ap_merged"]) == ranking.average_precision_merged[query]
            assert float(line["inp"]) == ranking.inverse_penalty[query]
            assert int(line["first_match_rank"]) == ranking.first[query] + 1


def test_queries_are_called_by_their_rows_and_names_in_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3)))
    ids = table(tmp_path, "person,split\nzo\u00eb,gallery\nadam,gallery\nzo\u00eb,query\nadam,query\n")
    out = tmp_path / "out" / "queries.csv"
    search, scored = score_files([tmp_path / "x.npy"], ids=ids, per_query=out)
    assert scored.plain.counted == len(search.query) == 2
    with out.open(newline="", encoding="utf-8") as file:
        found = [(line["query"], line["row"], line["identity"], line["camera"]) for line in csv.DictReader(file)]
    assert found == [("0", "2", "zo\u00eb", ""), ("1", "3", "adam", "")]


@pytest.mark.parametrize("cameras", [True, False])
def test_junk_is_no_neighbour_unless_it_is_wanted(cameras: bool) -> None:
    """Other toolkits drop junk when they read a data set, so it never was a neighbour of anything there."""
    search = searched()
    if not cameras:
        search = replace(search, query_cams=None, gallery_cams=None)
    kept = search.gallery_pids != JUNK
    clean = replace(
        search,
        gallery=search.gallery[torch.from_numpy(kept)],
        gallery_pids=search.gallery_pids[kept],
        gallery_cams=search.gallery_cams[kept] if search.gallery_cams is not None else None,
    )
    near = search.query.repeat(3, 1)
    many = replace(  # junk beside every query
        search,
        gallery=torch.cat([search.gallery, near]),
        gallery_pids=np.concatenate([search.gallery_pids, np.full(len(near), JUNK)]),
        gallery_cams=None
        if search.gallery_cams is None
        else np.concatenate([search.gallery_cams, np.full(len(near), 9)]),
    )
    options = Reranking(k1=6, k2=3)
    expected = score_features(clean, reranking=options)
    found, wanted = score_features(many, reranking=options), score_features(many, reranking=replace(options, junk=True))
    for name in expected.rankings:
        one, other = expected.rankings[name], found.rankings[name]
        np.testing.assert_array_equal(one.average_precision_step, other.average_precision_step)
        np.testing.assert_array_equal(one.inverse_penalty, other.inverse_penalty)
    aps = [each.rankings["re-ranked"].average_precision_step for each in (wanted, found)]
    assert (aps[0] != aps[1]).any()
    junk = int((many.gallery_pids == JUNK).sum())
    assert f"lambda 0.3, {junk} junk rows left out" in shown(show_scored("x", found))
    assert f"lambda 0.3, {junk} junk rows took part" in shown(show_scored("x", wanted))
    assert json.loads(scored_json(found))["junk"] == junk and not json.loads(scored_json(found))["reranking"]["junk"]
    assert "junk row" not in shown(show_scored("x", expected))


@pytest.mark.parametrize("scale", [1e-30, 1e-44, 1e30])
def test_very_small_features_are_not_called_zeros(scale: float) -> None:
    search = searched()
    small = replace(search, query=search.query.sign() * scale, gallery=search.gallery.sign() * scale)
    whole = replace(search, query=search.query.sign(), gallery=search.gallery.sign())
    assert score_features(small).notes == score_features(whole).notes == ()
    assert not any("zeros" in note for note in cluster_features(small.gallery, Grouping("kmeans", 4)).notes)
