from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

import pytest
import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from uda_reid.errors import RecipeError
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain
from uda_reid.recipe import SHARED, Profile, choose_profile, load, recipes, resolved, to_yaml
from uda_reid.run import QUIET, Run
from uda_reid.shipped import shipped
from uda_reid.strategies.pul import PUL
from uda_reid.strategies.source_only import SourceOnly
from uda_reid.types import AdaptationResult, Source, Target


@dataclass(frozen=True, kw_only=True)
class Toy:
    clusters: Annotated[int, Field(gt=0)] = 700
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.85
    lr: Annotated[float, Field(gt=0)] = 1e-3
    rounds: int = 25
    flip: bool = True
    select: Literal["any", "own"] = "any"
    milestones: tuple[int, ...] = (30, 50)
    title: str = "toy"
    limit: int | None = None

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the source's encoder."""
        return AdaptationResult(source.encoder)


class NoDataclass:
    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the source's encoder."""
        return AdaptationResult(source.encoder)


Written = Callable[[str], Path]
HEAD = "strategy: toys.methods:Toy\n"
YAML = "cannot be read as YAML: "
LOOK = "; look at the colons, quotes and indentation there"
LEVELS = "cannot stand here; a recipe has two levels, section and option"


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


def refused(message: str) -> Any:
    return pytest.raises(RecipeError, match=f"^{re.escape(message)}$")


# ---- what a file says ------------------------------------------------------------------------------


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


# ---- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flip=false", False),
        ("rounds=5", 5),
        ("lr=1e-4", 1e-4),
        ("lr=1", 1.0),
        ("milestones=3,4", (3, 4)),
        ("milestones=[3]", (3,)),
        ("select=own", "own"),
        ("title=1e-4", "1e-4"),
        ("limit=4", 4),
        ("limit=null", None),
    ],
)
def test_settings_are_read_by_the_field_s_type(written: Written, setting: str, value: object) -> None:
    recipe = load(written(f"{HEAD}adapt: {{lr: 0.5, limit: 9}}"), settings=[f"adapt.{setting}"])
    found = getattr(recipe.strategy, setting.split("=")[0])
    assert found == value
    assert type(found) is type(value)


def test_settings_come_last_and_are_noted_where_they_change_something() -> None:
    settings = ["pretrain.epochs=5", "encoder.height=128", "adapt.lr=1e-4", "adapt.rounds=5", "adapt.lr=1e-5"]
    recipe = load("pul", profile="small", settings=settings)
    assert isinstance(recipe.strategy, PUL)
    assert (recipe.pretrain.epochs, recipe.encoder.height, recipe.strategy.lr) == (5, 128, 1e-5)
    assert recipe.notes[-2:] == (
        "pretrain.epochs 10 -> 5: set on the command line",
        "adapt.lr 0.001 -> 1e-05: set on the command line",
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapt.cluster=5", "--set adapt.cluster=5: unknown option; did you mean 'clusters'?"),
        ("adapt.lr=fast", "--set adapt.lr=fast: 'fast' is not a number; the default is 0.001"),
        ("adapt.lr=-1", "--set adapt.lr=-1: -1.0 must be greater than 0; the default is 0.001"),
        ("adapt.flip=no", "--set adapt.flip=no: 'no' is not true or false; the default is true"),
        ("small.lr=1", "--set small.lr=1: unknown section 'small'; known are encoder, pretrain, adapt"),
        ("adapt.lr", "--set adapt.lr: is not of the form section.option=value; write, say, adapt.lr=1e-4"),
        (
            "encoder.backbone=resnet5",
            "--set encoder.backbone=resnet5: backbone 'resnet5' is unknown; did you mean 'resnet50'?",
        ),
    ],
)
def test_a_mistake_in_a_setting_is_one_line(written: Written, setting: str, message: str) -> None:
    written(HEAD)
    with refused(message):
        load("toy.yaml", settings=[setting])


def test_options_that_do_not_fit_together_are_told_at_the_setting_that_broke_them() -> None:
    message = r"^--set encoder\.backbone=resnet_tiny: [^\n]*weights: none$"
    with pytest.raises(RecipeError, match=message):
        load("source_only", settings=["encoder.backbone=resnet_tiny"])
    fitting = ["encoder.backbone=resnet_tiny", "encoder.weights=none"]
    assert load("source_only", settings=fitting).encoder.backbone == "resnet_tiny"


# ---- profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "built_in", "images", "profile"),
    [
        (None, True, 400, "scenes"),
        (None, True, 40_000, "scenes"),
        (None, False, 4_999, "small"),
        (None, False, 5_000, "paper"),
        ("paper", True, 400, "paper"),
        ("scenes", False, 40_000, "scenes"),
        ("small", True, 40_000, "small"),
    ],
)
def test_profile_is_the_requested_one_or_fits_the_data(
    requested: str | None, built_in: bool, images: int, profile: str
) -> None:
    assert choose_profile(requested, built_in=built_in, target_images=images) == profile


def test_an_unknown_profile_is_refused_in_one_line() -> None:
    with refused("--profile scene: unknown profile; did you mean 'scenes'?"):
        choose_profile("scene", built_in=True, target_images=1)
    with refused("--profile tiny: unknown profile; known are paper, small, scenes"):
        load("pul", profile="tiny")


@pytest.mark.parametrize("profile", SHARED)
def test_short_profiles_start_every_recipe_from_one_source_model(profile: Profile) -> None:
    for name in recipes():
        recipe = load(name, profile=profile)
        assert (recipe.encoder, recipe.pretrain) == SHARED[profile]
        assert recipe.profile == profile
        assert any(
            f"schedule are those of profile {profile}, the same for every recipe" in note for note in recipe.notes
        )


def test_notes_about_other_profiles_are_left_out(written: Written) -> None:
    about = {
        "all": "of all",
        "odd": "in profile views and papers three",
        "paper": "in profile paper one",
        "short": "in profiles small and scenes two",
    }
    path = written(f"{HEAD}notes: {json.dumps(list(about.values()))}\n")
    for profile, expected in {"paper": ["paper"], "small": ["short"], "scenes": ["short"]}.items():
        recipe = load(path, profile=profile)
        assert [note for note in recipe.notes if note in about.values()] == [
            about[each] for each in ("all", "odd", *expected)
        ]


def test_a_profile_changes_what_its_section_says(written: Written) -> None:
    path = written(f"{HEAD}adapt: {{rounds: 9, lr: 0.5}}\nsmall: {{rounds: 2}}\nscenes: {{lr: 0.25}}\n")
    assert load(path).strategy == Toy(rounds=9, lr=0.5)
    assert load(path, profile="small").strategy == Toy(rounds=2, lr=0.5)
    assert load(path, profile="scenes").strategy == Toy(rounds=9, lr=0.25)


@pytest.mark.parametrize(
    ("images", "clusters"), [(None, 700), (8_000, 700), (5_600, 700), (5_599, 699), (96, 12), (23, 2), (2, 2)]
)
@pytest.mark.parametrize("profile", SHARED)
def test_short_profiles_have_at_most_one_cluster_per_8_images(profile: str, images: int | None, clusters: int) -> None:
    recipe = load("pul", profile=profile, target_images=images)
    assert isinstance(recipe.strategy, PUL)
    assert recipe.strategy.clusters == clusters
    note = f"clusters 700 -> {clusters}: at most one per 8 training images in profile {profile}"
    assert (note in recipe.notes) == (clusters != 700)


def test_clusters_set_by_hand_are_left_alone() -> None:
    recipe = load("pul", profile="small", target_images=96, settings=["adapt.clusters=90"])
    assert isinstance(recipe.strategy, PUL)
    assert recipe.strategy.clusters == 90
    assert "clusters 700 -> 90: set on the command line" in recipe.notes[-1]


def test_paper_takes_as_many_clusters_as_images_and_no_more() -> None:
    assert load("pul", target_images=700).profile == "paper"
    line = next(
        number
        for number, text in enumerate((shipped("recipes") / "pul.yaml").read_text().splitlines(), start=1)
        if text.startswith("  clusters:")
    )
    reason = "700 clusters are more than the target's 699 training images"
    remedy = "set fewer (--set adapt.clusters=...) or take --profile small"
    with refused(f"pul.yaml:{line}: adapt.clusters: {reason}; {remedy}"):
        load("pul", target_images=699)
    with refused(f"--set adapt.clusters=700: {reason}; {remedy}"):
        load("pul", profile="small", target_images=699, settings=["adapt.clusters=700"])


def test_default_clusters_beyond_the_images_are_refused_too(written: Written) -> None:
    with pytest.raises(RecipeError, match=r"^toy\.yaml: adapt\.clusters: 700 clusters are more than"):
        load(written(HEAD), target_images=10)


# ---- resolved recipes ------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", get_args(Profile))
@pytest.mark.parametrize("name", recipes())
def test_a_shipped_recipe_loads_in_every_profile_and_survives_a_round_trip(
    tmp_path: Path, name: str, profile: str
) -> None:
    recipe = load(name, profile=profile, target_images=1_000, settings=["pretrain.lr=1e-5"])
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load(path, profile="scenes", target_images=1_000) == recipe
    assert load(path, profile="paper").path == path


def test_a_resolved_recipe_keeps_words_that_yaml_would_change(written: Written, tmp_path: Path) -> None:
    for word in ("no", "null", "1e-3", "", " padded ", "a: b", "ü", "line\nbreak", "2018-01-01", "x" * 300):
        recipe = dataclasses.replace(load(written(HEAD)), strategy=Toy(title=word, limit=None), notes=(word,))
        path = tmp_path / "resolved.yaml"
        path.write_text(to_yaml(recipe), encoding="utf-8")
        assert load(path) == recipe


def test_resolved_is_plain_data_with_every_option(written: Written) -> None:
    plain = resolved(load(written(HEAD)))
    assert list(plain) == [
        "name",
        "strategy",
        "paper",
        "fidelity",
        "profile",
        "notes",
        "encoder",
        "pretrain",
        "adapt",
    ]
    assert set(plain["encoder"]) == {option.name for option in dataclasses.fields(EncoderSpec)}
    assert set(plain["pretrain"]) == {option.name for option in dataclasses.fields(Pretrain)}
    assert plain["adapt"] == {**dataclasses.asdict(Toy()), "milestones": [30, 50]}
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_a_resolved_recipe_takes_settings_and_is_still_bounded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(load("pul", profile="scenes", target_images=400)), encoding="utf-8")
    changed = load(path, settings=["adapt.rounds=2"])
    assert isinstance(changed.strategy, PUL)
    assert (changed.name, changed.strategy.rounds, changed.strategy.clusters) == ("pul", 2, 50)
    with pytest.raises(RecipeError, match=r"adapt\.clusters: 50 clusters are more than the target's 20 training"):
        load(path, target_images=20)


# ---- what is shipped -------------------------------------------------------------------------------


def test_the_list_of_recipes_has_one_line_each() -> None:
    assert recipes() == {path.stem: recipes()[path.stem] for path in sorted(shipped("recipes").glob("*.yaml"))}
    assert {"ide", "pul", "source_only"} <= set(recipes())
    assert all(line and "\n" not in line for line in recipes().values())


def test_ide_is_the_released_baseline() -> None:
    recipe = load("ide")
    assert recipe.strategy == SourceOnly()
    assert recipe.encoder == EncoderSpec(
        backbone="resnet50", height=224, width=224, pooling="average", neck="none", last_stride=2
    )
    assert recipe.pretrain == Pretrain(
        loss="identification",
        smoothing=0.0,
        optimizer="sgd",
        lr=1e-3,
        momentum=0.9,
        weight_decay=0.0,
        epochs=40,
        warmup=0,
        schedule="constant",
        batch=16,
        augmentation="ide",
        dropout=0.5,
        head_std=0.001,
        validation=0.0,
    )


def test_pul_is_the_released_method_on_the_released_baseline() -> None:
    recipe, baseline = load("pul"), load("ide")
    assert (recipe.encoder, recipe.pretrain) == (baseline.encoder, baseline.pretrain)
    assert recipe.strategy == PUL(clusters=700, threshold=0.85, rounds=25, epochs=20, batch=16, lr=1e-3)
    assert recipe.strategy == PUL()
    assert recipe.fidelity == "official"


def test_source_only_trains_with_the_strong_defaults() -> None:
    recipe = load("source_only")
    assert (recipe.encoder, recipe.pretrain, recipe.strategy) == (EncoderSpec(), Pretrain(), SourceOnly())


def test_clusters_bind_only_strategies_that_are_told_their_number() -> None:
    dense = load("cluster", profile="paper", settings=["adapt.method=dbscan"], target_images=300)
    assert dense.strategy.clusters == 500  # type: ignore[attr-defined]
    for profile in ("small", "scenes"):
        dense = load("cluster", profile=profile, settings=["adapt.method=dbscan"], target_images=400)
        assert not any("clusters 500" in note for note in dense.notes)
        capped = load("cluster", profile=profile, settings=["adapt.method=kmeans"], target_images=400)
        assert capped.strategy.clusters == 50  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="500 clusters are more than the target's 300 training images"):
        load("cluster", profile="paper", target_images=300)
