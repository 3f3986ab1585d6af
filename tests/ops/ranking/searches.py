"""Searches with labels and distances as the tests of rankings need them, and what the loops say about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests import oracles
from uda_reid.ops.protocols import PROTOCOLS
from uda_reid.ops.ranking import RATES, Ranking, rank_distances

NEAR = 1e-6
NAMES = sorted(PROTOCOLS)


@dataclass(frozen=True)
class Search:
    """A small search by given distances."""

    distances: Sequence[Sequence[float]]
    query_pids: list[int]
    gallery_pids: list[int]
    query_cams: list[int]
    gallery_cams: list[int]
    protocol: str
    dtype: torch.dtype = torch.float32

    def matrix(self) -> Tensor:
        return torch.tensor(self.distances, dtype=self.dtype)

    def rank(self, *sizes: int, rates: Sequence[float] = RATES) -> Ranking:
        """Rank with blocks of the given sizes, the last one repeated."""
        return self.rank_matrix(self.matrix(), *sizes, rates=rates)

    def rank_matrix(self, matrix: Tensor, *sizes: int, rates: Sequence[float] = RATES) -> Ranking:
        """Rank by other distances."""
        return rank_distances(
            blocks(matrix, *sizes or (len(matrix),)),
            query_pids=self.query_pids,
            gallery_pids=self.gallery_pids,
            query_cams=self.query_cams,
            gallery_cams=self.gallery_cams,
            protocol=self.protocol,
            rates=rates,
        )

    def rows(self, query: int) -> list[int]:
        labels = self.query_pids[query], self.query_cams[query], self.gallery_pids, self.gallery_cams
        return oracles.ranked(self.distances[query], *labels, self.protocol)

    def relevance(self, query: int) -> list[int]:
        return [int(self.gallery_pids[g] == self.query_pids[query]) for g in self.rows(query)]

    def pairs(self) -> tuple[list[float], list[float]]:
        """The distances of all matches and of all allowed wrong images."""
        found: tuple[list[float], list[float]] = ([], [])
        for query, row in enumerate(self.distances):
            for g in self.rows(query):
                found[self.gallery_pids[g] != self.query_pids[query]].append(row[g])
        return found

    def by_loops(self, rates: Sequence[float] = RATES) -> Ranking:
        """The ranking by the slow loops."""
        columns = list(zip(*(self._measures(query) for query in range(len(self.query_pids))), strict=True))
        return Ranking(
            protocol=self.protocol,
            valid=np.array(columns[0]),
            average_precision=np.array(columns[1]),
            average_precision_step=np.array(columns[2]),
            average_precision_merged=np.array(columns[3]),
            inverse_penalty=np.array(columns[4]),
            first=np.array(columns[5]),
            tied=np.array(columns[6]),
            near=np.array(columns[7]),
            accepted={rate: oracles.true_positive_rate(*self.pairs(), rate) for rate in rates},
        )

    def _measures(self, query: int) -> tuple[float, ...]:
        rows, relevance = self.rows(query), self.relevance(query)
        if not any(relevance):
            nan = float("nan")
            return False, nan, nan, nan, nan, -1, False, 0
        distances = [self.distances[query][g] for g in rows]
        return (
            True,
            oracles.trapezoid_average_precision(relevance),
            oracles.step_average_precision(relevance),
            oracles.merged_average_precision(distances, relevance),
            oracles.inverse_penalty(relevance),
            relevance.index(1),
            oracles.close_pairs(distances, relevance, 0) > 0,
            oracles.close_pairs(distances, relevance, NEAR),
        )


def blocks(matrix: Tensor, *sizes: int) -> Iterator[Tensor]:
    start, left = 0, list(sizes)
    while start < len(matrix):
        size = left.pop(0) if len(left) > 1 else left[0]
        yield matrix[start : start + size]
        start += size


@st.composite
def searches(draw: st.DrawFn, levels: int = 6) -> Search:
    """A random search; distances are small integers, so that many are equal."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 14))

    def ints(low: int, high: int, size: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=size, max_size=size))

    return Search(
        distances=[ints(-1, levels, gallery) for _ in range(queries)],
        query_pids=ints(1, 3, queries),
        gallery_pids=ints(-1, 3, gallery),
        query_cams=ints(0, 2, queries),
        gallery_cams=ints(0, 2, gallery),
        protocol=draw(st.sampled_from(NAMES)),
    )


def random_search(generator: np.random.Generator, *, queries: int = 3, gallery: int = 10) -> Search:
    """A random search; distances are few multiples of 1 or of 4e-7: many are equal, or nearly so."""
    queries, gallery = int(generator.integers(1, queries + 1)), int(generator.integers(1, gallery + 1))
    precision = (np.float32, np.float64)[generator.integers(2)]
    step, offset = ((1.0, 0.0), (1.0, -2.0), (4e-7, 0.5))[generator.integers(3)]
    distances = offset + step * generator.integers(0, generator.integers(2, 8), (queries, gallery))
    return Search(
        distances=distances.astype(precision).tolist(),
        query_pids=generator.integers(1, 4, queries).tolist(),
        gallery_pids=generator.integers(-1, 4, gallery).tolist(),
        query_cams=generator.integers(0, 3, queries).tolist(),
        gallery_cams=generator.integers(0, 3, gallery).tolist(),
        protocol=NAMES[generator.integers(3)],
        dtype=torch.float32 if precision is np.float32 else torch.float64,
    )


def one_query(relevance: list[int], distances: list[float] | None = None, rates: Sequence[float] = RATES) -> Ranking:
    """Rank one query whose gallery, in order of distance, is right (1), wrong (0) or junk (-1)."""
    if distances is None:
        distances = [0.1 * place for place in range(len(relevance))]
    pids = [{1: 5, 0: 0, -1: -1}[kind] for kind in relevance]
    return rank_distances(
        [torch.tensor([distances])], query_pids=[5], gallery_pids=pids, protocol="any-camera", rates=rates
    )


def people(
    seed: int, *, queries: int, gallery: int, dimensions: int, identities: int, noise: float
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Features around one centre per identity, and labels with junk and distractors."""
    generator = np.random.default_rng(seed)
    labels = {
        "query_pids": generator.integers(1, identities, queries),
        "gallery_pids": generator.integers(-1, identities, gallery),
        "query_cams": generator.integers(0, 4, queries),
        "gallery_cams": generator.integers(0, 4, gallery),
    }
    centres = generator.normal(size=(identities + 1, dimensions))
    query, found = (
        torch.from_numpy(centres[pids] + noise * generator.normal(size=(len(pids), dimensions))).float()
        for pids in (labels["query_pids"], labels["gallery_pids"])
    )
    return query, found, labels


def assert_identical(a: Ranking, b: Ranking) -> None:
    for field in fields(Ranking):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "accepted":
            one, other = list(one.items()), list(other.items())
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def assert_equal(found: list[Ranking], expected: list[Ranking]) -> None:
    """Compare all that many rankings say, floating-point numbers to 1e-12."""
    for name in [field.name for field in fields(Ranking)]:
        a, b = ([getattr(ranking, name) for ranking in rankings] for rankings in (found, expected))
        if name == "protocol":
            assert a == b
            continue
        if name == "accepted":
            assert [list(rates) for rates in a] == [list(rates) for rates in b]
            a, b = ([np.array(list(rates.values())) for rates in column] for column in (a, b))
        whole = np.concatenate(a)
        assert whole.dtype == np.concatenate(b).dtype
        if whole.dtype == np.float64:
            np.testing.assert_allclose(whole, np.concatenate(b), rtol=0, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(whole, np.concatenate(b), err_msg=name)


def big_search(dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Any]]:
    """50 queries x 700 images with ties; identities with very many, many and few matches."""
    generator = np.random.default_rng(1)
    distances = torch.from_numpy(generator.random((50, 700), dtype=np.float32)).mul(500).round().to(dtype)
    labels = {
        "query_pids": generator.integers(1, 4, 50) ** 2,
        "gallery_pids": generator.integers(0, 4, 700) ** 2,
        "query_cams": generator.integers(0, 3, 50),
        "gallery_cams": generator.integers(0, 3, 700),
    }
    return distances, labels
