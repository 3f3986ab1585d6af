from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.recipe.toys import NoDataclass, Toy, Written


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Write text to `toy.yaml` in the working folder, with the toy strategy importable."""
    module = ModuleType("toys.methods")
    module.__dict__.update(Toy=Toy, NoDataclass=NoDataclass)
    monkeypatch.setitem(sys.modules, "toys.methods", module)
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("toy.yaml").write_text(text, encoding="utf-8")
        return Path("toy.yaml")

    return write
