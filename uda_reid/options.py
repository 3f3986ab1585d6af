"""Options that somebody typed, read by the types of a dataclass's fields; every error is one line.

Any dataclass is a schema: its fields are the options, its types and ranges the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from uda_reid.errors import RecipeError, UdaReidError

T = TypeVar("T")
Raw = str | tuple[str | None, ...] | None
"""A value before its field's type is known: text, a list of texts, or nothing (`null`)."""

NEAR = 0.76
"""How alike two names are, by `difflib`, for one to be taken for a slip of the other: two letters of eight differ."""
COLLECTIONS = (tuple, list, set, frozenset, Sequence)


class Given(NamedTuple):
    """A value somebody wrote, and where: `pul.yaml:3: adapt.lr` or `--set adapt.lr=1`."""

    raw: Raw
    where: str


def null(text: str) -> str | None:
    """Return None where unquoted text stands for no value, and the text elsewhere."""
    return None if text in ("", "~", "null", "Null", "NULL") else text


def parse_settings(settings: Iterable[str], sections: Sequence[str]) -> dict[str, dict[str, Given]]:
    """Return `section.option=value` texts by section and option; of two with one name the last wins.

    Raises:
        RecipeError: a text has another form, or its section is unknown.
    """
    given: dict[str, dict[str, Given]] = {section: {} for section in sections}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, option = name.strip().partition(".")
        where = f"--set {setting}"
        if not (equals and dot and option):
            raise RecipeError(f"{where}: is not of the form section.option=value; write, say, adapt.lr=1e-4")
        if section not in given:
            raise RecipeError(f"{where}: unknown section {section!r}; {suggest(section, given)}")
        given[section][option] = Given(null(text.strip()), where)
    return given


def build(
    schema: type[T],
    given: Mapping[str, Given],
    *,
    prefix: str,
    base: T | None = None,
    also: Sequence[str] = (),
) -> T:
    """Return `schema` made from `base` (or its defaults) and what is given.

    Args:
        schema: any dataclass.
        given: option -> value.
        prefix: what stands before an option's name in errors about what nobody wrote (`pul.yaml: adapt.`).
        base: an instance whose values hold where nothing is given.
        also: names besides the fields that a misspelt option may have meant.

    Raises:
        RecipeError: an option is unknown, not of its field's type, out of range, or missing; one line.
    """
    known, place = names(schema), prefix.rstrip(".: ")
    for name in (option for option in given if option not in known):
        raise RecipeError(f"{given[name].where}: unknown option; {suggest(name, [*known, *also])}")
    try:
        hints, adapter = get_type_hints(schema), TypeAdapter(schema)
    except (PydanticUserError, NameError, TypeError) as error:
        reason = f"the types of {schema.__name__}'s fields cannot be read from text"
        raise RecipeError(f"{place}: {reason} ({one_line(error)})") from error
    values = {name: getattr(base, name) for name in known} if base is not None else {}
    for name, value in given.items():
        try:
            values[name] = read(value.raw, hints[name])
        except ValueError as error:
            raise RecipeError(f"{value.where}: {error}{_default(schema, name, base)}") from None
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise RecipeError(_complaint(error, schema, given, prefix, base)) from None
    except UdaReidError as error:
        raise RecipeError(f"{_about(str(error), given, place)}: {one_line(error)}") from None


def names(schema: Any) -> list[str]:
    """Return the options of a dataclass: the fields that its constructor takes."""
    return [option.name for option in fields(schema) if option.init]


def read(raw: Raw, hint: Any) -> Any:
    """Return the value that `raw` spells for a field of type `hint`.

    Args:
        raw: what was typed.
        hint: the field's type; ranges are not looked at here.

    Raises:
        ValueError: `raw` spells no such value; in the words of `'high' is not a number`.

    >>> read("1e-4", float), read("no", str), read("010", int), read("30, 50", tuple[int, ...])
    (0.0001, 'no', 10, (30, 50))
    """
    try:
        return _value(raw, hint)
    except ValueError:
        shown = repr(raw) if isinstance(raw, str) else spell(raw)
        raise ValueError(f"{shown} is not {_described(hint)}") from None


def _value(raw: Raw, hint: Any) -> Any:
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _union_value(raw, members)
    if raw is None and kind in (NoneType, Any):
        return None
    if raw is None or kind is NoneType:
        raise ValueError
    if kind in COLLECTIONS:
        return _collection_value(raw, kind, members)
    if isinstance(raw, tuple):
        raise ValueError
    if kind in (Literal, bool):
        spelled = {spell(option): option for option in (members if kind is Literal else (True, False))}
        word = raw.lower() if kind is bool else raw
        if word not in spelled:
            raise ValueError
        return spelled[word]
    if kind is float and not math.isfinite(float(raw)):
        raise ValueError
    return kind(raw) if kind in (int, float, str, Path) else raw  # other types are pydantic's to judge


def _union_value(raw: Raw, members: Iterable[Any]) -> Any:
    # Every text is a str, so that comes last.
    for member in sorted(members, key=lambda member: member is str):
        try:
            return _value(raw, member)
        except ValueError:
            continue
    raise ValueError


def _collection_value(raw: str | tuple[str | None, ...], kind: Any, members: tuple[Any, ...]) -> Any:
    if isinstance(raw, str):
        raw = tuple(part.strip() for part in raw.strip("[]() ").split(",") if part.strip())
    if kind is tuple and members and members[-1] is not Ellipsis:
        if len(raw) != len(members):
            raise ValueError
        return tuple(_value(part, member) for part, member in zip(raw, members, strict=True))
    member = members[0] if members else Any
    return (tuple if kind is Sequence else kind)(_value(part, member) for part in raw)


def spell(value: object) -> str:
    """Return a value as it is written in a recipe.

    >>> spell(None), spell(True), spell((30, 50)), spell("adam")
    ('null', 'true', '[30, 50]', 'adam')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, COLLECTIONS) and not isinstance(value, str):
        return f"[{', '.join(spell(member) for member in value)}]"
    return str(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return what `name` may have meant, or what there is.

    >>> suggest("cluster", ["clusters", "lr"]), suggest("xyz", ["clusters", "lr"]), suggest("xyz", [])
    ("did you mean 'clusters'?", 'known are clusters, lr', 'there are none here')
    """
    known = list(known)
    if close := closest(name, known):
        return f"did you mean {close!r}?"
    return f"known are {', '.join(known)}" if known else "there are none here"


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that `name` is a slip of the pen for; nothing where none is near enough to be meant.

    >>> closest("Cluster", ["clusters", "lr"]), closest("osnet_x1_0", ["resnet101"])
    ('clusters', '')
    """
    return next(iter(get_close_matches(name.casefold(), list(known), n=1, cutoff=NEAR)), "")


def one_line(message: object) -> str:
    """Return a message, perhaps of several lines, as one."""
    return " ".join(str(message).split())


def _described(hint: Any) -> str:
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_described(member) for member in members)
    if kind is Literal:
        return ("one of " if len(members) > 1 else "") + ", ".join(spell(member) for member in members)
    if kind is tuple and members and members[-1] is not Ellipsis:
        return f"a list of {len(members)}: {', '.join(_described(member) for member in members)}"
    if kind in COLLECTIONS:
        return f"a list, each of it {_described(members[0])}" if members else "a list"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
    return words.get(kind, f"a {getattr(kind, '__name__', kind)}".lower())


def _default(schema: Any, name: str, base: object) -> str:
    """Return a clause on what holds where nothing is given: the value of `base`, which a profile may have changed."""
    default = next((getattr(base, name, option.default) for option in fields(schema) if option.name == name), MISSING)
    shown = spell(default) if isinstance(default, bool | int | float | str | tuple) else ""
    return f"; the default is {shown}" if shown else ""


def _about(message: str, given: Mapping[str, Given], place: str) -> str:
    """Return where the option was given that a dataclass's own check complains about, or the section."""
    first = message.split(maxsplit=1)[0] if message.strip() else ""
    if first in given:
        return given[first].where
    return next(iter(given.values())).where if len(given) == 1 else place


def _complaint(error: ValidationError, schema: Any, given: Mapping[str, Given], prefix: str, base: object) -> str:
    """Return the first complaint of pydantic as one line."""
    detail = error.errors(include_url=False)[0]
    name = str(detail["loc"][0]) if detail["loc"] else ""
    where = given[name].where if name in given else f"{prefix}{name}".rstrip(".: ")
    if detail["type"] == "missing":
        return f"{where}: has no default; give it a value"
    if "error" in detail.get("ctx", {}):
        message = one_line(detail["ctx"]["error"])
        return f"{where if name else _about(message, given, where)}: {message}"
    reason = one_line(detail["msg"]).replace("Input should", "must").replace("Tuple should", "must")
    return f"{where}: {spell(detail['input'])} {reason}{_default(schema, name, base)}"
