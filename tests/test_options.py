from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from uda_reid.errors import RecipeError
from uda_reid.options import Given, Raw, build, names, null, one_line, parse_settings, read, spell, suggest


@dataclass(frozen=True)
class Options:
    lr: Annotated[float, Field(gt=0)]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.85
    steps: tuple[Annotated[int, Field(gt=0)], ...] = (3, 5)
    pair: tuple[int, str] = (1, "a")
    select: Literal["any", "own"] = "any"
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Plain:
    size: int = 3
    secret: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.size == 13:
            raise RecipeError("size 13 brings\nbad luck")
        if self.size == 14:
            raise ValueError("size 14 as well")


def given(**raws: Raw) -> dict[str, Given]:
    return {name: Given(raw, f"here:1: {name}") for name, raw in raws.items()}


@pytest.mark.parametrize(
    ("raw", "hint", "value"),
    [
        ("5", int, 5),
        ("-5", int, -5),
        ("010", int, 10),
        ("1e-4", float, 1e-4),
        ("3", float, 3.0),
        ("true", bool, True),
        ("True", bool, True),
        ("false", bool, False),
        ("no", str, "no"),
        ("1e-3", str, "1e-3"),
        ("2", Literal[1, 2], 2),
        ("0", Literal[0, 1], 0),
        ("false", Literal["none", False], False),
        ("own", Literal["any", "own"], "own"),
        ("30, 50", tuple[int, ...], (30, 50)),
        ("[30,50]", tuple[int, ...], (30, 50)),
        ("(30,)", tuple[int, ...], (30,)),
        ("[]", tuple[int, ...], ()),
        (("1e-4", "1"), tuple[float, ...], (1e-4, 1.0)),
        (("1", "2"), tuple[int, str], (1, "2")),
        (("1", None), list[int | None], [1, None]),
        (("1", "1"), frozenset[int], frozenset({1})),
        (("1",), Sequence[int], (1,)),
        (("1", "x"), tuple, ("1", "x")),
        (None, int | None, None),
        ("3", int | None, 3),
        ("auto", Literal["auto"] | int, "auto"),
        ("3", str | int, 3),
        ("3x", str | int, "3x"),
        ("a/b", Path, Path("a/b")),
        (None, Any, None),
        ("x", Any, "x"),
    ],
)
def test_read_follows_the_type(raw: Raw, hint: Any, value: object) -> None:
    result = read(raw, hint)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("raw", "hint", "message"),
    [
        ("2.5", int, "'2.5' is not a whole number"),
        ("true", int, "'true' is not a whole number"),
        (None, int, "null is not a whole number"),
        ("high", float, "'high' is not a number"),
        ("nan", float, "'nan' is not a number"),
        ("inf", float, "'inf' is not a number"),
        ("no", bool, "'no' is not true or false"),
        ("yes", bool, "'yes' is not true or false"),
        ("off", bool, "'off' is not true or false"),
        ("1", bool, "'1' is not true or false"),
        ("x", type(None), "'x' is not null"),
        ("all", Literal["any", "own"], "'all' is not one of any, own"),
        (("any",), Literal["any"], "[any] is not any"),
        ("1, x", tuple[int, ...], "'1, x' is not a list, each of it a whole number"),
        (("1",), tuple[int, str], "[1] is not a list of 2: a whole number, text"),
        (("1", "2"), int, "[1, 2] is not a whole number"),
        ("x", int | float, "'x' is not a whole number or a number"),
        ("x", int | None, "'x' is not a whole number or null"),
        ("x", list[float], "'x' is not a list, each of it a number"),
        (None, list, "null is not a list"),
        (None, Path, "null is not a path"),
        (None, str, "null is not text"),
    ],
)
def test_read_refuses_what_is_not_of_the_type(raw: Raw, hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(raw, hint)


def test_build_takes_defaults_then_base_then_given() -> None:
    first = build(Options, given(lr="1e-3", steps=("7",)), prefix="x.")
    assert first == Options(lr=1e-3, steps=(7,))
    assert build(Options, given(lr="1"), prefix="x.", base=first) == Options(lr=1.0, steps=(7,))


def test_build_takes_a_plain_dataclass_and_leaves_out_what_its_constructor_does_not_take() -> None:
    assert names(Plain) == ["size"]
    assert build(Plain, given(size="4"), prefix="x.", base=Plain(5)) == Plain(4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lrs": "1"}, "here:1: lrs: unknown option; did you mean 'lr'?"),
        ({"Select": "1"}, "here:1: Select: unknown option; did you mean 'select'?"),
        ({"zzz": "1"}, "here:1: zzz: unknown option; known are lr, threshold, steps, pair, select, note"),
        ({"threshold": "high"}, "here:1: threshold: 'high' is not a number; the default is 0.85"),
        ({"threshold": None}, "here:1: threshold: null is not a number; the default is 0.85"),
        (
            {"threshold": "2", "lr": "1"},
            "here:1: threshold: 2.0 must be less than or equal to 1; the default is 0.85",
        ),
        ({"lr": "0"}, "here:1: lr: 0.0 must be greater than 0"),
        ({"select": "all"}, "here:1: select: 'all' is not one of any, own; the default is any"),
        (
            {"steps": ("1", "x")},
            "here:1: steps: [1, x] is not a list, each of it a whole number; the default is [3, 5]",
        ),
        ({"steps": ("1", "0"), "lr": "1"}, "here:1: steps: 0 must be greater than 0; the default is [3, 5]"),
        (
            {"pair": ("1",)},
            "here:1: pair: [1] is not a list of 2: a whole number, text; the default is [1, a]",
        ),
        ({"note": None}, "here:1: note: null is not text"),
        ({}, "there: adapt.lr: has no default; give it a value"),
    ],
)
def test_build_refuses_in_one_line(values: dict[str, Raw], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        build(Options, given(**values), prefix="there: adapt.")


@pytest.mark.parametrize(
    ("size", "message"),
    [("13", "here:1: size: size 13 brings bad luck"), ("14", "here:1: size: size 14 as well")],
)
def test_a_dataclass_own_check_is_told_where_the_option_stands(size: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        build(Plain, given(size=size), prefix="there: adapt.")


def test_a_check_of_several_options_is_told_at_the_section() -> None:
    @dataclass(frozen=True)
    class Both:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("the order is wrong")

    with pytest.raises(RecipeError, match=r"^there: adapt: the order is wrong$"):
        build(Both, given(low="3", high="2"), prefix="there: adapt.")


def test_build_without_options_says_so() -> None:
    @dataclass(frozen=True)
    class Nothing:
        pass

    with pytest.raises(RecipeError, match=r"^here:1: lr: unknown option; there are none here$"):
        build(Nothing, given(lr="1"), prefix="x.")


def test_build_names_types_that_it_cannot_read() -> None:
    class Foreign:
        pass

    schema = dataclasses.make_dataclass("Odd", [("value", Foreign)])
    with pytest.raises(RecipeError, match=r"^there: adapt: the types of Odd's fields cannot be read from text \(.*\)$"):
        build(schema, {}, prefix="there: adapt.")


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_null_knows_yaml_s_spellings(text: str) -> None:
    assert null(text) is None


@pytest.mark.parametrize("text", ["none", "no", "0", "nUll"])
def test_null_leaves_other_text(text: str) -> None:
    assert null(text) == text


def test_settings_are_sorted_by_section_and_the_last_wins() -> None:
    parsed = parse_settings(
        ["adapt.lr=1", "adapt.lr = 2 ", "encoder.weights=a=b", "adapt.select=null"], ("encoder", "adapt")
    )
    assert parsed == {
        "encoder": {"weights": Given("a=b", "--set encoder.weights=a=b")},
        "adapt": {"lr": Given("2", "--set adapt.lr = 2 "), "select": Given(None, "--set adapt.select=null")},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapt.lr", "--set adapt.lr: is not of the form section.option=value; write, say, adapt.lr=1e-4"),
        ("lr=1", "--set lr=1: is not of the form section.option=value; write, say, adapt.lr=1e-4"),
        ("adapt.=1", "--set adapt.=1: is not of the form section.option=value; write, say, adapt.lr=1e-4"),
        ("adpat.lr=1", "--set adpat.lr=1: unknown section 'adpat'; did you mean 'adapt'?"),
    ],
)
def test_settings_of_another_form_are_refused_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        parse_settings([setting], ("encoder", "adapt"))


def test_small_words() -> None:
    assert spell({"a": 1}) == "{'a': 1}"
    assert spell([None, False, "x"]) == "[null, false, x]"
    assert suggest("Cluster", ["clusters"]) == "did you mean 'clusters'?"
    assert one_line("a\n  b") == "a b"
