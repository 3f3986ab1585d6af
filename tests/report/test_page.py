from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report.examples import DIRECT, RECORD, UNSCORED, WHY, call_drawn, picture, scores
from uda_reid.data.contents import digests
from uda_reid.errors import CheckpointError
from uda_reid.report import BOUND, Lists, Record, Row, Shown, rebuild, write, write_lists, write_page
from uda_reid.report.lists import Hit, Query
from uda_reid.report.page import render
from uda_reid.report.pictures import Picture

VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = ("scores", "learning", "pseudo-labels", "source", "queries", "lists", "ledger", "run")


class Page(HTMLParser):
    """Collects tags and text, and refuses a tag that is closed in the wrong place or never."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], "tags that were never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    """Two queries with three images each; one of the images is not there."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("query.png", "red"), ("green.png", "green"), ("blue.png", "blue")):
        Image.new("RGB", (32, 64), colour).save(folder / name)
    one, two, gone = (picture(folder, name, 2) for name in ("green.png", "blue.png", "secret/gone.png"))
    asked = picture(folder, "query.png")
    before = Hit(one, True, 0.1), Hit(two, False, 0.25), Hit(gone, False, 0.3)
    queries = (
        Query(0, asked, "improved", 0.1, 0.6, before, before[::-1]),
        Query(2, asked, "spread", 0.5, 0.5, before, before),
    )
    return Lists(str(folder), 2, queries)


def test_page_has_every_section_and_its_navigation(lists: Lists) -> None:
    page = Page(render(RECORD, Shown(lists)))
    assert [section.get("id") for section in page.all("section")] == list(SECTIONS)
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in SECTIONS]
    for expected in (
        "alpha → beta", "20.0 →", "25.0", "+5.0 points", "One seed", "trapezoid", "mAP and rank-1 on the target",
        "Pairs put together", "identification", "2 better, above the diagonal", "Query 0", "10.0 → 60.0 (+50.0 points)",
        "neither chance nor taste", "number of clusters given", "clusters", "something unusual", "threads",
        "uda-reid adapt", "only 2 counted queries".capitalize(), "On identities of alpha", "mAP 50.0 %",
    ):  # fmt: skip
        assert expected in page.text, expected


@pytest.mark.parametrize("record", [RECORD, DIRECT, UNSCORED], ids=["scored", "direct", "unscored"])
@pytest.mark.parametrize("pictures", [True, False])
def test_page_asks_nothing_of_any_network(record: Record, pictures: bool, lists: Lists) -> None:
    text = render(record, Shown(lists), pictures=pictures)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), "a handler is a script"
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert value is not None
                assert value.startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text))
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_says_how_many_pictures_have_changed_since_the_run(lists: Lists) -> None:
    def known(digest: str) -> Lists:
        queries = (replace(query, picture=replace(query.picture, digest=digest)) for query in lists.queries)
        return replace(lists, queries=tuple(queries))

    now = digests([Path(lists.root, "query.png")])[0].hex()
    assert "changed since the run" not in Page(render(RECORD, Shown(known(now)))).text
    page = Page(render(RECORD, Shown(known("0" * 64))))
    assert "1 picture has changed since the run and is shown by name" in page.text
    assert "query.png" in page.text
    assert "changed since the run" not in Page(render(RECORD, Shown(known("0" * 64)), pictures=False)).text


def test_page_fits_a_phone_and_follows_the_readers_colours() -> None:
    text = render(RECORD)
    (viewport,) = [meta["content"] for meta in Page(text).all("meta") if meta.get("name") == "viewport"]
    assert viewport == "width=device-width, initial-scale=1"
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert rule in text


def test_pictures_and_tables_can_be_read_without_eyes(lists: Lists) -> None:
    page = Page(render(RECORD, Shown(lists)))
    images, used = page.all("image"), [use["href"] for use in page.all("use")]
    assert len(used) == 10  # 2 queries, 12 places, of which 4 have no image any more
    assert len(images) == 3, "every image is in the page once"
    assert {f"#{image['id']}" for image in images} == set(used)
    labels = {drawing.get("aria-label") for drawing in page.all("svg")}
    assert labels >= {"query 0", "place 1, right, camera 2"}
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    assert all(
        drawing.get("aria-hidden") or (drawing.get("role") == "img" and drawing.get("aria-label"))
        for drawing in page.all("svg")
    )
    assert page.all("html")[0]["lang"] == "en"


def test_right_and_wrong_differ_by_more_than_colour(lists: Lists) -> None:
    page = Page(render(RECORD, Shown(lists)))
    assert page.text.count("✓") == 4 + 1  # and the sentence that explains it
    assert page.text.count("✗") == 8 + 1
    labels = Counter(mark.get("aria-label") for mark in page.all("b"))
    assert (labels["right"], labels["wrong"]) == (4, 8)


def test_names_are_text_and_not_markup(lists: Lists) -> None:
    evil = "<script>alert('&\"')</script>"
    facts = {evil: evil}
    rows = tuple(replace(row, name=evil, facts=facts) for row in RECORD.rows)
    entries = tuple({**entry, evil: 1.0} for entry in RECORD.curve)
    record = replace(
        RECORD, source=evil, target=evil, profile=evil, command=evil, version=evil, rows=rows, notes=(evil,),
        recipe={"name": evil, "paper": evil, "fidelity": evil, "adapt": {evil: evil}}, environment={evil: evil},
        seconds={evil: 1.0}, validation={evil: 0.5}, curve=entries, history=entries, pretraining=entries,
    )  # fmt: skip
    queries = tuple(replace(query, picture=Picture(evil, None)) for query in lists.queries)
    for found in (render(record, Shown(replace(lists, queries=queries))), render(replace(UNSCORED, unscored=evil))):
        page = Page(found)
        assert not page.all("script")
        assert evil in page.text
        assert "<script" not in found


def test_bytes_that_are_no_text_become_question_marks(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", replace(RECORD, target="b\udce9ta"))
    assert "b?ta" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_same_run_gives_the_same_bytes(lists: Lists, tmp_path: Path) -> None:
    for name in ("first.html", "second.html"):
        write_page(tmp_path / name, RECORD, Shown(lists))
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_supervised_bound_is_a_column_and_a_line() -> None:
    page = Page(render(RECORD.with_row(Row(BOUND, scores(0.4), {"trained with labels on": "beta"}), command="")))
    assert "supervised" in page.text
    assert "mAP of the bound" in page.text
    assert "25% of the gap" in page.text


def test_recipe_without_adaptation_has_one_column_and_says_so() -> None:
    page = Page(render(DIRECT))
    assert "The recipe adapts nothing" in page.text
    assert "25.0" not in page.text
    assert "points" not in page.text.partition("Scores on")[0].replace("points of rank-1", "")
    for expected in ("There is no learning curve", "There are no audited pseudo-labels", "Nothing was adapted"):
        assert expected in page.text, expected


def test_unscored_page_says_why_and_keeps_history_and_ledger() -> None:
    page = Page(render(UNSCORED))
    for expected in (
        WHY[1:], "selected", "number of clusters given", "Without labelled queries", "not compared with identities",
        "Nothing was scored, so there are no ranked lists", "Nothing was scored, so there are no queries",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "%" not in page.text.partition("Training on the source")[0].replace("accuracy (%)", "")


def test_missing_pieces_leave_a_sentence() -> None:
    bare = replace(RECORD, history=(), curve=(), pretraining=(), validation={}, notes=())
    page = Page(render(bare))
    for expected in (
        "the strategy handed out no snapshots", "reported nothing per round", "keeps no losses of the source training",
        "No identities of alpha were held out", "kept no ranked lists", "handed out none",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Notes" not in page.text


def test_photographs_are_announced_and_can_be_left_out(lists: Lists) -> None:
    notice = "contains photographs of people: do not publish"
    assert notice in render(RECORD, Shown(lists))
    without = render(RECORD, Shown(lists), pictures=False)
    assert notice not in without
    assert "data:image" not in without
    assert "green.png" not in without
    assert "gone.png" not in without
    assert "The pictures were left out" in without
    assert Page(without).text.count("✗") == 8 + 1


def test_drawn_people_are_not_announced_as_photographs(lists: Lists, tmp_path: Path) -> None:
    notice, scene = "contains photographs of people", Path(lists.root)
    names = [path.name for path in scene.glob("*.png")]
    (scene / "scene.json").write_text("{}")
    assert notice in render(RECORD, Shown(lists)), "a file of that name alone makes no drawing"
    call_drawn(scene, names[:1])
    assert notice in render(RECORD, Shown(lists)), "the drawing does not list all of them"
    call_drawn(scene, names)
    assert notice not in render(RECORD, Shown(lists))
    (tmp_path / "private.png").write_bytes((scene / "green.png").read_bytes())
    (scene / "green.png").unlink()
    (scene / "green.png").symlink_to(tmp_path / "private.png")
    assert notice in render(RECORD, Shown(lists)), "a link out of a drawing may lead to anybody"


def test_a_page_whose_images_have_gone_does_not_announce_photographs(lists: Lists) -> None:
    for image in Path(lists.root).glob("*.png"):
        image.unlink()
    text = render(RECORD, Shown(lists))
    assert "data:image" not in text and "contains photographs" not in text


@pytest.mark.parametrize("form", ["{folder}/private.png", "../private.png", "x/../../private.png"])
def test_pictures_from_outside_the_data_set_are_not_embedded(lists: Lists, tmp_path: Path, form: str) -> None:
    """A run's folder may be another's, who wants this one's pictures in a page that is handed on."""
    Image.new("RGB", (32, 64), "red").save(tmp_path / "private.png")
    (Path(lists.root) / "x").mkdir()
    asked = Picture(form.format(folder=tmp_path), None)
    queries = tuple(replace(query, picture=asked, before=(), after=()) for query in lists.queries)
    text = render(RECORD, Shown(replace(lists, queries=queries)))
    assert "data:image" not in text and "contains photographs" not in text
    assert "Images outside the data set&#39;s folder are not shown, only their names: 1" in text


def test_images_that_have_gone_are_shown_by_name(lists: Lists) -> None:
    page = Page(render(RECORD, Shown(lists)))
    gone = [span for span in page.all("span") if span.get("class") == "gone"]
    assert len(gone) == 4
    assert gone[0]["aria-label"] == "place 3, wrong, camera 2: the image is gone"
    assert "secret/gone.png" in page.text
    assert "green.png" not in page.text
    assert "green.png" in Page(render(RECORD, Shown(replace(lists, root="nowhere")))).text


def test_page_is_rebuilt_from_the_files_beside_the_record(lists: Lists, tmp_path: Path) -> None:
    write(RECORD, tmp_path / "record.json")
    assert rebuild(tmp_path).read_text(encoding="utf-8") == render(RECORD)
    write_lists(lists, tmp_path / "ranked.json")
    page = rebuild(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text(encoding="utf-8") == render(RECORD, Shown(lists))
    rebuild(tmp_path, pictures=False)
    assert page.read_text(encoding="utf-8") == render(RECORD, Shown(lists), pictures=False)


def test_page_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no finished run is there \(record\.json is missing\), nor a matrix"):
        rebuild(tmp_path)


def test_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_page(path, RECORD)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"report\.html.*No space left on device"):
        write_page(path, replace(RECORD, seed=9))
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_page_with_photographs_is_for_its_user_alone_and_all_else_follows_the_umask(
    lists: Lists, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        write(RECORD, tmp_path / "record.json")
        write_lists(lists, tmp_path / "ranked.json")
        modes = {
            pictures: stat.S_IMODE(rebuild(tmp_path, pictures=pictures).stat().st_mode) for pictures in (True, False)
        }
        assert modes == {True: 0o600, False: 0o644}
        call_drawn(Path(lists.root), [path.name for path in Path(lists.root).glob("*.png")])
        assert stat.S_IMODE(rebuild(tmp_path).stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "record.json").stat().st_mode) == 0o644


def test_another_s_lists_that_name_a_private_folder_show_nothing_of_it(lists: Lists, tmp_path: Path) -> None:
    """Who does not have a picture does not know its digest."""
    private = tmp_path / "private"
    private.mkdir()
    Image.new("RGB", (32, 64), "purple").save(private / "green.png")
    assert "data:image" in render(RECORD, Shown(lists))
    for digest in ("", "00", lists.pictures[0].digest):
        asked = Picture("green.png", None, digest)
        queries = tuple(replace(query, picture=asked, before=(), after=()) for query in lists.queries)
        text = render(RECORD, Shown(replace(lists, root=str(private), queries=queries)))
        assert "data:image" not in text and "contains photographs" not in text
