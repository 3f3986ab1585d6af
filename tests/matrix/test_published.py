from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

from tests.matrix.examples import PAIRS, runs
from uda_reid.data.layouts.known import DATASETS
from uda_reid.matrix import sheets
from uda_reid.matrix.page import render
from uda_reid.matrix.published import DEFINITIONS, for_pairs, published
from uda_reid.matrix.summary import summarise
from uda_reid.recipe import load
from uda_reid.strategies import BUILT_IN


def test_every_number_is_one_and_has_its_definition_and_place() -> None:
    for row in published():
        assert {row.source, row.target} <= DATASETS.keys() and row.source != row.target, row
        assert 0 < row.mean_ap < 100 and (math.isnan(row.rank1) or row.mean_ap < row.rank1 < 100), row
        assert row.average_precision in DEFINITIONS and row.cite and row.backbone, row
    keys = Counter((row.method, row.source, row.target, row.cite, row.backbone) for row in published())
    assert set(keys.values()) == {1}


def test_rows_of_our_methods_have_our_names() -> None:
    names = {row.method for row in published()}
    assert {"source-only", "pul", "daam_v2"} <= names
    assert load("daam_v2").name == "daam_v2" and "pul" in BUILT_IN


def test_numbers_of_the_publication_of_pul_are_there() -> None:
    found = {row.method: (row.mean_ap, row.rank1) for row in for_pairs([("duke", "market")]) if "Fan" in row.cite}
    assert found == {"source-only": (14.2, 36.1), "pul": (20.1, 44.7)}


def test_pairs_are_in_their_order_and_others_have_nothing() -> None:
    found = for_pairs([("market", "duke"), ("duke", "market"), ("plaza", "campus")])
    assert [one.source for one, other in pairwise(found) if one.source != other.source] == ["market"]
    assert for_pairs([("plaza", "campus")]) == ()


def test_published_numbers_stand_apart_and_change_no_average() -> None:
    summary = summarise(runs(), PAIRS, (0, 1), resamples=10)
    assert sheets.literature(summary) == []
    beside = replace(summary, published=for_pairs([("duke", "market"), ("msmt17", "duke")]))
    rows = sheets.literature(beside)
    assert rows[0][:4] == ["source-only, published", "duke → market", "14.2", "36.1"]
    assert any(row[3] == "not given" for row in rows)
    assert sheets.scores(beside) == sheets.scores(summary) and sheets.gains(beside) == sheets.gains(summary)
    text = render(beside, runs(), {}, command="", origin="")
    assert "Published by others" in text and "Clustering and Fine-tuning" in text
    assert "Published by others" not in render(summary, runs(), {}, command="", origin="")
