from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.examples import DIRECT, RECORD, UNSCORED
from uda_reid.errors import CheckpointError
from uda_reid.evaluation import Evaluator
from uda_reid.report import Record, Row
from uda_reid.report.lists import Lists, choose, collect, read_lists, write_lists
from uda_reid.testing import tiny_domain, tiny_source
from uda_reid.types import Domain, Encoder


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("tiny"), identities=8)


@pytest.fixture(scope="module")
def encoders(domain: Domain) -> tuple[Encoder, Encoder]:
    return tiny_source(domain, epochs=0).encoder, tiny_source(domain, epochs=1).encoder


def scored(record: Record, domain: Domain, encoders: tuple[Encoder, Encoder]) -> Record:
    scorer = Evaluator(domain)
    rows = zip(record.rows, encoders, strict=True)
    return replace(record, rows=tuple(Row(row.name, scorer.score(encoder), {}) for row, encoder in rows))


def test_choice_is_the_extremes_and_even_steps_over_the_rest() -> None:
    after = np.linspace(0, 0.99, 100)
    before = after.copy()
    before[[3, 50, 97]] = [0.53, 0.9, 0.99]  # fell by 0.5, 0.4, 0.02
    before[[20, 80]] = [0.1, 0.2]  # rose by 0.1, 0.6
    before[[7, 8]] = math.nan
    after[[7, 8]] = math.nan
    chosen = choose(before, after, shown=9, extreme=2)
    assert chosen[:4] == ((80, "improved"), (20, "improved"), (3, "worsened"), (50, "worsened"))
    others = [row for row in range(99, -1, -1) if row not in (80, 20, 3, 50, 7, 8)]
    assert len(others) == 94
    assert chosen[4:6] == ((0, "lowest"), (1, "lowest"))
    assert chosen[6:] == tuple((others[place], "spread") for place in (15, 46, 76))


def test_failures_are_those_after_adaptation() -> None:
    before, after = np.array([0.5, 0.1, 0.6, 0.7]), np.array([0.5, 0.2, 0.6, 0.1])
    assert choose(before, after, shown=4, extreme=1) == ((1, "improved"), (3, "worsened"), (0, "lowest"), (2, "spread"))
    before[2], after[2] = 0.1, 0.4
    assert choose(before, after, shown=3, extreme=1)[2] == (1, "lowest")


def test_choice_of_equals_takes_the_earlier_rows() -> None:
    chosen = choose(np.zeros(6), np.full(6, 0.5), shown=2, extreme=2)
    assert chosen == ((0, "improved"), (1, "improved"))


@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 200])
def test_choice_names_no_query_twice_and_no_skipped_one(count: int) -> None:
    draw = np.random.default_rng(count)
    before, after = draw.random(count), draw.random(count)
    before[::5] = after[::5] = math.nan
    rows = [row for row, _ in choose(before, after)]
    counted = int(np.isfinite(before).sum())
    assert len(rows) == len(set(rows)) == min(16, counted)
    assert np.isfinite(before[rows]).all()


def test_collected_lists_are_those_of_the_evaluator(domain: Domain, encoders: tuple[Encoder, Encoder]) -> None:
    record = scored(RECORD, domain, encoders)
    lists = collect(record, Evaluator(domain), *encoders)
    assert (lists.root, lists.counted, len(lists.queries)) == (str(domain.root), 8, 8)
    assert domain.gallery.cams is not None
    for query in lists.queries:
        assert query.picture.path == f"query_{query.row:03d}.png"
        for hits, encoder in zip((query.before, query.after), encoders, strict=True):
            (found,) = Evaluator(domain).ranked(encoder, [query.row])
            assert [hit.picture.path for hit in hits] == [domain.gallery.paths[row].name for row in found.gallery]
            assert [hit.picture.cam for hit in hits] == domain.gallery.cams[list(found.gallery)].tolist()
            assert [hit.right for hit in hits] == list(found.right)
            assert [hit.distance for hit in hits] == pytest.approx(found.distances, abs=1e-4)
        assert record.compared is not None
        assert [query.ap_before, query.ap_after] == [scores.average_precision[query.row] for scores in record.compared]


def test_without_adaptation_there_is_one_list_per_query(domain: Domain, encoders: tuple[Encoder, Encoder]) -> None:
    record = scored(DIRECT, domain, (encoders[0], encoders[0]))
    lists = collect(record, Evaluator(domain), encoders[0], encoders[0])
    assert [query.before for query in lists.queries] == [()] * 8
    assert [query.why for query in lists.queries] == ["lowest"] * 4 + ["spread"] * 4
    assert all(len(query.after) == 10 for query in lists.queries)


def test_nothing_is_ranked_without_scores_or_average_precision(
    domain: Domain, encoders: tuple[Encoder, Encoder]
) -> None:
    assert collect(UNSCORED, Evaluator(domain), *encoders).queries == ()
    shot = Evaluator(domain, "single-gallery-shot")
    rows = tuple(replace(row, scores=shot.score(encoders[0])) for row in RECORD.rows)
    assert collect(replace(RECORD, rows=rows), shot, *encoders).queries == ()


def test_images_outside_of_the_folder_keep_their_whole_path(
    domain: Domain, encoders: tuple[Encoder, Encoder], tmp_path: Path
) -> None:
    record = scored(RECORD, domain, encoders)
    lists = collect(record, Evaluator(replace(domain, root=tmp_path)), *encoders)
    assert lists.queries[0].picture.path == (domain.root / f"query_{lists.queries[0].row:03d}.png").as_posix()


def test_lists_survive_the_disk(domain: Domain, encoders: tuple[Encoder, Encoder], tmp_path: Path) -> None:
    blind = replace(domain, query=replace(domain.query, cams=None))
    lists = collect(scored(RECORD, blind, encoders), Evaluator(blind), *encoders)
    assert lists.queries[0].picture.cam is None
    write_lists(lists, tmp_path / "ranked.json")
    assert read_lists(tmp_path / "ranked.json") == lists
    assert [file.name for file in tmp_path.iterdir()] == ["ranked.json"]


def test_foreign_and_broken_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranked.json"
    write_lists(Lists("data", 3, ()), path)
    whole = json.loads(path.read_text())
    for text in ("", "[]", "{}", json.dumps({**whole, "format": 9}), json.dumps({**whole, "queries": [{"row": 1}]})):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"ranked\.json: holds no ranked lists, or is damaged"):
            read_lists(path)
