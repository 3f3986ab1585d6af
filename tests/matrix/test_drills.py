from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.matrix.examples import PAIRS, runs
from tests.report.examples import call_drawn, picture
from tests.report.test_embedding_map import small
from tests.report.test_page import Page
from uda_reid.matrix.drills import ATTENDED, HITS, albums, drills
from uda_reid.matrix.page import render
from uda_reid.matrix.plan import Place
from uda_reid.matrix.results import Summary
from uda_reid.matrix.summary import summarise
from uda_reid.report import AttentionMaps, Lists, Shown
from uda_reid.report.attention import Parts
from uda_reid.report.lists import Hit, Query

COLOURS = ("red", "green", "blue", "orange")


def shown(root: Path, *, drawn: bool = True) -> Shown:
    """Return what a run shows: four queries of every kind, seven places each, ten attention maps, a map."""
    root.mkdir(exist_ok=True)
    for name in COLOURS:
        Image.new("RGB", (32, 64), name).save(root / f"{name}.png")
    if drawn:
        call_drawn(root, [f"{name}.png" for name in COLOURS])
    pictures = [picture(root, f"{name}.png", 1) for name in COLOURS]
    hits = tuple(Hit(pictures[place % 4], place == 2, place / 10) for place in range(7))
    queries = [
        Query(4 * number + row, pictures[row], why, 0.1, 0.2, hits, hits[::-1])
        for number, why in enumerate(("improved", "worsened", "lowest", "spread"))
        for row in range(4)
    ]
    maps = tuple(Parts(pictures[place % 4], place / 10, ((0.5,),), ((0.5,),)) for place in range(10))
    return Shown(Lists(str(root), 20, tuple(queries)), AttentionMaps(str(root), maps), small())


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(runs(), PAIRS, (0, 1), resamples=50)


def test_cell_shows_extremes_of_its_first_run_shortened(summary: Summary, tmp_path: Path) -> None:
    kept = {("up", Place("a", "b", 0)): shown(tmp_path / "b"), ("up", Place("a", "b", 1)): shown(tmp_path / "c")}
    found = {drill.title: drill.pictured for drill in drills(summary, runs(), {}, kept)}
    assert [title for title, pictured in found.items() if pictured] == ["a → b, up"]
    pictured = found["a → b, up"]
    assert pictured is not None and (pictured.seed, pictured.root) == (0, str(tmp_path / "b"))
    titles = [(title.split(":")[0], [query.row for query in queries]) for title, queries in pictured.groups]
    assert titles == [("Most improved", [0, 1]), ("Most worsened", [4, 5]), ("Failures", [8, 9, 10])]
    query = pictured.groups[0][1][0]
    assert len(query.before) == len(query.after) == HITS
    assert [hit.distance for hit in query.after] == [0.6, 0.5, 0.4, 0.3, 0.2]
    assert [part.share for part in pictured.attention[0]] == [0.0, 0.2, 0.4, 0.6, 0.8] and ATTENDED == 5
    assert len(pictured.clouds[0]) == 4 and "25% → 50%" in pictured.clouds[1]
    assert len(pictured.pictures) == 7 * (1 + 2 * HITS) + 5


def test_source_only_shows_the_lists_of_a_run_that_adapts_nothing(summary: Summary, tmp_path: Path) -> None:
    place = Place("a", "b", 0)
    found = runs()
    direct = {**found["source_only"][place].recipe, "strategy": "source_only"}
    found["source_only"][place] = replace(found["source_only"][place], recipe=direct)
    kept = {(recipe, place): shown(tmp_path / "b") for recipe in ("up", "source_only")}
    for order in (("source_only", "up", "down"), ("up", "down", "source_only")):
        ordered = {recipe: found[recipe] for recipe in order}
        drilled = drills(summarise(ordered, PAIRS, (0, 1), resamples=20), ordered, {}, kept)
        assert [each.title for each in drilled if each.pictured] == ["a → b, source-only", "a → b, up"], order
    del found["source_only"]
    lists = drills(summarise(found, PAIRS, (0, 1), resamples=20), found, {}, {("up", place): shown(tmp_path / "b")})
    assert [each.title for each in lists if each.pictured] == ["a → b, up"], "nor are lists before those of a bound"


def test_run_that_shows_nothing_is_no_error(summary: Summary) -> None:
    kept = {("up", Place("a", "b", 0)): Shown(), ("down", Place("b", "a", 0)): Shown(embeddings=small())}
    found = drills(summary, runs(), {}, kept)
    assert albums(found) == {"": {}}
    text = render(summary, runs(), {}, command="", origin="", shown=kept)
    assert "25% → 50%" in text and "<use" not in text


def test_page_has_every_picture_once_and_says_whose_they_are(summary: Summary, tmp_path: Path) -> None:
    kept = {
        ("up", Place("a", "b", 0)): shown(tmp_path / "b"), ("down", Place("a", "b", 0)): shown(tmp_path / "b"),
        ("down", Place("b", "a", 0)): shown(tmp_path / "a"),
    }  # fmt: skip
    text = render(summary, runs(), {}, command="", origin="", shown=kept)
    page = Page(text)
    images, used = page.all("image"), [use["href"] for use in page.all("use")]
    assert len(images) == 8, "four images of either target"
    assert {f"#{image['id']}" for image in images} == set(used) and len(used) == 3 * (7 * (1 + 2 * HITS) + 5)
    assert "contains photographs of people" not in text
    bare = render(summary, runs(), {}, command="", origin="", shown=kept, pictures=False)
    assert "<use" not in bare and "<image" not in bare and "Query 8" in bare and 'class="bare"' in bare
    for name in COLOURS:
        (tmp_path / "a" / f"{name}.png").unlink()
        (tmp_path / "b" / f"{name}.png").unlink()
    gone = render(summary, runs(), {}, command="", origin="", shown=kept)
    assert "<use" not in gone and "the image is gone" in gone and 'class="bare"' not in gone
    photographed = {key: shown(tmp_path / "p", drawn=False) for key in kept}
    notice = "contains photographs of people: do not publish"
    assert notice in render(summary, runs(), {}, command="", origin="", shown=photographed)
    assert notice not in render(summary, runs(), {}, command="", origin="", shown=photographed, pictures=False)
