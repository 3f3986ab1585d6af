from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.matrix.examples import PAIRS, runs
from tests.report.examples import picture
from tests.report.test_embedding_map import small
from uda_reid.errors import CheckpointError
from uda_reid.job import Job
from uda_reid.matrix.folder import (
    Entry,
    Matrix,
    collect,
    known_failures,
    matrix_of,
    origin,
    read_matrix,
    replaced,
    shown_by,
    write_matrix,
    write_tables,
)
from uda_reid.matrix.plan import Cell, Place, Planned
from uda_reid.pipeline.folders import locked
from uda_reid.report import Lists, Shown, write, write_lists, write_map
from uda_reid.report.lists import Hit, Query

FILES = ("matrix.md", "matrix.csv", "matrix.tex", "records.jsonl", "report.html")


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    """A matrix of two recipes on two pairs, two seeds each; the run of `down` from b to a with seed 1 is missing."""
    entries = []
    for recipe, places in runs().items():
        for place, record in places.items():
            folder = f"{recipe}-{place.source}-s{place.seed}"
            entries.append(Entry(recipe, place, folder, "uda-reid adapt"))
            (tmp_path / folder).mkdir()
            write(record, tmp_path / folder / "record.json")
    (tmp_path / "down-b-s1" / "record.json").unlink()
    return Matrix(tmp_path, "uda-reid matrix --domains a,b", "scenes", tuple(entries))


def test_list_of_runs_survives_the_disk(matrix: Matrix) -> None:
    write_matrix(matrix)
    assert read_matrix(matrix.root) == matrix
    assert matrix.pairs == PAIRS and matrix.seeds == (0, 1)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9, "runs": [1]}', '{"format": 1, "runs": [{"recipe": "pul"}]}'])
def test_damaged_list_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "matrix.json").write_text(text)
    message = r"matrix\.json: is not the list of a matrix .* run `uda-reid matrix` again$"
    with pytest.raises(CheckpointError, match=message):
        read_matrix(tmp_path)


def test_folders_of_a_list_stay_beside_it(matrix: Matrix) -> None:
    write_matrix(matrix)
    path = matrix.root / "matrix.json"
    data = json.loads(path.read_text())
    data["runs"][0]["folder"] = "/somewhere/else/x"
    path.write_text(json.dumps(data))
    assert read_matrix(matrix.root).entries[0].folder == "x"


@pytest.mark.parametrize("folder", ["..", "/", "", "a/.."])
def test_list_that_leads_out_of_its_folder_is_refused(matrix: Matrix, folder: str) -> None:
    write_matrix(matrix)
    path = matrix.root / "matrix.json"
    data = json.loads(path.read_text())
    data["runs"][0]["folder"] = folder
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"is no name of a folder.*; run `uda-reid matrix` again$"):
        read_matrix(matrix.root)


def test_matrix_of_a_plan_has_its_folders_commands_and_failures(tmp_path: Path) -> None:
    cell = Cell("pul", Place("a", "b", 0))
    planned = Planned({cell: Job(recipe="pul", source="a", command="x")}, {cell: tmp_path / "pul-a-b"}, "small")
    (entry,) = matrix_of(planned, tmp_path, "y", failed={cell: "no space left"}).entries
    assert entry == Entry("pul", cell.place, "pul-a-b", "x", (), "no space left")
    assert str(entry) == "a -> b, pul, seed 0"


def test_finished_runs_are_found_and_the_others_told(matrix: Matrix) -> None:
    found, missing = collect(matrix)
    assert {recipe: len(places) for recipe, places in found.items()} == {"source_only": 4, "up": 4, "down": 3}
    assert missing == ("b -> a, down, seed 1 (not made yet)",)


def test_tables_and_page_are_written_beside_the_runs(matrix: Matrix) -> None:
    summary, files = write_tables(matrix, resamples=50)
    assert tuple(file.name for file in files) == FILES and all(file.parent == matrix.root for file in files)
    assert summary.missing
    texts = {file.name: file.read_text() for file in files}
    assert all("down" in text for text in texts.values())
    for name in ("matrix.md", "matrix.tex", "report.html"):
        assert "uda-reid matrix --domains a,b" in texts[name]
        assert "b -> a, down, seed 1 (not made yet)" in texts[name].replace("&gt;", ">")
    assert 'href="up-a-s0/report.html"' in texts["report.html"]
    again = write_tables(matrix, resamples=50)[1]
    assert {file.name: file.read_text() for file in again} == texts


def test_page_shows_what_the_first_run_of_a_cell_shows_and_tells_what_cannot_be_read(matrix: Matrix) -> None:
    write_map(small(), matrix.root / "up-a-s1" / "embedding_map.json")
    (matrix.root / "up-a-s0" / "record.json").unlink()
    (matrix.root / "up-b-s0" / "ranked.json").write_text("{")
    found, failed = shown_by(matrix, collect(matrix)[0])
    place = Place("a", "b", 1)
    assert found["up", place].embeddings == small() and ("up", Place("a", "b", 0)) not in found
    assert found["up", Place("b", "a", 1)] == found["down", Place("a", "b", 0)] == Shown() and len(found) == 6
    (told,) = failed
    assert told.startswith("pictures of b -> a, up, seed 0 (") and "holds no ranked lists" in told
    summary, files = write_tables(matrix, resamples=20)
    assert told in summary.missing and "25% → 50%" in files[-1].read_text()


def test_tables_that_give_way_to_those_of_a_smaller_matrix_are_told(matrix: Matrix, tmp_path: Path) -> None:
    cells = {Cell(entry.recipe, entry.place): Job(recipe=entry.recipe, source="a") for entry in matrix.entries}
    folders = {cell: tmp_path / f"{cell.recipe}-{cell.place.source}-s{cell.place.seed}" for cell in cells}
    planned = Planned(cells, folders, "scenes")
    assert replaced(tmp_path, planned) == []
    write_matrix(matrix)
    assert replaced(tmp_path, planned) == []
    (told,) = replaced(tmp_path, planned.only(["a:b:up"]))
    assert told == (
        f"note: the tables in {tmp_path} were of 12 runs, 10 of which are not in this matrix; they stay on disk, and "
        "this brings their tables back: uda-reid matrix --domains a,b"
    )
    other = Planned(cells, dict.fromkeys(cells, tmp_path / "with-other-options"), "scenes")
    assert "12 of which are not in this matrix" in replaced(tmp_path, other)[0]


def test_map_that_is_wanted_and_missing_or_damaged_is_told(matrix: Matrix) -> None:
    entries = tuple(replace(entry, wanted=("map",) if entry.recipe == "up" else ()) for entry in matrix.entries)
    for folder in ("up-a-s0", "up-a-s1"):
        write_map(small(), matrix.root / folder / "embedding_map.json")
    (matrix.root / "up-a-s1" / "embedding_map.json").write_text("{")
    missing = collect(replace(matrix, entries=entries))[1]
    assert [line for line in missing if "map" in line] == [
        f"of {names}: it has no map" for names in ("a -> b, up, seed 1", "b -> a, up, seed 0", "b -> a, up, seed 1")
    ]


def test_damaged_record_is_told_as_such(matrix: Matrix) -> None:
    (matrix.root / "up-a-s0" / "record.json").write_text("{")
    assert collect(matrix)[1][0] == "a -> b, up, seed 0 (its record is damaged)"


def test_many_runs_that_wait_are_told_in_one_line(matrix: Matrix) -> None:
    for recipe in ("up", "down"):
        for folder in matrix.root.glob(f"{recipe}-*"):
            (folder / "record.json").unlink(missing_ok=True)
    _, missing = collect(matrix)
    assert missing == (
        "8 of 12 runs are not made yet, from a -> b, up, seed 0 on; "
        "the line that makes the matrix lists them with --dry-run",
    )
    failed = replace(matrix, entries=tuple(replace(entry, failure="no space left") for entry in matrix.entries))
    assert len(collect(failed)[1]) == 12


def test_origin_says_what_numbers_depend_on(matrix: Matrix) -> None:
    records = list(runs()["up"].values())
    assert origin(matrix, records) == (
        "uda_reid 0, profile scenes, seeds 0, 1, protocol market, checkpoint last; counted queries: 6 on b, 6 on a; "
        "torch 2, cpu, one, 1 threads."
    )


def test_matrix_without_any_finished_run_is_one_line(tmp_path: Path) -> None:
    entry = Entry("pul", Place("a", "b", 0), "pul-a-b", "x", failure="no space left")
    message = r"none of its 1 runs has finished; a -> b, pul, seed 0 \(no space left\)$"
    with pytest.raises(CheckpointError, match=message):
        write_tables(Matrix(tmp_path, "y", "small", (entry,)))


def test_runs_that_lack_a_part_or_failed_behind_their_scores_are_told(matrix: Matrix) -> None:
    wanted = ("bound", "gap")
    entries = [replace(entry, wanted=wanted if entry.recipe == "up" else ()) for entry in matrix.entries]
    entries[0] = replace(entries[0], failure="no space left")
    found, missing = collect(replace(matrix, entries=tuple(entries)))
    assert len(found["up"]) == 4
    assert missing[0] == "of a -> b, source_only, seed 0: it is whole, from an earlier start (no space left)"
    assert next(line for line in missing if "up" in line) == "of a -> b, up, seed 0: it has no gap"


def test_failures_of_an_earlier_command_are_known(matrix: Matrix, tmp_path: Path) -> None:
    cell, other = Cell("up", Place("a", "b", 0)), Cell("new", Place("a", "b", 0))
    job = Job(recipe="up", source="a")
    planned = Planned({cell: job, other: job}, {cell: tmp_path / "up-a-s0", other: tmp_path / "y"}, "small")
    assert known_failures(tmp_path, planned) == {}
    entries = [replace(entry, failure="no space left" if entry.recipe == "up" else "") for entry in matrix.entries]
    write_matrix(replace(matrix, entries=tuple(entries)))
    assert known_failures(tmp_path, planned) == {cell: "no space left"}
    (tmp_path / "matrix.json").write_text("{")
    assert known_failures(tmp_path, planned) == {}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize(("pictures", "mode"), [(True, 0o600), (False, 0o644)])
def test_page_with_photographs_is_for_its_user_alone(matrix: Matrix, pictures: bool, mode: int) -> None:
    Image.new("RGB", (32, 64), "red").save(matrix.root / "query.png")
    asked = picture(matrix.root, "query.png")
    query = Query(0, asked, "improved", 0.1, 0.6, (Hit(asked, True, 0.1),), (Hit(asked, True, 0.1),))
    for folder in matrix.root.glob("up-*"):
        write_lists(Lists(str(matrix.root), 1, (query,)), folder / "ranked.json")
    before = os.umask(0o022)
    try:
        *tables, page = write_tables(matrix, pictures=pictures, resamples=50)[1]
    finally:
        os.umask(before)
    assert stat.S_IMODE(page.stat().st_mode) == mode
    assert {stat.S_IMODE(table.stat().st_mode) for table in tables} == {0o644}


def test_tables_are_written_by_one_process_at_a_time(matrix: Matrix) -> None:
    waits = threading.Thread(target=lambda: write_tables(matrix, resamples=20))
    with locked(matrix.root):
        waits.start()
        waits.join(2)
        assert waits.is_alive() and not (matrix.root / "matrix.csv").exists()
    waits.join(60)
    assert (matrix.root / "matrix.csv").exists() and (matrix.root / "report.html").exists()
