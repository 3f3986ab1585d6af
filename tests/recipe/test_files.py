from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

import uda_reid.recipe
from tests.recipe.toys import HEAD, Toy, Written, load, refused
from uda_reid.errors import RecipeError
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain
from uda_reid.recipe import Profile, recipes

YAML = "cannot be read as YAML: "
LOOK = "; look at the colons, quotes and indentation there"
LEVELS = "cannot stand here; a recipe has two levels, section and option"


def test_a_recipe_is_its_file_over_the_defaults(written: Written) -> None:
    path = written(
        HEAD + "paper: A paper\nfidelity: text\nnotes: [one, 'two: three']\n"
        "encoder: {backbone: resnet18, weights: none}\n"
        "pretrain:\n  epochs: 5\nadapt:\n  clusters: 9\nsmall:\n"
    )
    recipe = load(path)
    assert recipe.name == "toy"
    assert recipe.path == path
    assert recipe.strategy_name == "toys.methods:Toy"
    assert recipe.strategy == Toy(clusters=9)
    assert recipe.encoder == EncoderSpec(backbone="resnet18", weights="none")
    assert recipe.pretrain == Pretrain(epochs=5)
    assert (recipe.paper, recipe.fidelity, recipe.profile) == ("A paper", "text", "paper")
    assert recipe.notes == ("one", "two: three")


def test_a_recipe_claims_nothing_unless_it_says_so(written: Written) -> None:
    assert load(written(HEAD)).fidelity == "reconstruction"


@pytest.mark.parametrize("spelling", ["1e-3", "1E-3", "0.001", ".001", "'1e-3'", "+1e-3"])
def test_yaml_trap_numbers_are_numbers(written: Written, spelling: str) -> None:
    strategy = load(written(f"{HEAD}adapt: {{lr: {spelling}}}")).strategy
    assert isinstance(strategy, Toy)
    assert strategy.lr == 0.001


@pytest.mark.parametrize("word", ["no", "off", "yes", "1e-3", "010", "2018-01-01", "12:30", "'null'", "true"])
def test_yaml_trap_text_stays_text(written: Written, word: str) -> None:
    strategy = load(written(f"{HEAD}adapt: {{title: {word}}}")).strategy
    assert isinstance(strategy, Toy)
    assert strategy.title == word.strip("'")


def test_yaml_trap_whole_numbers_are_decimal(written: Written) -> None:
    strategy = load(written(f"{HEAD}adapt: {{rounds: 010}}")).strategy
    assert isinstance(strategy, Toy)
    assert strategy.rounds == 10


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "\nadapt: {cluster: 5}",
            "toy.yaml:3: adapt.cluster: unknown option; did you mean 'clusters'?",
        ),
        ("adapt:\n  lr: 1\n  round: 5", "toy.yaml:4: adapt.round: unknown option; did you mean 'rounds'?"),
        ("pretrian: {}", "toy.yaml:2: pretrian: unknown option; did you mean 'pretrain'?"),
        ("Paper: x", "toy.yaml:2: Paper: unknown option; did you mean 'paper'?"),
        (
            "encoder: {backbones: x}",
            "toy.yaml:2: encoder.backbones: unknown option; did you mean 'backbone'?",
        ),
        ("small: {round: 5}", "toy.yaml:2: small.round: unknown option; did you mean 'rounds'?"),
        (
            "scenes: {rounds: few}",
            "toy.yaml:2: scenes.rounds: 'few' is not a whole number; the default is 25",
        ),
        (
            "adapt:\n  rounds: 5\n  threshold: high",
            "toy.yaml:4: adapt.threshold: 'high' is not a number; the default is 0.85",
        ),
        (
            "adapt: {threshold: 1.5}",
            "toy.yaml:2: adapt.threshold: 1.5 must be less than or equal to 1; the default is 0.85",
        ),
        (
            "adapt: {threshold: .nan}",
            "toy.yaml:2: adapt.threshold: '.nan' is not a number; the default is 0.85",
        ),
        ("adapt: {rounds: 2.5}", "toy.yaml:2: adapt.rounds: '2.5' is not a whole number; the default is 25"),
        ("adapt: {rounds: 1e1}", "toy.yaml:2: adapt.rounds: '1e1' is not a whole number; the default is 25"),
        ("adapt: {rounds: }", "toy.yaml:2: adapt.rounds: null is not a whole number; the default is 25"),
        ("adapt: {rounds: [5]}", "toy.yaml:2: adapt.rounds: [5] is not a whole number; the default is 25"),
        ("adapt: {flip: no}", "toy.yaml:2: adapt.flip: 'no' is not true or false; the default is true"),
        ("adapt: {select: no}", "toy.yaml:2: adapt.select: 'no' is not one of any, own; the default is any"),
        (
            "fidelity: faithful",
            "toy.yaml:2: fidelity: 'faithful' is not one of official, text, reconstruction; "
            "the default is reconstruction",
        ),
        (
            "adapt: {milestones: [30, x]}",
            "toy.yaml:2: adapt.milestones: [30, x] is not a list, each of it a whole number; the default is [30, 50]",
        ),
        (
            "adapt:\n  lr: 1\n  rounds: 2\n  lr: 3",
            "toy.yaml:5: adapt.lr: stands here twice, first on line 3; keep one",
        ),
        ("paper: a\npaper: b", "toy.yaml:3: paper: stands here twice, first on line 2; keep one"),
        (
            "adapt: {}\nadapt: {}",
            "toy.yaml:3: adapt: stands here twice, first on line 2; keep one",
        ),
        (
            "adapt: {lr: {start: 1}}",
            "toy.yaml:2: adapt.lr: a mapping " + LEVELS,
        ),
        (
            "adapt: {milestones: [[1]]}",
            "toy.yaml:2: adapt.milestones: a list " + LEVELS,
        ),
        (
            "paper: {title: x}",
            "toy.yaml:2: paper: a mapping " + LEVELS,
        ),
        ("adapt: 5", "toy.yaml:2: adapt: is a section; write adapt: {option: value}"),
        ("adapt: [5]", "toy.yaml:2: adapt: is a section; write adapt: {option: value}"),
        ("? [a]\n: b", "toy.yaml:2: an option's name is one word, as in lr: 0.001"),
        (
            "adapt: {title: !!python/name:os.system x}",
            "toy.yaml:2: adapt.title: the tag tag:yaml.org,2002:python/name:os.system "
            "has no place in a recipe; leave it out",
        ),
        (
            "adapt: {lr: &rate 1}\npretrain: {lr: *rate}",
            "toy.yaml:3: a recipe has no references (*rate); write the value out",
        ),
        (
            "adapt: &a {<<: *a}",
            "toy.yaml:2: a recipe has no references (*a); write the value out",
        ),
        (
            "adapt: {<<: x}",
            "toy.yaml:2: adapt.<<: unknown option; known are " + ", ".join(f.name for f in dataclasses.fields(Toy)),
        ),
        (
            "adapt: {lr: 1",
            f"toy.yaml:3: {YAML}while parsing a flow mapping, expected ',' or '}}', but got '<stream end>'{LOOK}",
        ),
        (
            "\tadapt: 1",
            f"toy.yaml:2: {YAML}while scanning for the next token, "
            f"found character '\\t' that cannot start any token{LOOK}",
        ),
        ("paper: a: b", f"toy.yaml:2: {YAML}mapping values are not allowed here{LOOK}"),
        (
            "---\nstrategy: x",
            f"toy.yaml:2: {YAML}expected a single document in the stream, but found another document{LOOK}",
        ),
        (
            "encoder: {backbone: resnet5}",
            "toy.yaml:2: encoder.backbone: backbone 'resnet5' is unknown; did you mean 'resnet50'?",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line(written: Written, body: str, message: str) -> None:
    written(f"{HEAD}{body}\n")
    with refused(message):
        load("toy.yaml")


@pytest.mark.parametrize("profile", get_args(Profile))
@pytest.mark.parametrize("section", ["encoder", "pretrain", "adapt", "small", "scenes"])
def test_every_section_is_checked_in_every_profile(written: Written, profile: str, section: str) -> None:
    written(f"{HEAD}{section}: {{zzz: 1}}\n")
    with pytest.raises(RecipeError, match=rf"^toy\.yaml:2: {section}\.zzz: unknown option; known are "):
        load("toy.yaml", profile=profile)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "toy.yaml: has no options; the least that a recipe says is strategy: NAME"),
        ("- 1\n", "toy.yaml: has no options; the least that a recipe says is strategy: NAME"),
        ("paper: x\n", "toy.yaml: strategy: has no default; give it a value"),
        (
            "\nstrategy: pull\n",
            "toy.yaml:2: strategy: strategy 'pull' is unknown; did you mean 'pul'? "
            "Known are adabn, adda, cluster, daam, guided_dropout, pul, source_only; or write package.module:Class",
        ),
        (
            "strategy: toys.methods:NoDataclass\n",
            "toy.yaml:1: strategy: toys.methods:NoDataclass is not a dataclass, and its fields are what a recipe sets",
        ),
    ],
)
def test_a_file_without_a_strategy_is_refused_in_one_line(written: Written, text: str, message: str) -> None:
    written(text)
    with refused(message):
        load("toy.yaml")


def test_a_file_that_is_no_text_is_refused_in_one_line(written: Written) -> None:
    written("").write_bytes(b"\xff\xfe\x00strategy")
    with pytest.raises(RecipeError, match=r"^toy\.yaml: cannot be read: .*utf-8.*; a recipe is a YAML file in UTF-8$"):
        load("toy.yaml")
    written("strategy: \x00\n")
    with pytest.raises(
        RecipeError, match=r"^toy\.yaml: cannot be read: .*not allowed.*; a recipe is a YAML file in UTF-8$"
    ):
        load("toy.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pull",
            "recipe 'pull' is unknown; did you mean 'pul'? Known are {}; or give the path of a YAML file",
        ),
        ("xyz", "recipe 'xyz' is unknown; known are {}; or give the path of a YAML file"),
        (
            "a/pul.yml",
            "recipe file a/pul.yml does not exist; did you mean 'pul'? Known are {}; or give the path of a YAML file",
        ),
        (".", "recipe '.' is unknown; known are {}; or give the path of a YAML file"),
    ],
)
def test_an_unknown_recipe_is_refused_in_one_line(name: str, message: str) -> None:
    with refused(message.format(", ".join(recipes()))):
        load(name)


@pytest.mark.parametrize(
    "name",
    ["../../../escape", "/escape", "..", ".hidden", "a/b", "a\\b", "-rf", "two\nlines", "bell\x07", "x" * 101, " "],
)
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(written: Written, name: str) -> None:
    text = HEAD + f"name: {json.dumps(name)}\n"
    rule = "write name: NAME with letters, digits, -, _, . and spaces, first a letter or digit, at most 100 bytes"
    with refused(f"toy.yaml:2: name: {name!r} cannot begin the name of a folder; {rule}"):
        load(written(text))
    assert load(written(HEAD + "name: Ours 2.1_x-ü\n")).name == "Ours 2.1_x-ü"  # the remedy


def test_a_file_s_own_name_is_checked_as_a_name(written: Written, tmp_path: Path) -> None:
    bad = tmp_path / "-rf [x].yaml"
    written(HEAD).rename(bad)
    with pytest.raises(RecipeError, match=r"'-rf \[x\]' cannot begin the name of a folder; write name: NAME with"):
        load(bad)
    bad.write_text(HEAD + "name: ours\n")
    assert load(bad).name == "ours"


def test_code_needs_leave_and_is_not_imported_without(written: Written) -> None:
    path = written("strategy: toys.methods:Toy\n")
    with pytest.raises(RecipeError, match=r"^toy.yaml:1: strategy: .* give --allow-code if you trust it$"):
        uda_reid.recipe.load(path)
    assert uda_reid.recipe.load(path, allow_code=True).strategy == Toy()
