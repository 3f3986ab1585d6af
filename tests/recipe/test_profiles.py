"""Schedules of a recipe, and how many clusters they take."""

from __future__ import annotations

import json

import pytest

from tests.recipe.toys import HEAD, Toy, Written, load, refused
from uda_reid.errors import RecipeError
from uda_reid.recipe import SHARED, Profile, bounded_by_cameras, choose_profile, cluster_warning, recipes
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
    remedy = "set fewer (--set adapt.clusters=174, say)"
    with refused(f"pul.yaml:{line}: adapt.clusters: {reason}; {remedy} or take --profile small"):
        load("pul", target_images=699)
    with refused(f"--set adapt.clusters=700: {reason}; {remedy}"):  # in no profile is a number set by hand bounded
        load("pul", profile="small", target_images=699, settings=["adapt.clusters=700"])
    for settings in ([], ["adapt.clusters=174"]):
        assert load("pul", profile="paper" if settings else "small", target_images=699, settings=settings)


def test_default_clusters_beyond_the_images_are_refused_too(written: Written) -> None:
    with pytest.raises(RecipeError, match=r"^toy\.yaml: adapt\.clusters: 700 clusters are more than"):
        load(written(HEAD), target_images=10)


@pytest.mark.parametrize(
    ("images", "cameras", "clusters", "each"),
    [
        (769, 5, 96, 8),  # a built-in scene
        (1940, 2, 485, 4),  # CUHK01: 485 people of two images in each of two cameras
        (1940, 3, 323, 6),
        (1940, 4, 242, 8),
        (1940, 1, 500, 2),
        (1940, None, 242, 8),
        (7, 2, 2, 4),
    ],
)
def test_clusters_are_bounded_by_images_and_cameras(images: int, cameras: int | None, clusters: int, each: int) -> None:
    recipe = load("cluster", profile="small", target_images=images, target_cameras=cameras)
    assert recipe.strategy.clusters == clusters  # type: ignore[attr-defined]
    note = f"clusters 500 -> {clusters}: at most one per {each} training images in profile small"
    few = f", which are 2 of each of the target's {cameras} cameras" if cameras and cameras < 4 else ""
    assert (note + few in recipe.notes) == (clusters != 500)
    assert bounded_by_cameras(recipe) == (bool(few) and clusters != 500)


def test_cameras_without_a_number_leave_the_bound_of_images() -> None:
    assert load("pul", profile="small", target_images=800) == load(
        "pul", profile="small", target_images=800, target_cameras=6
    )


@pytest.mark.parametrize(
    ("clusters", "images", "cameras", "warned"),
    [
        (50, 100, 2, ""), (51, 100, 2, "cannot be the identities"), (2, 2, 1, ""), (2, 3, None, ""),
        (700, 700, 8, "cannot be the identities"), (750, 12_936, 6, ""), (4, 128, 2, ""),
        (4, 132, 2, "expect several identities in each"), (4, 132, None, ""),
    ],
)  # fmt: skip
def test_clusters_that_cannot_be_the_identities_are_doubted(
    clusters: int, images: int, cameras: int | None, warned: str
) -> None:
    found = cluster_warning(PUL(clusters=clusters), images, cameras)
    assert warned in found and bool(found) == bool(warned)
