from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.drawings import SMALL
from uda_reid.data.scenes import SCENES, draw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return {name: draw(name, folder / name, SMALL) for name in SCENES}
