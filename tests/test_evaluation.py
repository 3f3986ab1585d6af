from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests import oracles
from uda_reid.errors import DataError, RecipeError
from uda_reid.evaluation import Evaluator, evaluate, why_unscored
from uda_reid.ops.distance import cosine_blocks, cosine_distances
from uda_reid.run import Run
from uda_reid.testing import tiny_domain, tiny_source
from uda_reid.training.features import extract
from uda_reid.types import Domain, Encoder, Source


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("tiny"), identities=8)


@pytest.fixture(scope="module")
def source(domain: Domain) -> Source:
    return tiny_source(domain)


def test_scores_equal_the_oracle_on_the_same_features(domain: Domain, source: Source) -> None:
    scorer = Evaluator(domain)
    scores = scorer.score(source.encoder)
    query, gallery = extract(source.encoder, scorer.query), extract(source.encoder, scorer.gallery)
    assert domain.query.cams is not None and domain.gallery.cams is not None
    distances = 1 - nn.functional.normalize(query.double()) @ nn.functional.normalize(gallery.double()).T
    expected = [
        oracles.trapezoid_average_precision(relevance) for relevance in market_relevance(domain, distances.numpy())
    ]
    assert scores.protocol == "market"
    assert scores.average_precision == pytest.approx(expected, abs=1e-6)
    assert scores.mean_ap == pytest.approx(np.mean(expected), abs=1e-6)
    assert scores.mean_ap <= scores.mean_ap_step
    assert (scores.counted, scores.skipped) == (8, 0)


def market_relevance(domain: Domain, distances: np.ndarray) -> list[list[bool]]:
    rows = []
    assert domain.query.cams is not None and domain.gallery.cams is not None
    for query, row in enumerate(distances):
        ranked = np.argsort(row, kind="stable")
        same = domain.gallery.pids == domain.query.pids[query]
        own = same & (domain.gallery.cams == domain.query.cams[query])
        rows.append([bool(same[image]) for image in ranked if not own[image]])
    return rows


def test_queries_without_a_match_are_counted_and_in_no_mean(domain: Domain, source: Source) -> None:
    whole = evaluate(source.encoder, domain)
    pids = domain.query.pids.copy()
    pids[:2] = 999  # nobody in the gallery
    scores = evaluate(source.encoder, replace(domain, query=replace(domain.query, pids=pids)))
    assert (scores.counted, scores.skipped) == (6, 2)
    assert np.isnan(scores.average_precision[:2]).all()
    assert scores.mean_ap == pytest.approx(np.nanmean(scores.average_precision))
    assert scores.mean_ap == pytest.approx(whole.average_precision[2:].mean(), abs=1e-9)
    assert scores.mean_ap_all == pytest.approx(scores.mean_ap * 6 / 8)


def test_without_cameras_the_any_camera_protocol_is_used_and_named(domain: Domain, source: Source) -> None:
    blind = replace(domain, query=replace(domain.query, cams=None), gallery=replace(domain.gallery, cams=None))
    assert evaluate(source.encoder, blind).protocol == "any-camera"
    with pytest.raises(DataError, match="any-camera"):
        evaluate(source.encoder, blind, protocol="market")


def test_single_gallery_shot_gives_a_cmc_and_no_map(domain: Domain, source: Source) -> None:
    scores = evaluate(source.encoder, domain, protocol="single-gallery-shot")
    assert np.isnan(scores.mean_ap)
    assert 0 < scores.cmc[1] <= scores.cmc[5] <= scores.cmc[10] == 1
    assert scores.protocol == "single-gallery-shot, 100 repeats, seed 0"
    again = evaluate(source.encoder, domain, protocol="single-gallery-shot")
    other = evaluate(source.encoder, domain, protocol="single-gallery-shot", run=Run(seed=1))
    assert again.cmc == scores.cmc
    assert other.protocol.endswith("seed 1")


def test_an_encoder_that_tells_identities_apart_scores_one(domain: Domain) -> None:
    class Perfect(Encoder):
        """Reads the identity out of the file that an image came from, by comparing pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.dim, self.spec = 9, {"height": 32, "width": 16}
            scorer = Evaluator(domain)
            self.known = [
                (scorer.query.read(torch.arange(8), 32, 16), domain.query.pids),
                (scorer.gallery.read(torch.arange(32), 32, 16), domain.gallery.pids),
            ]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = []
            for image in (images * 255).round().byte():
                for pictures, pids in self.known:
                    hits = (pictures == image).flatten(1).all(1).nonzero().flatten().tolist()
                    if hits:
                        found.append(nn.functional.one_hot(torch.tensor(pids[hits[0]] - 9), 9).float())
                        break
            return torch.stack(found)

    scores = evaluate(Perfect(), domain)
    assert scores.mean_ap == scores.mean_ap_step == scores.mean_inp == scores.cmc[1] == 1.0


@pytest.mark.parametrize("protocol", ["market", "cross-camera", "any-camera"])
def test_ranked_lists_equal_the_oracle(domain: Domain, source: Source, protocol: str) -> None:
    pids = domain.gallery.pids.copy()
    pids[[0, 7]], pids[3] = -1, 0
    odd = replace(domain, gallery=replace(domain.gallery, pids=pids))
    scorer = Evaluator(odd, protocol)
    query, gallery = extract(source.encoder, scorer.query), extract(source.encoder, scorer.gallery)
    assert odd.query.cams is not None and odd.gallery.cams is not None
    lists = scorer.ranked(source.encoder, [5, 0, 7], top=40)
    assert [found.query for found in lists] == [5, 0, 7]
    for found in lists:
        distances = cosine_distances(query, gallery)[found.query].tolist()
        pid, cam = int(odd.query.pids[found.query]), int(odd.query.cams[found.query])
        expected = oracles.ranked(distances, pid, cam, pids.tolist(), odd.gallery.cams.tolist(), protocol)
        assert list(found.gallery) == expected
        assert list(found.right) == [pids[row] == pid for row in expected]
        assert found.distances == pytest.approx([distances[row] for row in expected], abs=1e-6)


def test_ranked_lists_tell_the_average_precision_that_score_gives(domain: Domain, source: Source) -> None:
    scorer = Evaluator(domain)
    scores = scorer.score(source.encoder)
    for found in scorer.ranked(source.encoder, range(8), top=32):
        expected = oracles.trapezoid_average_precision(found.right)
        assert scores.average_precision[found.query] == pytest.approx(expected, abs=1e-12)


class Blind(Encoder):
    """Embeds every image alike."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.spec = 2, {"height": 32, "width": 16}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 2)


def test_equal_distances_are_listed_in_the_gallerys_order(domain: Domain) -> None:
    (found,) = Evaluator(domain, "any-camera").ranked(Blind(), [2], top=10)
    assert found.gallery == tuple(range(10))
    assert len(set(found.distances)) == 1


def test_ranked_lists_of_many_queries_span_blocks(
    domain: Domain, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(domain).ranked(source.encoder, range(8))
    three = partial(cosine_blocks, memory=3 * 4 * len(domain.gallery))
    monkeypatch.setattr("uda_reid.evaluation.cosine_blocks", three)
    in_blocks = Evaluator(domain).ranked(source.encoder, range(8))
    assert [found.gallery for found in in_blocks] == [found.gallery for found in whole]


def test_ranked_lists_under_single_gallery_shot_rank_the_whole_gallery(domain: Domain, source: Source) -> None:
    shot = Evaluator(domain, "single-gallery-shot").ranked(source.encoder, [1])
    assert shot == Evaluator(domain, "market").ranked(source.encoder, [1])
    assert Evaluator(domain).ranked(source.encoder, []) == ()


def test_ranked_lists_of_no_query_or_no_images_are_refused(domain: Domain, source: Source) -> None:
    with pytest.raises(DataError, match="query 8 is out of range: there are 8"):
        Evaluator(domain).ranked(source.encoder, [0, 8])
    with pytest.raises(RecipeError, match="top 0 is not a positive number"):
        Evaluator(domain).ranked(source.encoder, [0], top=0)


def test_unscored_domain_says_what_is_missing(domain: Domain) -> None:
    nothing = replace(domain.query, paths=(), pids=np.zeros(0, np.int64), cams=np.zeros(0, np.int64))
    assert why_unscored(domain) == ""
    bare = replace(domain, query=nothing, gallery=nothing)
    assert why_unscored(bare).startswith("not scored: tiny has no query and gallery images; ")
    assert "has no gallery images" in why_unscored(replace(domain, gallery=nothing))


def test_unknown_protocol_and_missing_test_images_are_refused(domain: Domain) -> None:
    with pytest.raises(RecipeError, match="protocol 'markt' is unknown; use one of: market"):
        Evaluator(domain, "markt")
    nothing = replace(domain.query, paths=(), pids=np.zeros(0, np.int64), cams=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="not scored: tiny has no query images; give it labelled ones"):
        Evaluator(replace(domain, query=nothing))
