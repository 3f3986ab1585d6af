"""What a reader of a strategy has to read: its file, and of other files the definitions that it takes from them."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import uda_reid
from uda_reid.strategies import BUILT_IN

HOUSE = Path(uda_reid.__file__).parents[1]
VOCABULARY = {"uda_reid.errors", "uda_reid.run", "uda_reid.types"}
"""What every strategy speaks in; read once for all of them."""


def file_of(module: str) -> Path:
    return Path(str(import_module(module).__file__))


def taken(path: Path) -> dict[str, set[str]]:
    """Module of ours -> names that the file at `path` imports from it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uda_reid"):
            found.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    return found


def lines_of(path: Path, names: set[str]) -> int:
    definitions = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) in names]
    return sum((node.end_lineno or 0) - node.lineno + 1 for node in definitions)


@pytest.mark.parametrize("name", BUILT_IN)
def test_strategy_is_understood_from_ten_files_and_a_thousand_lines(name: str) -> None:
    strategy = file_of(BUILT_IN[name].split(":")[0])
    modules = taken(strategy)
    files = {strategy} | {file_of(module) for module in modules.keys() - VOCABULARY}
    lines = len(strategy.read_text().splitlines())
    lines += sum(lines_of(file_of(module), names) for module, names in modules.items())
    assert len(files) <= 10, sorted(str(file.relative_to(HOUSE)) for file in files)
    assert 100 < lines <= 1000
