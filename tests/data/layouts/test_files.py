from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.layouts.folders import touch
from uda_reid.data.layouts.files import Presence, Walk, file_called, first_image, folder_called, folders_in, images_in
from uda_reid.errors import DataError


def test_images_and_folders_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    touch(tmp_path, ["b.JPG", "a10.png", "a9.webp", "0.txt", "._0.jpg", "d.jpg/x.jpg", "c/x.jpg"])
    assert [path.name for path in images_in(tmp_path)] == ["a10.png", "a9.webp", "b.JPG"]
    assert first_image(tmp_path) == tmp_path / "a10.png"
    assert [path.name for path in folders_in(tmp_path)] == ["c", "d.jpg"]
    touch(tmp_path / "none", ["notes.txt"])
    assert (images_in(tmp_path / "none"), first_image(tmp_path / "none")) == ((), None)


@pytest.mark.parametrize("look", [images_in, first_image, folders_in])
def test_folder_that_cannot_be_read_is_refused(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: the folder cannot be read \(No such file"):
        look(tmp_path / "absent")


def test_folders_and_files_are_found_in_whatever_case(tmp_path: Path) -> None:
    touch(tmp_path, ["Query/a.jpg", "Table.CSV"])
    assert folder_called(tmp_path, "query") == tmp_path / "Query"
    assert folder_called(tmp_path, "table.csv") is None
    assert folder_called(tmp_path / "absent", "query") is None
    assert file_called(tmp_path, "table.csv") == tmp_path / "Table.CSV"
    assert file_called(tmp_path, "query") is None
    if not (tmp_path / "query").exists():  # where the file system tells case apart
        (tmp_path / "query").mkdir()
        assert folder_called(tmp_path, "query") == tmp_path / "query"


def test_links_to_nothing_and_to_themselves_are_images_where_they_are_called_so(tmp_path: Path) -> None:
    touch(tmp_path, ["b.jpg", "c/x.jpg"])
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "d.jpg").symlink_to("d.jpg")
    (tmp_path / "e").symlink_to("e")
    (tmp_path / "f.jpg").symlink_to("c")
    assert [path.name for path in images_in(tmp_path)] == ["a.jpg", "b.jpg", "d.jpg"]
    assert [path.name for path in folders_in(tmp_path)] == ["c", "f.jpg"]


def test_presence_of_files_that_are_hidden_or_no_files(tmp_path: Path) -> None:
    touch(tmp_path, ["a.jpg", ".b.jpg", "c/x.jpg"])
    present = Presence()
    asked = ["a.jpg", ".b.jpg", "c", "c/x.jpg", "c/y.jpg", "absent/x.jpg"]
    assert [tmp_path / name in present for name in asked] == [True, True, False, True, False, False]


def test_walk_enters_every_folder_once(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "a" / "around").symlink_to("..")
    (tmp_path / "a" / "other").symlink_to("../b")
    walk = Walk(tmp_path)
    assert list(walk.folders_in(tmp_path)) == [tmp_path / "a", tmp_path / "b"]
    assert list(walk.folders_in(tmp_path / "a")) == []
