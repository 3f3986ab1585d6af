"""Recipe files: from a name to the file, and from the file to what is given in it, with file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml

from uda_reid.errors import RecipeError
from uda_reid.options import Given, Raw, null, one_line, suggest
from uda_reid.reading import read_text
from uda_reid.shipped import shipped

SECTIONS = ("encoder", "pretrain", "adapt", "small", "scenes")


class File(NamedTuple):
    """What stands in a recipe file: the top level, and the sections, each value with its place."""

    header: dict[str, Given]
    sections: dict[str, dict[str, Given]]


def locate(name_or_path: str | Path) -> tuple[Path, str]:
    """Return the recipe's file and how errors call it."""
    known = [path.stem for path in sorted(shipped("recipes").glob("*.yaml"))]
    if str(name_or_path) in known:
        path = shipped("recipes") / f"{name_or_path}.yaml"
        return path, path.name
    path = Path(name_or_path)
    if path.exists() and not path.is_dir():  # a pipe or a device too: reading it says what it is
        return path, str(path)
    what = f"recipe {str(path)!r} is unknown"
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        what = f"recipe file {path} does not exist"
    close = suggest(path.stem, known)
    others = f" Known are {', '.join(known)}" if close.startswith("did") else ""
    raise RecipeError(f"{what}; {close}{others}; or give the path of a YAML file")


def _compose(path: Path, shown: str) -> yaml.Node | None:
    """Return a file's YAML nodes, which know their lines; text only, no value is made of them."""
    try:
        text = read_text(path, encoding="utf-8-sig")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                reason = f"a recipe has no references (*{event.anchor}); write the value out"
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise RecipeError(f"{shown}:{line}: {reason}")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{shown}:{mark.line + 1}" if mark else shown
        problem = one_line(", ".join(part for part in (error.context, error.problem) if part))
        remedy = "look at the colons, quotes and indentation there"
        raise RecipeError(f"{place}: cannot be read as YAML: {problem}; {remedy}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        remedy = "a recipe is a YAML file in UTF-8"
        raise RecipeError(f"{shown}: cannot be read: {one_line(error)}; {remedy}") from None


def parse(path: Path, shown: str, header_keys: Sequence[str]) -> File:
    """Return what stands in a recipe file, with file and line, before any type is looked at.

    Args:
        path: the file.
        shown: how errors call it.
        header_keys: what may stand on the top level besides the sections.
    """
    root = _compose(path, shown)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{shown}: has no options; the least that a recipe says is strategy: NAME")
    header: dict[str, Given] = {}
    sections: dict[str, dict[str, Given]] = {name: {} for name in SECTIONS}
    for key, (node, where) in _entries(root, shown, "").items():
        if key not in SECTIONS:
            # A key that nobody knows is told as such, whatever it holds.
            header[key] = Given(_raw(node, where) if key in header_keys else None, where)
        elif isinstance(node, yaml.MappingNode):
            options = _entries(node, shown, f"{key}.").items()
            sections[key] = {option: Given(_raw(value, place), place) for option, (value, place) in options}
        elif not isinstance(node, yaml.ScalarNode) or _raw(node, where) is not None:
            raise RecipeError(f"{where}: is a section; write {key}: {{option: value}}")
    return File(header, sections)


def _entries(mapping: yaml.MappingNode, shown: str, prefix: str) -> dict[str, tuple[yaml.Node, str]]:
    """Return key -> (value, place) of a mapping; YAML itself would let the last of two equal keys win."""
    entries: dict[str, tuple[yaml.Node, str]] = {}
    lines: dict[str, int] = {}
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{shown}:{line}: an option's name is one word, as in lr: 0.001")
        where = f"{shown}:{line}: {prefix}{key.value}"
        if key.value in entries:
            raise RecipeError(f"{where}: stands here twice, first on line {lines[key.value]}; keep one")
        entries[key.value], lines[key.value] = (value, where), line
    return entries


def _raw(node: yaml.Node, where: str) -> Raw:
    if isinstance(node, yaml.SequenceNode):
        members = [_raw(member, where) for member in node.value]
        return tuple(_nested("a list", where) if isinstance(member, tuple) else member for member in members)
    if not isinstance(node, yaml.ScalarNode):
        _nested("a mapping", where)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge"):
        raise RecipeError(f"{where}: the tag {node.tag} has no place in a recipe; leave it out")
    if node.style is None:
        return null(node.value)
    return str(node.value)


def _nested(what: str, where: str) -> NoReturn:
    raise RecipeError(f"{where}: {what} cannot stand here; a recipe has two levels, section and option")
