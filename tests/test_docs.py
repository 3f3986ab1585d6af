from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from PIL import Image

from uda_reid.cli import app
from uda_reid.data.layouts import read
from uda_reid.doctor import examine
from uda_reid.strategies import BUILT_IN, find

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "example_strategy"


PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if EXAMPLE not in path.parents)


class Block(NamedTuple):
    """A fenced block of a document, and the file and line where its text begins."""

    language: str
    text: str
    file: str
    line: int


def blocks(name: str, *languages: str) -> list[Block]:
    """Return the blocks of a document that are in one of some languages (default: all), in their order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(2))
        found.append(Block(match[1], match[2], str(DOCS / name), line))
    return [block for block in found if block.language in languages or not languages]


def compiled(block: Block) -> Any:
    """Return a block as code whose errors name the document's own lines."""
    return compile("\n" * block.line + block.text, block.file, "exec")


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {page: [block.language for block in blocks(page)] for page in PAGES}
    assert set(kinds) >= {"data.md", "responsible-use.md", "write-a-strategy.md"}
    assert set(kinds["write-a-strategy.md"]) == {"python", "toml", "sh", "yaml"}
    assert set(kinds["data.md"]) == {"python", "text", "csv", "sh"}
    assert kinds["responsible-use.md"] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (DOCS / name).parent.joinpath(target).exists(), target


# ---- commands ------------------------------------------------------------


def test_links_and_pictures_of_the_readme_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("https://")]
    assert "docs/matrix.png" in local and all((ROOT / target).exists() for target in local), local


def understood(words: list[str]) -> str:
    """Parse a command line as `uda-reid` would, without running it, and return the command's name."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("uda-reid", words)
    while hasattr(command, "resolve_command"):
        words = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, rest = command.resolve_command(context, words)
        context = command.make_context(name, rest, parent=context)
    return str(context.command_path)


COMMANDS = [line for page in PAGES for block in blocks(page, "sh") for line in block.text.splitlines()]


@cache
def arguments_of(script: str) -> argparse.ArgumentParser:
    """Return what reads the command line of a benchmark."""
    found = runpy.run_path(str(ROOT / script))["arguments"]()
    assert isinstance(found, argparse.ArgumentParser)
    return found


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDA_REID_DATA", raising=False)
    program, *words = shlex.split(line)
    if program == "pip":
        assert words == ["install", "./docs/example_strategy"]
        assert (ROOT / words[1] / "pyproject.toml").is_file()
    elif program == "python":
        assert words[0].startswith("benchmarks/")
        arguments_of(words[0]).parse_args(words[1:])
    else:
        assert program == "uda-reid"
        assert understood(words).startswith(f"uda-reid {words[0]}")


def test_misspelt_command_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        understood(["adapt", "--src", "plaza", "--target", "campus"])


# ---- strategies/ ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_strategy_has_a_page_that_names_its_fields_and_stands_in_the_index(name: str) -> None:
    text = (DOCS / "strategies" / f"{name}.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(find(name)):
        assert f"`{field.name}`" in text, f"docs/strategies/{name}.md does not name the field {field.name}"
    for heading in ("## What it assumes", "## Equations", "## Fields", "## Where it fails", "## Numbers"):
        assert f"\n{heading}\n" in text
    index = (DOCS / "strategies" / "README.md").read_text(encoding="utf-8")
    assert f"| [`{name}`]({name}.md) |" in index


# ---- data.md ------------------------------------------------------------

LAYOUTS = [
    ("images without labels", (4, 0, 0), 2, False),
    ("a folder per identity", (3, 1, 2), 2, False),
    ("a folder per identity", (4, 1, 1), 2, True),
    ("a folder per identity", (3, 1, 2), 2, True),
    ("a table (manifest.csv)", (3, 1, 3), 2, True),
]


def lay_out(block: Block, root: Path) -> None:
    """Make the data set that a block shows: a list of files, or a table."""
    shutil.rmtree(root / "my-site", ignore_errors=True)
    paths = block.text.split()
    if block.language == "csv":
        paths = [f"my-site/{line.partition(',')[0]}" for line in paths[1:]]
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (8 * number, 0, 0)).save(root / path)
    if block.language == "csv":
        (root / "my-site" / "manifest.csv").write_text(block.text)


@pytest.mark.parametrize(
    ("block", "expected"), list(zip(blocks("data.md", "text", "csv"), LAYOUTS, strict=True)), ids=range(len(LAYOUTS))
)
def test_layouts_are_read_as_the_text_says(
    block: Block, expected: tuple[str, tuple[int, int, int], int, bool], tmp_path: Path
) -> None:
    lay_out(block, tmp_path)
    domain = read("my-site", tmp_path)
    layout, sizes, cameras, labelled = expected
    assert domain.layout == layout
    assert (len(domain.train), len(domain.query), len(domain.gallery)) == sizes
    assert domain.train.cams is not None
    assert len(set(domain.train.cams)) == cameras
    assert domain.labelled is labelled
    diagnosis = examine(domain)
    assert diagnosis.target.works
    assert diagnosis.source.works is labelled
    assert diagnosis.scoring.works is (sizes[1] > 0)


def test_python_of_the_data_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(blocks("data.md", "csv")[0], tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("data.md", "python"):
        exec(compiled(block), names)
    assert len(names["mine"].train) == 7
    assert names["mine"].train.pids.tolist() == [1] * 7  # one folder, images/


# ---- write-a-strategy.md ------------------------------------------------------------


def test_example_in_the_text_is_the_example_in_the_folder() -> None:
    page = "write-a-strategy.md"
    assert blocks(page, "python")[0].text == (EXAMPLE / "deep_coral.py").read_text(encoding="utf-8")
    (table,) = blocks(page, "toml")
    assert table.text == (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own."""
    pytest.importorskip("pip", reason="this environment installs without pip")
    folder = tmp_path_factory.mktemp("site")
    before = sorted(EXAMPLE.iterdir())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    subprocess.run([*command, *offline, str(EXAMPLE)], check=True, capture_output=True, timeout=300)
    assert sorted(EXAMPLE.iterdir()) == before  # nothing is left in the checkout
    return folder


def elsewhere(code: str, installed: Path, folder: Path, *words: str) -> str:
    """Run Python code in a process of its own that finds the installed example; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words],
        cwd=folder, env=environment, text=True, capture_output=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LOOK = """
import json, sys
from uda_reid.recipe import load
from uda_reid.strategies import find, known
names, recipes = {}, []
for source in json.loads(sys.argv[1]):
    exec(compile(source, "write-a-strategy.md", "exec"), names)
for number, text in enumerate(json.loads(sys.argv[2])):
    with open(f"recipe{number}.yaml", "w") as file:
        file.write(text)
    recipes.append(load(f"recipe{number}.yaml", profile="scenes"))
print(json.dumps({
    "known": known()["deep_coral"],
    "file": sys.modules[find("deep_coral").__module__].__file__,
    "recipes": [(recipe.strategy_name, recipe.strategy.epochs, recipe.fidelity) for recipe in recipes],
    "facts": names["result"].facts,
    "history": names["result"].history,
}))
"""


def test_installed_example_is_known_checked_and_named_in_a_recipe(installed: Path, tmp_path: Path) -> None:
    page = "write-a-strategy.md"
    code = [block.text for block in blocks(page, "python")]
    recipes = [block.text for block in blocks(page, "yaml")]
    output = elsewhere(LOOK, installed, tmp_path, json.dumps(code), json.dumps(recipes))
    found = json.loads(output.splitlines()[-1])
    assert found["known"] == "deep_coral:DeepCORAL"
    assert Path(found["file"]) == installed / "deep_coral.py"
    assert found["recipes"] == [["deep_coral", 10, "reconstruction"]]
    assert found["facts"]["target images in batch norm"] is True
    assert [set(epoch) for epoch in found["history"]] == [{"identification", "coral"}] * 2


def test_installed_example_is_listed_by_the_command(installed: Path, tmp_path: Path) -> None:
    listed = "import sys; sys.argv = ['uda-reid', 'list', 'strategies']; from uda_reid.cli import main; main()"
    assert "deep_coral" in elsewhere(listed, installed, tmp_path)


RUN = "import sys; sys.argv = ['uda-reid', *sys.argv[1:]]; from uda_reid.cli import main; main()"


@pytest.mark.slow
def test_commands_of_the_page_run(installed: Path, tmp_path: Path) -> None:
    (recipe,) = blocks("write-a-strategy.md", "yaml")
    (tmp_path / "deep_coral.yaml").write_text(recipe.text)
    for block in blocks("write-a-strategy.md", "sh"):
        for line in block.text.splitlines():
            program, *words = shlex.split(line)
            if program == "uda-reid":
                assert "deep_coral" in elsewhere(RUN, installed, tmp_path, *words)
