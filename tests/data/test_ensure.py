"""Scenes that are drawn on first use, and found again."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.drawings import SMALL, contents
from uda_reid.data import scenes
from uda_reid.data.scenes import ensure
from uda_reid.data.scenes import folder as folder_module
from uda_reid.data.scenes.plan import GALLERY, QUERY, TRAIN
from uda_reid.errors import DataError


@pytest.fixture
def small_default(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make `ensure` draw little, and return the list of what it has drawn."""
    calls: list[str] = []
    original = folder_module._draw

    def counted(name: str, *arguments: Any, **keywords: Any) -> None:
        calls.append(name)
        original(name, *arguments, **keywords)

    monkeypatch.setattr(folder_module, "Drawing", lambda seed: replace(SMALL, seed=seed))
    monkeypatch.setattr(folder_module, "_draw", counted)
    return calls


def test_ensure_draws_once_for_two_at_the_same_time(tmp_path: Path, small_default: list[str]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(ensure("plaza", cache=tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert small_default == ["plaza"]
    assert found == [tmp_path / "scenes" / f"plaza-v{scenes.VERSION}-seed0"] * 2
    assert ensure("plaza", cache=tmp_path) == found[0] and small_default == ["plaza"]


def change(folder: Path, what: str) -> None:
    facts = json.loads((folder / "scene.json").read_text())
    image = next((folder / GALLERY).glob("*.jpg"))
    match what:
        case "an image is missing":
            image.unlink()
        case "an image is empty":
            image.write_bytes(b"")
        case "a split is missing":
            shutil.rmtree(folder / QUERY)
        case "no annotations":
            (folder / "annotations.csv").unlink()
        case "no facts":
            (folder / "scene.json").unlink()
        case "broken facts":
            (folder / "scene.json").write_text('{"name": "plaza"')
        case "no object":
            (folder / "scene.json").write_text("[]")
        case "empty facts":
            (folder / "scene.json").write_text("{}")
        case "another version":
            (folder / "scene.json").write_text(json.dumps({**facts, "version": -1}))
        case "other options":
            facts["options"]["junk"] += 1
            (folder / "scene.json").write_text(json.dumps(facts))


def test_ensure_draws_again_what_is_incomplete(
    drawn: dict[str, Path], tmp_path: Path, small_default: list[str]
) -> None:
    folder = tmp_path / "scenes" / f"plaza-v{scenes.VERSION}-seed0"
    shutil.copytree(drawn["plaza"], folder)
    assert ensure("plaza", cache=tmp_path) == folder
    assert small_default == []
    changes = ["an image is missing", "an image is empty", "a split is missing", "no annotations", "no facts"]
    changes += ["broken facts", "no object", "empty facts", "another version", "other options"]
    for number, what in enumerate(changes, 1):
        change(folder, what)
        (folder / "left over.txt").write_text("")
        ensure("plaza", cache=tmp_path)
        assert len(small_default) == number, what
        assert contents(folder) == contents(drawn["plaza"]), what


def test_ensure_removes_what_killed_processes_left_of_the_same_scene(tmp_path: Path, small_default: list[str]) -> None:
    where = tmp_path / "scenes"
    stale, other = (where / f".campus-v{scenes.VERSION}-seed{seed}-0badcafe" for seed in (4, 40))
    for folder in (stale, other):
        (folder / TRAIN).mkdir(parents=True)
    folder = ensure("campus", seed=4, cache=tmp_path)
    assert small_default == ["campus"]
    assert {path for path in where.iterdir() if path.is_dir()} == {folder, other}


def test_ensure_takes_the_cache_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_default: list[str]
) -> None:
    monkeypatch.setenv("UDA_REID_CACHE", str(tmp_path))
    assert ensure("campus", seed=4) == tmp_path / "scenes" / f"campus-v{scenes.VERSION}-seed4"


def test_ensure_cache_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*file.scenes: .*; set UDA_REID_CACHE$"):
        ensure("plaza", cache=tmp_path / "file")
