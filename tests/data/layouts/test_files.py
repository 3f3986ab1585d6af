from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from uda_reid.data.layouts.files import folders_in, images_in
from uda_reid.errors import DataError


@pytest.mark.parametrize("look", [images_in, folders_in])
def test_folder_that_cannot_be_read_is_refused(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: the folder cannot be read \(No such file"):
        look(tmp_path / "absent")
