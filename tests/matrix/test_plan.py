from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RECIPE
from uda_reid.errors import RecipeError, UdaReidError
from uda_reid.job import Job
from uda_reid.matrix.plan import Place, Plan, alone, every_pair, plan_runs


@pytest.fixture
def plan(data: Path) -> Plan:
    pairs, out = (("alpha", "beta"), ("beta", "alpha")), data.parent / "runs"
    return Plan(pairs=pairs, recipes=("adabn", "pul"), seeds=(0, 1), data=data, out=out, profile="scenes")


def test_plan_names_every_run_and_the_source_models_it_needs(plan: Plan) -> None:
    planned = plan_runs(plan)
    assert planned.profile == "scenes"
    assert len(planned.jobs) == len(set(planned.folders.values())) == 8
    models = {cell[:2]: cell.models for cell in planned.jobs}
    first, back = ("pul", Place("alpha", "beta", 1)), ("adabn", Place("beta", "alpha", 1))
    assert models[first] == models[back]  # source and bound of the one are bound and source of the other
    assert len(models[first]) == 2
    assert not models[first] & models["pul", Place("alpha", "beta", 0)]
    job = next(job for cell, job in planned.jobs.items() if cell[:2] == first)
    assert (job.bound, job.threads, job.seed, job.pictures) == (True, 1, 1, False)
    assert "--recipe pul --src alpha --tgt beta --seed 1 --threads 1" in job.command
    alone_models = {len(cell.models) for cell in plan_runs(replace(plan, bound=False)).jobs}
    assert alone_models == {1}
    assert not plan.out.exists()


def test_order_is_by_seed_then_pair_then_recipe(plan: Plan) -> None:
    found = [(cell.place.seed, cell.place.source, cell.recipe) for cell in plan_runs(plan).jobs]
    assert found == [(seed, src, recipe) for seed in (0, 1) for src in ("alpha", "beta") for recipe in ("adabn", "pul")]


def test_a_target_without_labels_has_no_bound_and_the_other_has(data: Path, plan: Plan) -> None:
    table = data / "alpha" / "manifest.csv"
    lines = table.read_text().splitlines()
    unknown = [line.split(",") for line in lines]
    table.write_text("\n".join(",".join([row[0], "", *row[2:]] if row[-1] == "train" else row) for row in unknown))
    jobs = plan_runs(replace(plan, pairs=(("beta", "alpha"),))).jobs
    assert {job.bound for job in jobs.values()} == {False}
    table.write_text("\n".join(lines))
    assert {job.bound for job in plan_runs(plan).jobs.values()} == {True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ("pull",)}, r"recipe 'pull' .*did you mean 'pul'"),
        ({"recipes": ()}, r"^--recipes : none is named$"),
        ({"recipes": ("pul", "")}, r"^--recipes pul,: a name is missing beside a comma$"),
        ({"recipes": ("pul", "adabn", "pul")}, r"^--recipes pul,adabn,pul: two are called pul; copy one to a file"),
        ({"settings": ("adapt.passes=-1",)}, r"adapt.passes"),
        ({"pairs": (("alpha", "nowhere"),)}, r"nowhere"),
        ({"pairs": (("alpha", "beta"),) * 2}, r"^pair alpha:beta is there twice"),
        ({"seeds": (3, 3)}, r"^seed 3 is there twice"),
        ({"threads": 1000}, r"^1000 threads are too many for \d+ cores"),
    ],
)
def test_what_is_wrong_is_said_before_any_training(plan: Plan, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UdaReidError, match=message):
        plan_runs(replace(plan, **change))
    assert not plan.out.exists()


def test_target_that_cannot_be_scored_is_refused(data: Path, plan: Plan) -> None:
    table = data / "beta" / "manifest.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.endswith("gallery")))
    with pytest.raises(RecipeError, match=r"^beta cannot be a target of a matrix: not scored: beta has no gallery"):
        plan_runs(plan)


def test_runs_of_two_profiles_are_no_table(data: Path, plan: Plan) -> None:
    (data / "other.yaml").write_text(f"profile: paper\n{RECIPE}")
    message = r"^the runs have profiles paper, scenes: give --profile, or a table for each$"
    with pytest.raises(RecipeError, match=message):
        plan_runs(replace(plan, recipes=("adabn", f"{data}/other.yaml")))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "--domains a: a matrix needs at least two names"),
        (["a", "b", "a"], "--domains a,b,a: a is there twice"),
        (["a", ""], "--domains a,: a name is missing beside a comma"),
        (["a", "b", ""], "--domains a,b,: a name is missing beside a comma"),
    ],
)
def test_domains_of_which_no_pairs_can_be_made_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        every_pair(names)


def test_only_some_runs_can_be_chosen(plan: Plan) -> None:
    planned = plan_runs(plan)
    chosen = planned.only(["beta", "*:*:adabn:1"])
    found = {(cell.place.source, cell.recipe, cell.place.seed) for cell in chosen.jobs}
    expected = {("beta", recipe, seed) for recipe in ("adabn", "pul") for seed in (0, 1)} | {("alpha", "adabn", 1)}
    assert found == expected
    assert chosen.jobs.keys() == chosen.folders.keys()
    assert planned.only([]).jobs == planned.jobs
    with pytest.raises(RecipeError, match=r"^--only \*:beta:adda: no run is called so; give source:target:recipe:seed"):
        planned.only(["beta", "*:beta:adda"])


def test_command_of_a_run_keeps_what_its_numbers_depend_on() -> None:
    job = Job(
        recipe="pul", source="a b", target="c", seed=2, data=Path("sets"), profile="small", settings=("adapt.lr=1",),
        device="cpu", precision="bf16", threads=2, weights=Path("w"), protocol="market", bound=True,
    )  # fmt: skip
    assert alone(job) == (
        "uda-reid adapt --recipe pul --src 'a b' --tgt c --seed 2 --threads 2 --device cpu --data sets --profile small "
        "--precision bf16 --weights w --protocol market --bound --set adapt.lr=1"
    )


def test_damaged_images_are_left_out_of_every_run_of_a_plan(data: Path, plan: Plan) -> None:
    (data / "beta" / "gallery_002.png").write_bytes(b"no image")
    jobs = plan_runs(replace(plan, skip_damaged=True)).jobs
    assert all(job.skip_damaged and job.command.endswith(" --skip-damaged") for job in jobs.values())
    assert not any("--skip-damaged" in job.command for job in plan_runs(plan).jobs.values())


def test_parts_that_are_wanted_reach_the_job_and_its_command(plan: Plan) -> None:
    jobs = plan_runs(replace(plan, forgetting=True, gap=True, selection=True, bound=False)).jobs
    for job in jobs.values():
        assert not job.embedding_map and "--map" not in job.command
        assert (job.bound, job.forgetting, job.gap, job.selection) == (False, True, True, True)
        assert "--forgetting --gap --selection --no-pictures" in job.command and f"--out {plan.out}" in job.command


def test_only_the_first_seed_is_mapped(plan: Plan) -> None:
    jobs = plan_runs(replace(plan, seeds=(4, 1), embedding_map=True)).jobs
    assert {(job.seed, job.embedding_map, "--map" in job.command) for job in jobs.values()} == {
        (4, True, True), (1, False, False),
    }  # fmt: skip


def test_one_data_set_under_two_names_is_refused(data: Path, plan: Plan) -> None:
    with pytest.raises(RecipeError, match=r"are the same run under two names; name every data set once"):
        plan_runs(replace(plan, pairs=(("alpha", "beta"), ("alpha", str(data / "beta")))))
    with pytest.raises(RecipeError, match=r"^alpha:alpha carries a model to its own data set"):
        plan_runs(replace(plan, pairs=(("alpha", "alpha"),)))
    with pytest.raises(RecipeError, match=r"^a matrix needs at least one pair and one seed$"):
        plan_runs(replace(plan, pairs=()))
