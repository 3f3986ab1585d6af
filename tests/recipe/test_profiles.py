"""Schedules of a recipe, and how many clusters they take."""

from __future__ import annotations

import json

import pytest

from tests.recipe.toys import HEAD, Toy, Written, load, refused
from uda_reid.errors import RecipeError
from uda_reid.recipe import SHARED, Profile, choose_profile, recipes
from uda_reid.shipped import shipped
from uda_reid.strategies.pul import PUL


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
