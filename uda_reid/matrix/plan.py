"""Which runs a transfer matrix is made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import Literal, NamedTuple

from uda_reid.data.layouts import SPLITS
from uda_reid.errors import RecipeError
from uda_reid.evaluation import why_unscored
from uda_reid.job import Job, Prepared, open_domain
from uda_reid.recipe import Recipe, load
from uda_reid.run import Precision, Reporter, Silent
from uda_reid.training.devices import use_threads

Pair = tuple[str, str]
"""Source and target."""
WANTED = ("bound", "forgetting", "gap", "selection")
"""Parts of a record that are made only where they are wanted, by the names of options of `job.Job`."""


class Place(NamedTuple):
    """Where a run stands in a matrix: its pair of domains, and its seed."""

    source: str
    target: str
    seed: int

    @property
    def pair(self) -> tuple[str, str]:
        """The pair."""
        return self.source, self.target


class Cell(NamedTuple):
    """One run.

    Args:
        recipe: its recipe.
        place: its pair and seed.
        models: source models that it trains or waits for: its own, and that of the bound.
    """

    recipe: str
    place: Place
    models: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return what the run is called."""
        return f"{self.place.source} -> {self.place.target}, {self.recipe}, seed {self.place.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a matrix is to be made of.

    Args:
        pairs: (source, target) names, as of `job.Job`.
        recipes: names of shipped recipes, or YAML files.
        seeds: of every pair and recipe.
        data: folder that holds the data sets.
        out: folder that holds runs and source models.
        profile: `paper`, `small` or `scenes`; None chooses by the domains.
        settings: options as `section.option=value`, over every recipe's.
        device: as of `Job`.
        precision: as of `Job`.
        threads: CPU threads of each run.
        weights: as of `Job`.
        protocol: as of `Job`.
        bound: whether the supervised bound is made, of targets that have labels.
        forgetting: whether models are also scored on the source's own test images.
        gap: whether it is measured how far apart domains are.
        pictures: whether the runs' own pages show images of the target.
        selection: whether snapshots are also measured by what could be chosen by without labels.
        embedding_map: whether the runs of the first seed also map where images of both domains lie.
        allow_code: as of `Job`.
        skip_damaged: as of `Job`.
    """

    pairs: tuple[tuple[str, str], ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    data: Path = Path("data")
    out: Path = Path("runs")
    profile: Literal["paper", "small", "scenes"] | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    precision: Precision = "fp32"
    threads: int = 1
    weights: Path | None = None
    protocol: str = "auto"
    bound: bool = True
    forgetting: bool = False
    gap: bool = False
    selection: bool = False
    embedding_map: bool = False
    pictures: bool = False
    allow_code: bool = False
    skip_damaged: bool = False


class Planned(NamedTuple):
    """The runs of a plan in their order, each with its job and the folder it ends up in; and the profile of all."""

    jobs: Mapping[Cell, Job]
    folders: Mapping[Cell, Path]
    profile: str

    def only(self, patterns: Sequence[str]) -> Planned:
        """Return the runs that one of the patterns names (`matches`); all where there is none.

        Raises:
            RecipeError: a pattern names no run.
        """
        first = next(iter(self.jobs))
        name = ":".join((*first.place.pair, first.recipe, str(first.place.seed)))
        for pattern in patterns:
            if not any(matches(cell, pattern) for cell in self.jobs):
                raise RecipeError(
                    f"--only {pattern}: no run is called so; give source:target:recipe:seed, or the first of these, "
                    f"with * for any; the first run is {name}"
                )
        chosen = [cell for cell in self.jobs if not patterns or any(matches(cell, each) for each in patterns)]
        return Planned(
            {cell: self.jobs[cell] for cell in chosen}, {cell: self.folders[cell] for cell in chosen}, self.profile
        )


def every_pair(domains: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return every ordered pair of different domains.

    Raises:
        RecipeError: there are less than two, or one is there twice.

    >>> every_pair(["a", "b"])
    (('a', 'b'), ('b', 'a'))
    """
    twice = next((name for name in domains if domains.count(name) > 1), None)
    if len(domains) < 2 or twice is not None or not all(domains):
        wrong = f"{twice} is there twice" if twice else "a matrix needs at least two names, with a comma between them"
        wrong = wrong if all(domains) else "a name is missing beside a comma"
        raise RecipeError(f"--domains {','.join(domains)}: {wrong}")
    return tuple(permutations(domains, 2))


def plan_runs(plan: Plan, reporter: Reporter | None = None) -> Planned:
    """Return the runs of a plan; everything that is wrong with it is found here, before any training.

    Raises:
        UdaReidError: a domain, a recipe or a setting is wrong, or the runs have different profiles.
    """
    use_threads(plan.threads)  # a part of what runs and source models are called by
    if plan.recipes and not all(plan.recipes):
        raise RecipeError(f"--recipes {','.join(plan.recipes)}: a name is missing beside a comma")
    names = [_loaded(recipe, plan).name for recipe in plan.recipes]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice or not names:
        wrong = f"two are called {twice}; copy one to a file of another name" if twice else "none is named"
        raise RecipeError(f"--recipes {','.join(plan.recipes)}: {wrong}")
    doubled = next((each for each in (*plan.pairs, *plan.seeds) if (*plan.pairs, *plan.seeds).count(each) > 1), None)
    if doubled is not None:
        what = f"pair {':'.join(doubled)}" if isinstance(doubled, tuple) else f"seed {doubled}"
        raise RecipeError(f"{what} is there twice; name every pair and every seed once")
    if not (plan.pairs and plan.seeds):
        raise RecipeError("a matrix needs at least one pair and one seed")
    domains = {
        name: open_domain(name, plan.data, reporter=reporter, skip_damaged=SPLITS if plan.skip_damaged else ())
        for name in dict.fromkeys(name for pair in plan.pairs for name in pair)
    }
    for name in dict.fromkeys(target for _, target in plan.pairs):
        if why_unscored(domains[name]):
            raise RecipeError(f"{name} cannot be a target of a matrix: {why_unscored(domains[name])}")
    for source, target in plan.pairs:
        if domains[source].root == domains[target].root and domains[source].name == domains[target].name:
            raise RecipeError(f"{source}:{target} carries a model to its own data set; a pair has two different ones")
    jobs, folders, profiles = {}, {}, set()
    for seed in plan.seeds:
        for source, target in plan.pairs:
            for recipe in plan.recipes:
                job = Job(
                    recipe=recipe, source=source, target=target, data=plan.data, out=plan.out, seed=seed,
                    profile=plan.profile, settings=plan.settings, device=plan.device, precision=plan.precision,
                    threads=plan.threads, weights=plan.weights, protocol=plan.protocol, pictures=plan.pictures,
                    bound=plan.bound and domains[target].labelled,
                    forgetting=plan.forgetting and not why_unscored(domains[source]),
                    selection=plan.selection, gap=plan.gap, allow_code=plan.allow_code,
                    skip_damaged=plan.skip_damaged,
                    embedding_map=plan.embedding_map and seed == plan.seeds[0],
                )  # fmt: skip
                prepared = Prepared(job, Silent())
                profiles.add(prepared.recipe.profile)
                trained = (prepared.source, prepared.target) if job.bound else (prepared.source,)
                models = frozenset(prepared.source_folder(domain).name for domain in trained)
                cell = Cell(prepared.recipe.name, Place(source, target, seed), models)
                jobs[cell], folders[cell] = replace(job, command=alone(job)), prepared.run_folder()
    seen: dict[Path, Cell] = {}
    for cell, folder in folders.items():
        if folder in seen:
            raise RecipeError(f"{seen[folder]} and {cell} are the same run under two names; name every data set once")
        seen[folder] = cell
    if len(profiles) > 1:
        raise RecipeError(f"the runs have profiles {', '.join(sorted(profiles))}: give --profile, or a table for each")
    return Planned(jobs, folders, profiles.pop())


def _loaded(recipe: str, plan: Plan) -> Recipe:
    """Return a recipe; of several, the one that does not take a setting is named."""
    try:
        return load(recipe, settings=plan.settings, allow_code=plan.allow_code)
    except RecipeError as error:
        if len(plan.recipes) > 1 and recipe not in str(error):
            raise RecipeError(f"recipe {recipe}: {error}") from error
        raise


def alone(job: Job) -> str:
    """Return the command that makes one run alone.

    >>> alone(Job(recipe="pul", source="plaza", target="campus", seed=1, threads=1, bound=True, pictures=False))
    'uda-reid adapt --recipe pul --src plaza --tgt campus --seed 1 --threads 1 --device auto --bound --no-pictures'
    """
    words = ["uda-reid", "adapt", "--recipe", job.recipe, "--src", job.source, "--tgt", str(job.target)]
    words += ["--seed", str(job.seed), "--threads", str(job.threads), "--device", job.device]
    usual = Job(recipe="", source="")
    for option in ("data", "out", "profile", "precision", "weights", "protocol"):
        value = getattr(job, option)
        words += [f"--{option}", str(value)] if value != getattr(usual, option) else []
    words += [f"--{option}" for option in wanted_by(job)] + ["--map"] * job.embedding_map
    words += ["--no-pictures"] * (not job.pictures)
    words += ["--allow-code"] * job.allow_code + ["--skip-damaged"] * job.skip_damaged
    return shlex.join([*words, *(word for setting in job.settings for word in ("--set", setting))])


def matches(cell: Cell, pattern: str) -> bool:
    """Return whether `source:target:recipe:seed`, or the first of these, with * and ? for anything, names a run.

    >>> cell = Cell("pul", Place("plaza", "campus", 1))
    >>> [matches(cell, pattern) for pattern in ("plaza", "*:campus:pul", "*:*:*:1", "plaza:station", "*:*:adda")]
    [True, True, True, False, False]
    """
    names, parts = (*cell.place.pair, cell.recipe, str(cell.place.seed)), pattern.split(":")
    return len(parts) <= len(names) and all(map(fnmatchcase, names, parts))


def wanted_by(job: Job) -> tuple[str, ...]:
    """Return the names of the parts that a job wants beside the scores."""
    return tuple(name for name in WANTED if getattr(job, name))
