from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import uda_reid.strategies
from uda_reid.errors import RecipeError
from uda_reid.strategies import BUILT_IN, GROUP, find, known

MEND = "install or mend the package that holds it, or put its folder into PYTHONPATH"
NAMES = "adabn, adda, cluster, daam, guided_dropout, pul, source_only"
MODULE = """
class Mine:
    def adapt(self, source, target, *, run=None):
        return None

class Other(Mine):
    pass

class Plain:
    pass

def function():
    return None
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A third-party package that can be imported, with a module that works and one that does not."""
    folder = tmp_path / "their_reid"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "methods.py").write_text(MODULE)
    (folder / "broken.py").write_text("raise RuntimeError('needs\\na GPU')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "their_reid"


def offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points] if group == GROUP else []

    monkeypatch.setattr(uda_reid.strategies, "entry_points", entry_points)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_names_lead_to_their_class(name: str) -> None:
    found = find(name)
    assert f"{found.__module__}:{found.__name__}" == BUILT_IN[name]
    assert callable(found.adapt)


@pytest.mark.parametrize("separator", [":", "."])
def test_find_takes_a_class_by_its_place(package: str, separator: str) -> None:
    assert find(f"{package}.methods{separator}Mine", allow_code=True).__name__ == "Mine"


def test_find_takes_entry_points(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("theirs", f"{package}.methods:Mine"))
    assert find("theirs").__name__ == "Mine"
    assert known() == {"theirs": f"{package}.methods:Mine", **BUILT_IN}


def test_built_in_names_cannot_be_taken_over(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("pul", f"{package}.methods:Mine"))
    assert known()["pul"] == BUILT_IN["pul"]
    assert find("pul").__name__ == "PUL"


def test_one_name_offered_twice_does_not_depend_on_the_order(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [("theirs", f"{package}.methods:{name}") for name in ("Mine", "Other")]
    offer(monkeypatch, *points)
    first = find("theirs")
    offer(monkeypatch, *reversed(points))
    assert find("theirs") is first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pull", f"is unknown; did you mean 'pul'? Known are {NAMES}; or write package.module:Class"),
        ("PUL", f"is unknown; did you mean 'pul'? Known are {NAMES}; or write package.module:Class"),
        ("xyz", f"is unknown; known are {NAMES}; or write package.module:Class"),
        (":Mine", "names no class; write package.module:Class"),
        ("their_reid.methods:Nine", "their_reid.methods has no Nine; write package.module:Class"),
        (
            "their_reid.methods:Plain",
            "their_reid.methods has a Plain without adapt(source, target); write package.module:Class",
        ),
        (
            "their_reid.methods.function",
            "their_reid.methods has a function without adapt(source, target); write package.module:Class",
        ),
        (
            "no_such_package.methods:Mine",
            "importing no_such_package.methods failed (ModuleNotFoundError: "
            f"No module named 'no_such_package'); {MEND}",
        ),
        (
            "their_reid.broken:Mine",
            f"importing their_reid.broken failed (RuntimeError: needs a GPU); {MEND}",
        ),
    ],
)
def test_find_refuses_in_one_line(package: str, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    offer(monkeypatch)
    with pytest.raises(RecipeError, match=f"^strategy {re.escape(repr(name))}:? {re.escape(message)}$"):
        find(name, allow_code=True)


def test_a_built_in_that_cannot_be_imported_keeps_its_traceback(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uda_reid.strategies, "BUILT_IN", {"ours": f"{package}.broken:Mine"})
    with pytest.raises(RuntimeError, match="needs\na GPU"):
        find("ours")


@pytest.mark.parametrize("name", ["their_reid.methods:Mine", "their_reid.methods.Mine", "their_reid.broken:Mine"])
def test_code_that_no_package_offers_is_not_imported_unasked(
    package: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    offer(monkeypatch)
    monkeypatch.setattr(uda_reid.strategies, "import_module", lambda module: pytest.fail(f"{module} was imported"))
    with pytest.raises(RecipeError, match=f"^strategy {re.escape(repr(name))} is code that .*; give --allow-code"):
        find(name)


@pytest.mark.parametrize("name", ["uda_reid.strategies.pul:PUL", "uda_reid.strategies.pul.PUL"])
def test_a_class_that_has_a_name_needs_no_leave(name: str) -> None:
    assert find(name) is find("pul")
