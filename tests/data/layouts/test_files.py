from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.layouts.folders import touch
from uda_reid.data.layouts.files import first_image, folders_in, images_in
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
