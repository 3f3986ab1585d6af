"""Recipes: a short YAML file names a strategy and what differs from its defaults.

Two levels, no inheritance, no interpolation. Every value, in a file and after `--set` alike, is read by
the type of the field it is for, so YAML's guesses (`1e-3` is text, `no` is False, `010` is 8) play no part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import yaml

from uda_reid.errors import RecipeError
from uda_reid.models.encoder import EncoderSpec
from uda_reid.options import Given, build, names, parse_settings, spell, suggest
from uda_reid.pretraining import Pretrain
from uda_reid.recipe.files import SECTIONS, File, locate, parse
from uda_reid.shipped import shipped
from uda_reid.strategies import find
from uda_reid.types import Strategy

T = TypeVar("T")
Profile = Literal["paper", "small", "scenes"]
Fidelity = Literal["official", "text", "reconstruction"]

SHARED: Mapping[str, tuple[EncoderSpec, Pretrain]] = {
    "small": (
        EncoderSpec(backbone="mobilenet_v2", height=128, width=64, weights="imagenet"),
        Pretrain(epochs=10, warmup=1, milestones=(6, 9), batch=32),
    ),
    "scenes": (
        EncoderSpec(backbone="resnet_tiny", height=64, width=32, weights="none"),
        Pretrain(lr=2e-3, epochs=30, warmup=3, schedule="cosine", batch=32),
    ),
}
"""Encoder and pretraining of the short profiles, for every recipe: all strategies start from one model."""
SMALL_TARGET = 5000
"""A target with fewer training images than this gets the profile `small`."""
OF_PROFILES = re.compile(r"in profiles? (\w+(?:(?:, | and )\w+)*) ")
"""How a note begins that is about these profiles alone: `in profiles small and scenes ...`."""
LONGEST_NAME = 100
"""Bytes of a recipe's name: with the names of two domains it is a folder's, of which file systems take 255."""
IMAGES_PER_CLUSTER = 8
"""In the short profiles a strategy's `clusters` is at most the target's training images divided by this..."""
IMAGES_PER_CAMERA = 2
"""...or by this for each camera, where that is less: with two cameras a person may have no more than four images."""
OF_CAMERAS = "of each of the target's"
"""What a note on clusters says where their bound follows from the number of cameras."""
MOST_PER_CAMERA = 16
"""Images of one camera in a cluster that no person has: in published sets of single images they have 1 to 8."""


@dataclass(frozen=True)
class Recipe:
    """A strategy with all its options, and how its source model is made.

    Args:
        name: how it is called in tables.
        path: the file it was read from.
        strategy_name: built-in name, entry point or `package.module:Class`.
        strategy: the strategy itself.
        paper: where the method was published.
        fidelity: what it follows: the authors' code, the paper's text, or a reconstruction with open choices.
        encoder: what the source model is.
        pretrain: how the source model is trained.
        profile: whose schedule the options follow.
        notes: what a reader of its numbers should know, one line each.
    """

    name: str
    path: Path = field(compare=False)
    strategy_name: str
    strategy: Strategy
    paper: str
    fidelity: Fidelity
    encoder: EncoderSpec
    pretrain: Pretrain
    profile: Profile
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Header:
    """The top level of a recipe file, sections aside; `name` and `profile` stand in resolved files only."""

    strategy: str
    paper: str = ""
    fidelity: Fidelity = "reconstruction"
    name: str = ""
    profile: Profile | None = None
    notes: tuple[str, ...] = ()


def recipes() -> dict[str, str]:
    """Return the shipped recipes: name -> one line about each.

    >>> recipes()["pul"]
    'Fan et al., ToMM 2018, doi 10.1145/3243316 (official)'
    """
    found = {}
    for path in sorted(shipped("recipes").glob("*.yaml")):
        header = _header(parse(path, path.name, names(_Header)), path.name)
        found[path.stem] = f"{header.paper or header.strategy} ({header.fidelity})"
    return found


def choose_profile(requested: str | None, *, built_in: bool, target_images: int) -> Profile:
    """Return the profile to use: the requested one, or the one that fits the data.

    Args:
        requested: what the user asked for, or None.
        built_in: True where source and target both are built-in scenes.
        target_images: number of the target's training images.

    Raises:
        RecipeError: no profile has the requested name.

    >>> choose_profile(None, built_in=False, target_images=12_936)
    'paper'
    """
    if requested is not None:
        for profile in get_args(Profile):
            if requested == profile:
                return profile  # type: ignore[no-any-return]
        raise RecipeError(f"--profile {requested}: unknown profile; {suggest(requested, get_args(Profile))}")
    if built_in:
        return "scenes"
    return "small" if target_images < SMALL_TARGET else "paper"


def load(
    name_or_path: str | Path,
    *,
    profile: str = "paper",
    settings: Sequence[str] = (),
    target_images: int | None = None,
    target_cameras: int | None = None,
    allow_code: bool = False,
) -> Recipe:
    """Read a recipe, apply a profile and then settings to it, and check every value.

    A resolved recipe (`to_yaml`) records its profile: it is taken as it is, and `profile` is not applied.

    Args:
        name_or_path: name of a shipped recipe, or a YAML file.
        profile: `paper` (the file as it is), `small` or `scenes`.
        settings: options as `section.option=value`, sections are encoder, pretrain and adapt; the last wins.
        target_images: number of the target's training images, which bounds the clusters; None: not known.
        target_cameras: number of the target's cameras, which bounds them too; None: not known.
        allow_code: whether the recipe may name a class that is neither built in nor offered by an installed package:
            its module is imported, which runs it.

    Raises:
        RecipeError: recipe or profile are unknown, or something in file or settings is wrong; one line.

    >>> load("pul", profile="scenes", target_images=400).notes[-1]
    'clusters 700 -> 50: at most one per 8 training images in profile scenes'
    """
    path, shown = locate(name_or_path)
    file = parse(path, shown, names(_Header))
    given = parse_settings(settings, ("encoder", "pretrain", "adapt"))
    asked = choose_profile(profile, built_in=False, target_images=0)
    recipe, short = _as_written(file, path, shown, allow_code=allow_code)
    if file.header.get("profile") is None and asked != "paper":
        recipe = _override(_shorten(recipe, asked, short[asked]), given, shown)
        if target_images is not None and "clusters" not in given["adapt"]:
            recipe = _capped(recipe, target_images, target_cameras)
    else:
        recipe = _override(recipe, given, shown)
    nowhere = Given(None, f"{shown}: adapt.clusters")
    origin = given["adapt"].get("clusters") or file.sections["adapt"].get("clusters", nowhere)
    bounded = "clusters" not in given["adapt"] and file.header.get("profile") is None
    _check_clusters(recipe.strategy, target_images, origin.where, " or take --profile small" if bounded else "")
    return replace(recipe, notes=tuple(note for note in recipe.notes if _concerns(note, recipe.profile)))


def _concerns(note: str, profile: Profile) -> bool:
    """Return whether a note is about a profile: about this one, or about no profile in particular."""
    found = OF_PROFILES.match(note)
    named = re.split(", | and ", found[1]) if found else []
    return profile in named or not named or not set(named) <= set(get_args(Profile))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data with every option of every section."""
    return {
        "name": recipe.name,
        "strategy": recipe.strategy_name,
        "paper": recipe.paper,
        "fidelity": recipe.fidelity,
        "profile": recipe.profile,
        "notes": list(recipe.notes),
        "encoder": _plain(recipe.encoder),
        "pretrain": _plain(recipe.pretrain),
        "adapt": _plain(recipe.strategy),
    }


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML text, which `load` reads back to an equal recipe."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True, width=math.inf)


def _plain(options: Any) -> dict[str, Any]:
    return {name: _plain_value(getattr(options, name)) for name in names(type(options))}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain_value(member) for member in value]
    return str(value) if isinstance(value, Path) else value


def _header(file: File, shown: str) -> _Header:
    return build(_Header, file.header, prefix=f"{shown}: ", also=SECTIONS)


def _as_written(file: File, path: Path, shown: str, *, allow_code: bool) -> tuple[Recipe, dict[str, Strategy]]:
    """Return the recipe as the file has it, and its strategy by short profile: all of it is checked."""
    header = _header(file, shown)
    schema = _schema(header.strategy, file.header["strategy"].where, allow_code=allow_code)

    def section(options: type[T], name: str, base: T | None = None) -> T:
        return build(options, file.sections[name], prefix=f"{shown}: {name}.", base=base)

    strategy = section(schema, "adapt")
    recipe = Recipe(
        name=_folder_name(header.name or path.stem, file.header["name"].where if header.name else shown),
        path=path,
        strategy_name=header.strategy,
        strategy=strategy,
        paper=header.paper,
        fidelity=header.fidelity,
        encoder=section(EncoderSpec, "encoder"),
        pretrain=section(Pretrain, "pretrain"),
        profile=header.profile or "paper",
        notes=header.notes,
    )
    return recipe, {profile: section(schema, profile, strategy) for profile in SHARED}


def _folder_name(name: str, where: str) -> str:
    """Return a recipe's name, which begins the name of a run's folder, if it cannot lead out of the folder of runs.

    Raises:
        RecipeError: it is longer than a file's name may be, or has other signs than letters, digits, `-`, `_`, `.`
            and spaces, or begins with one of these.
    """
    if not re.fullmatch(r"\w[\w .-]*", name) or len(name.encode()) > LONGEST_NAME:
        rule = f"letters, digits, -, _, . and spaces, first a letter or digit, at most {LONGEST_NAME} bytes"
        raise RecipeError(f"{where}: {name!r} cannot begin the name of a folder; write name: NAME with {rule}")
    return name


def _schema(name: str, where: str, *, allow_code: bool) -> type[Any]:
    """Return the strategy's class, whose fields are the options of `adapt`."""
    try:
        schema = find(name, allow_code=allow_code)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error.__cause__
    if not is_dataclass(schema):
        raise RecipeError(f"{where}: {name} is not a dataclass, and its fields are what a recipe sets")
    return schema


def _clusters(strategy: Strategy) -> int | None:
    """Return how many clusters a strategy was told to make; None where it finds their number itself."""
    clusters = getattr(strategy, "clusters", None)
    return clusters if type(clusters) is int and getattr(strategy, "method", "kmeans") == "kmeans" else None


def _capped(recipe: Recipe, images: int, cameras: int | None) -> Recipe:
    """Return the recipe with no more clusters than fit a short profile."""
    few = cameras is not None and IMAGES_PER_CAMERA * cameras < IMAGES_PER_CLUSTER
    each = IMAGES_PER_CAMERA * cameras if few and cameras else IMAGES_PER_CLUSTER
    most = max(images // each, 2)  # two at least: one cluster would tell nothing apart
    clusters = _clusters(recipe.strategy)
    if clusters is None or clusters <= most:
        return recipe
    limit = f"at most one per {each} training images in profile {recipe.profile}"
    limit += f", which are {IMAGES_PER_CAMERA} {OF_CAMERAS} {cameras} cameras" if few else ""
    changes: dict[str, Any] = {"clusters": most}
    strategy = replace(cast(Any, recipe.strategy), **changes)
    return replace(recipe, strategy=strategy, notes=(*recipe.notes, f"clusters {clusters} -> {most}: {limit}"))


def bounded_by_cameras(recipe: Recipe) -> bool:
    """Return whether the number of the target's cameras bounds the recipe's clusters, for the ledger."""
    return any(OF_CAMERAS in note for note in recipe.notes)


def _shorten(recipe: Recipe, profile: Profile, strategy: Strategy) -> Recipe:
    """Return the recipe with a short profile's encoder, pretraining and schedule."""
    notes = [
        f"encoder, pretraining and schedule are those of profile {profile}, the same for every recipe: "
        "its numbers are not the publication's"
    ]
    encoder, pretrain = SHARED[profile]
    return replace(
        recipe,
        encoder=encoder,
        pretrain=pretrain,
        strategy=strategy,
        profile=profile,
        notes=(*recipe.notes, *notes),
    )


def _check_clusters(strategy: Strategy, images: int | None, where: str, other: str) -> None:
    clusters = _clusters(strategy)
    if images is not None and clusters is not None and clusters > images:
        raise RecipeError(
            f"{where}: {clusters} clusters are more than the target's {images} training images; "
            f"set fewer (--set adapt.clusters={max(images // 4, 2)}, say){other}"
        )


def cluster_warning(strategy: Strategy, images: int, cameras: int | None) -> str:
    """Return why the number of clusters that a strategy makes cannot be that of the identities; nothing where it can.

    Args:
        strategy: any.
        images: number of the target's training images.
        cameras: number of its cameras; None: not known.

    >>> from uda_reid.strategies.pul import PUL
    >>> cluster_warning(PUL(clusters=60), 100, 2)
    '60 clusters of 100 training images cannot be the identities: one that two images show needs two in its cluster'
    >>> cluster_warning(PUL(clusters=10), 1000, 2)
    '10 clusters of 1000 training images are 50 images of each camera in a cluster: expect several identities in each'
    >>> cluster_warning(PUL(clusters=96), 769, 5)
    ''
    """
    clusters = _clusters(strategy)
    if clusters is None:
        return ""
    shown, each = f"{clusters} clusters of {images} training images", images / clusters / (cameras or 1)
    if clusters > max(images // 2, 2):
        return f"{shown} cannot be the identities: one that two images show needs two in its cluster"
    if cameras is not None and each > MOST_PER_CAMERA:
        return f"{shown} are {each:.0f} images of each camera in a cluster: expect several identities in each"
    return ""


def _override(recipe: Recipe, given: Mapping[str, Mapping[str, Given]], shown: str) -> Recipe:
    """Return the recipe with settings, and with a note on every value that they change."""
    sections: dict[str, Any] = {}
    notes = list(recipe.notes)
    for section, before in (
        ("encoder", recipe.encoder),
        ("pretrain", recipe.pretrain),
        ("adapt", recipe.strategy),
    ):
        after = build(type(before), given[section], prefix=f"{shown}: {section}.", base=before)
        sections[section] = after
        for name in given[section]:
            old, new = spell(getattr(before, name)), spell(getattr(after, name))
            if old != new:
                notes.append(f"{section}.{name} {old} -> {new}: set on the command line")
    return replace(
        recipe,
        encoder=sections["encoder"],
        pretrain=sections["pretrain"],
        strategy=sections["adapt"],
        notes=tuple(notes),
    )
