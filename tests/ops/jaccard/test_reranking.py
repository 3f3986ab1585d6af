from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.ops.jaccard.cases import (
    BAD_OPTIONS,
    READINGS,
    clusters,
    drawn,
    each_reading,
    full,
    of_features,
    signs,
    threads,
    whole,
)
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import cosine_distances
from uda_reid.ops.jaccard import Reading, encode_features, jaccard, rerank, reranking
from uda_reid.ops.ranking import rank_distances


@pytest.mark.parametrize(
    ("reading", "k1", "near", "far"),
    [
        # A query at 0 degrees, gallery images at 60 and 180: squared distances 1, 4, and 3 between these two. The sets
        # are {query, 60}, twice, and the one at 180 is alone.
        # exp(-1/4) = 0.778801: 0.562177, 0.437823; exp(-1/3) = 0.716531: 0.582570, 0.417430.
        # (0.417430 + 0.437823) / (0.562177 + 0.582570) = 0.747111. 0.3 * 1/4 + 0.7 * 0.252889.
        ("zhong", 1, 0.252022, 1.0),
        # exp(-1/16) = 0.939413: 0.515620, 0.484380; exp(-1/9) = 0.894839: 0.527749, 0.472251.
        # (0.472251 + 0.484380) / (0.515620 + 0.527749) = 0.916867. 0.3 * 1/16 + 0.7 * 0.083133.
        ("zhong-squared", 1, 0.076943, 1.0),
        # 0.3 * 1 + 0.7 * (1 - exp(-1)), 0.3 * 4 + 0.7.
        ("spcl", 2, 0.742484, 1.9),
    ],
)
def test_re_ranked_distances_worked_out_on_paper(reading: Reading, k1: int, near: float, far: float) -> None:
    query = torch.tensor([[2.0, 0.0]])
    gallery = torch.tensor([[0.5, math.sqrt(0.75)], [-3.0, 0.0]])
    found = whole(rerank(query, gallery, k1=k1, k2=1, share=0.3, reading=reading))
    np.testing.assert_allclose(found, [[near, far]], atol=2e-6, rtol=0)
    told = oracles.reranked([[0, 1, 4], [1, 0, 3], [4, 3, 0]], 1, k1, 1, 0.3, reading)
    np.testing.assert_allclose(told, [[near, far]], atol=2e-6, rtol=0)


# what goes wrong elsewhere


@pytest.mark.parametrize("dimensions", [3, 64, 257, 2048])
@pytest.mark.parametrize("constant", [False, True], ids=["drawn", "constant"])
@each_reading
def test_a_collapsed_model_is_no_ranking_by_rounding(dimensions: int, constant: bool, reading: Reading) -> None:
    one = torch.full((1, dimensions), 0.3) if constant else drawn(1, dimensions)
    features = one.repeat(300, 1)
    matrix = full(jaccard(encode_features(features, k1=20, k2=6, reading=reading)))
    np.testing.assert_allclose(matrix, 0, atol=1e-6)
    found = whole(rerank(features[:40], features[40:], k1=20, k2=6, reading=reading))
    np.testing.assert_allclose(found, found[0, 0], atol=1e-6, rtol=0)
    pids = np.arange(260) % 4 + 1
    ranking = rank_distances(
        rerank(features[:4], features[40:], reading=reading),
        query_pids=[1, 2, 3, 4],
        gallery_pids=pids,
        protocol="any-camera",
    )
    assert ranking.ties == 4


def test_first_hits_differ_between_readings_and_are_those_of_their_own_loops() -> None:
    features = clusters(90, 8, 3, spread=2.0)
    squared = of_features(features).tolist()
    firsts: list[npt.NDArray[np.int64]] = []
    for reading in READINGS:
        expected = np.argmin(oracles.reranked(squared, 50, 20, 6, 0.3, reading), axis=1)
        found = whole(rerank(features[:50], features[50:], reading=reading)).argmin(axis=1)
        np.testing.assert_array_equal(found, expected)
        assert all((found != other).any() for other in firsts)
        firsts.append(found)


# re-ranking


@pytest.mark.parametrize(("k1", "k2", "share"), [(20, 6, 0.3), (5, 1, 0.0), (1, 3, 0.8), (6, 6, 1.0), (200, 100, 0.5)])
@each_reading
def test_re_ranked_distances_equal_the_loops(k1: int, k2: int, share: float, reading: Reading) -> None:
    for features in (clusters(56, 8, 5), signs(56)):
        query, gallery = features[:15], features[15:] * torch.arange(-20.0, 21.0).exp2()[:, None]
        found = whole(rerank(query, gallery, k1=k1, k2=k2, share=share, reading=reading))
        expected = oracles.reranked(of_features(features).tolist(), 15, k1, k2, share, reading)
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@each_reading
def test_re_ranked_blocks_of_every_size_agree(reading: Reading) -> None:
    query, gallery = clusters(30, 8, 6), clusters(80, 8, 6, seed=1)
    expected = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
    for height in (1, 7, 29, 1000):
        sizes, parts = [], []
        for block in rerank(query, gallery, k1=8, k2=3, reading=reading, memory=height * 4 * 110):
            assert block.dtype == torch.float32
            sizes.append(len(block))
            parts.append(block.clone())
        assert sizes == [min(len(parts[0]), 30 - start) for start in range(0, 30, len(parts[0]))]
        assert len(parts[0]) >= min(height, 30)
        np.testing.assert_allclose(torch.cat(parts), expected, atol=1e-6, rtol=0)


@each_reading
def test_re_ranked_distances_are_the_same_bits_for_every_number_of_threads(reading: Reading) -> None:
    query, gallery = signs(40, seed=1), signs(90)
    found = []
    for number in (1, 2):
        with threads(number):
            found.append(whole(rerank(query, gallery, k1=8, k2=3, reading=reading)))
    np.testing.assert_array_equal(found[0], found[1])


@each_reading
def test_a_permuted_gallery_permutes_the_re_ranked_distances(reading: Reading) -> None:
    query, gallery = clusters(20, 8, 6), clusters(70, 8, 6, seed=1)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(2))
    plain = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
    permuted = whole(rerank(query, gallery[order], k1=8, k2=3, reading=reading))
    assert np.ptp(plain) > 0.5
    np.testing.assert_allclose(permuted, plain[:, order], atol=1e-6, rtol=0)


@each_reading
def test_all_of_the_share_for_the_distance_leaves_its_order(reading: Reading) -> None:
    query, gallery = signs(20, seed=1), signs(70)
    found = whole(rerank(query, gallery, share=1, reading=reading))
    plain = cosine_distances(query, gallery).numpy()
    np.testing.assert_array_equal(found.argsort(axis=1, kind="stable"), plain.argsort(axis=1, kind="stable"))
    power = 2 if reading == "zhong-squared" else 1
    top = 1 if reading == "spcl" else (2 * cosine_distances(query, torch.cat([query, gallery])).amax(dim=1)).numpy()
    scale = np.asarray(top)[..., None] ** power
    np.testing.assert_allclose(found, (2 * plain) ** power / scale, atol=1e-6, rtol=0)


@each_reading
def test_none_of_the_share_for_the_distance_leaves_the_jaccard_distance(reading: Reading) -> None:
    query, gallery = clusters(20, 8, 6), clusters(70, 8, 6, seed=1)
    found = whole(rerank(query, gallery, k1=8, k2=3, share=0, reading=reading))
    both = full(jaccard(encode_features(torch.cat([query, gallery]), k1=8, k2=3, reading=reading), rows=20))
    np.testing.assert_allclose(found, both[:, 20:], atol=1e-6, rtol=0)


@each_reading
def test_re_ranking_as_on_a_gpu_equals_the_compiled_loops(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = [(clusters(30, 8, 6), clusters(80, 8, 6, seed=1)), (signs(30), signs(80, seed=1))]
    searches.append((torch.ones(5, 8), torch.ones(60, 8)))
    for query, gallery in searches:
        for share in (0.0, 0.3, 1.0):
            options: dict[str, Any] = {"k1": 8, "k2": 3, "share": share, "reading": reading, "memory": 11 * 4 * 90}
            compiled = whole(rerank(query, gallery, **options))
            with monkeypatch.context() as patch:
                patch.setattr(reranking, "_mix", reranking._mix_on_device)
                np.testing.assert_allclose(whole(rerank(query, gallery, **options)), compiled, atol=1e-6, rtol=0)


@each_reading
def test_re_ranked_evaluation_equals_the_loops_end_to_end(reading: Reading) -> None:
    features = clusters(90, 8, 9, spread=1.0)
    numbers = np.random.default_rng(0)
    pids, cams = numbers.integers(1, 9, 90), numbers.integers(0, 3, 90)
    queries = 20
    ranking = rank_distances(
        rerank(features[:queries], features[queries:], k1=8, k2=3, reading=reading, memory=7 * 4 * 90),
        query_pids=pids[:queries],
        gallery_pids=pids[queries:],
        query_cams=cams[:queries],
        gallery_cams=cams[queries:],
    )
    expected = oracles.reranked(of_features(features).tolist(), queries, 8, 3, 0.3, reading)
    for query in range(queries):
        labels: tuple[int, int, Sequence[int], Sequence[int]] = (
            int(pids[query]),
            int(cams[query]),
            pids[queries:].tolist(),
            cams[queries:].tolist(),
        )
        rows = oracles.ranked(expected[query], *labels, "market")
        relevance = [int(pids[queries + row] == pids[query]) for row in rows]
        assert ranking.average_precision[query] == pytest.approx(
            oracles.trapezoid_average_precision(relevance), abs=1e-9
        )
        assert ranking.first[query] == relevance.index(1)


def test_re_ranking_shows_its_progress_and_leaves_the_features_as_they_are() -> None:
    query, gallery = drawn(5, 4), drawn(20, 4, seed=1)
    seen: list[str] = []

    def show(items: Any, description: str, total: int | None) -> Any:
        seen.append(description)
        return items

    whole(rerank(query, gallery, progress=show))
    assert seen == ["neighbours"]
    assert torch.equal(query, drawn(5, 4))
    assert torch.equal(gallery, drawn(20, 4, seed=1))


# bad input


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 2), "^query features have 3 dimensions, gallery features 2$"),
        (torch.ones(3), torch.ones(4, 3), r"^query features: shape \(3,\) given, \(rows, dimensions\) expected$"),
        (torch.ones(2, 3), torch.ones(0, 3), r"^gallery features: shape \(0, 3\) is empty"),
        (torch.ones(2, 3).double(), torch.ones(4, 3), "^query features: torch.float64 given, torch.float32 expected"),
        (torch.ones(2, 3), torch.full((4, 3), math.nan), r"^gallery features: row 0 holds NaN or infinity \(4 of 4"),
        (torch.full((2, 3), math.inf), torch.ones(4, 3), r"^query features: row 0 holds NaN or infinity \(2 of 2"),
    ],
)
def test_rerank_refuses_features_before_anything_is_asked_of_it(query: Tensor, gallery: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rerank(query, gallery)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *BAD_OPTIONS,
        ({"share": -0.1}, "^a share of -0.1 of the original distance is out of range; use 0 to 1$"),
        ({"share": 1.01}, "^a share of 1.01 of the original distance is out of range; use 0 to 1$"),
        ({"share": math.nan}, "^a share of nan of the original distance is out of range; use 0 to 1$"),
    ],
)
def test_rerank_refuses_options_before_anything_is_asked_of_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rerank(torch.ones(2, 3), torch.ones(4, 3), **options)


def test_rerank_refuses_too_little_memory() -> None:
    with pytest.raises(RecipeError, match=r"^memory of 3 bytes is too small: one row takes"):
        whole(rerank(torch.ones(2, 3), torch.ones(4, 3), memory=3))


# on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_reading
def test_re_ranking_on_a_gpu_equals_that_on_the_cpu(reading: Reading) -> None:
    for query, gallery in ((clusters(30, 8, 6), clusters(400, 8, 6, seed=1)), (signs(30), signs(400, seed=1))):
        found = list(rerank(query, gallery.cuda(), k1=8, k2=3, reading=reading, memory=16 * 430))
        assert {block.device.type for block in found} == {"cuda"}
        on_gpu = whole(rerank(query.cuda(), gallery.cuda(), k1=8, k2=3, reading=reading, memory=16 * 430))
        on_cpu = whole(rerank(query, gallery, k1=8, k2=3, reading=reading))
        np.testing.assert_allclose(on_gpu, on_cpu, atol=2e-6, rtol=0)
        encoding = encode_features(gallery.cuda(), k1=8, k2=3, reading=reading)
        assert encoding.found.rows.device.type == "cuda"
        plain = full(jaccard(encode_features(gallery, k1=8, k2=3, reading=reading)))
        np.testing.assert_allclose(full(jaccard(encoding)), plain, atol=2e-6, rtol=0)


def test_re_ranking_leaves_the_gradient_mode_alone_between_blocks_and_when_it_is_abandoned() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    found: Any = rerank(features[:3], features[3:], k1=2, k2=1, memory=24)
    first = next(found)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    kept = first.clone()
    next(found)
    assert torch.equal(first, kept)  # a block stays what it was
    found.close()
    with pytest.raises(DataError, match="exactly 5 columns are expected"):
        rank_distances(
            rerank(features[:3], features[3:], k1=2, k2=1),
            query_pids=[1] * 3,
            gallery_pids=[1] * 5,
            protocol="any-camera",
        )
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_re_ranking_tells_rows_apart_that_share_nearly_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 1, 2048, generator=generator)
    features = (1 + 0.003 * (centres + 0.5 * torch.randn(20, 10, 2048, generator=generator))).view(200, 2048)
    pids = torch.arange(20).repeat_interleave(10) + 1
    query, gallery = slice(0, 200, 10), torch.arange(200) % 10 > 0
    labels: dict[str, Any] = {"query_pids": pids[query], "gallery_pids": pids[gallery], "protocol": "any-camera"}
    for reading in READINGS:
        ranking = rank_distances(rerank(features[query], features[gallery], k1=8, k2=3, reading=reading), **labels)
        assert ranking.mean(ranking.average_precision) == 1
