"""Recipes with every option, as they are written down and shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.recipe.toys import HEAD, Toy, Written, load
from uda_reid.errors import RecipeError
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain
from uda_reid.recipe import Profile, recipes, resolved, to_yaml
from uda_reid.shipped import shipped
from uda_reid.strategies.pul import PUL
from uda_reid.strategies.source_only import SourceOnly

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
