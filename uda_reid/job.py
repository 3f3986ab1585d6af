"""What is to be done, and everything that is known before any training: domains, recipe, device, names of folders."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uda_reid import __version__
from uda_reid.data.images import without_damaged
from uda_reid.data.layouts import SPLITS, listing, read
from uda_reid.data.scenes import SCENES, ensure
from uda_reid.data.union import union
from uda_reid.errors import DataError, RecipeError
from uda_reid.evaluation import check_protocol
from uda_reid.launch import Stop
from uda_reid.models.encoder import find_weights
from uda_reid.pretraining import check_identities
from uda_reid.recipe import Recipe, choose_profile, cluster_warning, load, resolved
from uda_reid.report import BOUND, LABELLED, SOURCE_ONLY, Facts, same_labels
from uda_reid.run import Precision, Reporter, Run, Silent
from uda_reid.training.checkpoint import CheckpointFolder
from uda_reid.training.devices import digest_of, pick_device, threads_in_use
from uda_reid.training.meeting import join
from uda_reid.types import Domain, Source
from uda_reid.unreadable import TOLERATED, Unreadable

FEWEST = 2
"""Training images of a target, of which one cluster or one variance cannot be made; `doctor` says the same."""
USUAL = {"accumulate": 1, "rollbacks": 0, "compiled": False}
"""Options of a run that change numbers and no recipe holds; others than these are part of a folder's name."""
LEFT_OUT, TEST_LEFT_OUT = "images left out, damaged", "test images left out, damaged"
"""Entries of a ledger: how many images of which data sets `--skip-damaged` has left out of a run, and of a scoring."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to carry where, and how.

    Args:
        recipe: name of a shipped recipe, or a YAML file.
        source: a built-in scene, a known data set, or a folder; several with commas between them.
        target: one of these for the target; None for pretraining alone.
        data: folder that holds the data sets.
        out: folder that holds runs and source models.
        seed: root of every random stream.
        profile: `paper`, `small` or `scenes`; None chooses by the domains.
        settings: options as `section.option=value`, over the recipe's.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        precision: `fp32`, `bf16` or `fp16`.
        accumulate: losses per update.
        rollbacks: how often training may go back to the beginning of an epoch and halve its learning rates, where a
            loss is not finite.
        compiled: compile the encoder's blocks (`torch.compile`).
        threads: CPU threads; 0 leaves torch's choice. Weights repeat bit by bit only for the same number.
        weights: folder with weights files, looked into before the usual places.
        bound: also train and score the supervised bound.
        forgetting: also score the source model and the adapted one on the source's own test images.
        gap: also measure how far apart the domains are before any adaptation (`gap.domain_gap`).
        selection: also measure, of every snapshot, what could be chosen by without labels (`selection.proxies`).
        embedding_map: also map where images of both domains lie before and after adaptation, for the page.
        protocol: evaluation protocol (`evaluation.Evaluator`).
        pictures: show the target's images in the report.
        allow_code: whether the recipe may name a strategy that is neither built in nor offered by an installed package.
        skip_damaged: leave out images that cannot be read, in all splits, and count them in the ledger.
        command: the command line, for the record.
    """

    recipe: str
    source: str
    target: str | None = None
    data: Path = Path("data")
    out: Path = Path("runs")
    seed: int = 0
    profile: Literal["paper", "small", "scenes"] | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    precision: Precision = "fp32"
    accumulate: int = 1
    rollbacks: int = 0
    compiled: bool = False
    threads: int = 0
    weights: Path | None = None
    bound: bool = False
    forgetting: bool = False
    gap: bool = False
    selection: bool = False
    embedding_map: bool = False
    protocol: str = "auto"
    pictures: bool = True
    allow_code: bool = False
    skip_damaged: bool = False
    command: str = ""


def open_domain(
    name: str, data: Path = Path("data"), *, reporter: Reporter | None = None, skip_damaged: Collection[str] = ()
) -> Domain:
    """Return a domain by name: a folder or known data set, or a built-in scene, drawn where it is not there yet.

    A folder in `data` that is called like a scene goes before the scene. Images that cannot be read are left out of the
    splits that `skip_damaged` names, whose images are all decoded for it (`data.images.without_damaged`).
    """
    reporter = reporter or Silent()
    domain = _opened(name, data, reporter)
    if skip_damaged:
        domain = without_damaged(domain, skip_damaged, progress=reporter.progress)
    for note in domain.notes:
        reporter.log(f"{domain.name}: {note}")
    return domain


def left_out(*domains: Domain, entry: str = LEFT_OUT) -> Facts:
    """Return the entry of a ledger on the images of some domains that were left out; nothing where there are none.

    >>> from uda_reid.types import Split
    >>> import numpy as np
    >>> split = Split((), np.zeros(0, dtype=np.int64), None)
    >>> left_out(Domain("beta", Path("beta"), split, split, split, left_out={"train": 3, "gallery": 1}))
    {'images left out, damaged': 'beta: 3 in train, 1 in gallery'}
    """
    counts = {
        domain.name: ", ".join(f"{many:,} in {split}" for split, many in domain.left_out.items())
        for domain in domains
        if domain.left_out
    }
    return {entry: "; ".join(f"{name}: {text}" for name, text in counts.items())} if counts else {}


def _opened(name: str, data: Path, reporter: Reporter) -> Domain:
    if name in SCENES and not (data / name).is_dir():
        folder = ensure(name, processes=min(os.cpu_count() or 1, 8), progress=reporter.progress)
        return replace(read(folder.name, folder.parent), name=name)
    return read(name, data, others=SCENES)


def names_of(source: str, data: Path) -> tuple[str, ...]:
    """Return the names of the sources that commas separate in `source`.

    Raises:
        RecipeError: a name is missing or there twice, or the commas are in the name of a folder.

    >>> names_of("plaza, station", Path("data"))
    ('plaza', 'station')
    """
    if "," not in source:
        return (source,)
    for folder in (data / source, os.path.expanduser(source)):  # noqa: PTH111 - nobody of that name may live here
        if os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where all names are too long for one
            raise RecipeError(
                f"--src {source}: a comma separates sources, and {folder} is a folder with commas in its path; "
                "give it another name, or a link without them"
            )
    names = tuple(name.strip() for name in source.split(","))
    if not all(names):
        raise RecipeError(f"--src {source}: a name is missing beside a comma; write two sources as plaza,station")
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise RecipeError(f"--src {source}: {twice} is there twice; name every source once")
    return names


def is_scene(domain: Domain) -> bool:
    """Return whether the domain is a built-in scene as it is drawn on first use."""
    return domain.name in SCENES and (domain.root / "scene.json").is_file()


def check_groups(recipe: Recipe, processes: int) -> None:
    """Refuse a group of batch norm that does not divide what a process holds of a batch.

    Raises:
        RecipeError: it does not.
    """
    group, options, strategy = recipe.encoder.bn_group, recipe.pretrain, recipe.strategy
    whole = options.batch
    if options.loss == "identification+triplet":  # of whole identities
        whole = max(options.batch // options.instances, 2) * options.instances
    batches = {"pretrain.batch": whole}
    if hasattr(strategy, "lr"):  # of one that does not train, normalisation by groups is none
        batches["adapt.batch"] = getattr(strategy, "batch", 0)
    for option, batch in batches.items():
        if group and batch % (group * processes):
            where = f"{option} {batch}" + (f" on {processes} processes" if processes > 1 else "")
            most = math.gcd(*batches.values())
            fit = [str(each) for each in range(2, most + 1) if most % (each * processes) == 0]
            mend = f"use {', '.join(fit)} or 0, the whole batch" if fit else "use 0, the whole batch, or other batches"
            raise RecipeError(f"encoder.bn_group {group} does not divide {where}; {mend}")


def code_of(strategy: object) -> str:
    """Return a digest of the files that hold a strategy; nothing for one of this package, known by its version.

    They are all files of its package, or the one module where there is no package.

    >>> code_of(Job(recipe="", source=""))
    ''
    """
    name = type(strategy).__module__
    top = sys.modules.get(name.partition(".")[0])
    place = getattr(top, "__file__", None) or getattr(sys.modules.get(name), "__file__", None)
    if name.partition(".")[0] == "uda_reid" or place is None:
        return ""
    path = Path(place)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return digest_of({file.relative_to(path.parent).as_posix(): digest_of(file) for file in files if file.is_file()})


def _listing(domain: Domain) -> str:
    """Return what a domain's images are known by; a ledger that counts images left out is another run's."""
    known = listing(domain)
    return digest_of([known, dict(domain.left_out)]) if domain.left_out else known


class Prepared:
    """A job with its domains read and its recipe resolved: everything that is known before any training."""

    def __init__(self, job: Job, reporter: Reporter, stop: Stop | None = None) -> None:
        self.job, self.reporter, self.stop = job, reporter, stop or Stop()
        # What was typed is checked before anything is drawn or read.
        recipe = load(job.recipe, settings=job.settings, allow_code=job.allow_code)
        if recipe.name in (SOURCE_ONLY, BOUND):
            raise RecipeError(f"a recipe cannot be called {recipe.name!r}, a row of every table; rename the file")
        check_protocol(job.protocol)
        if job.weights and not job.weights.is_dir():
            raise RecipeError(f"--weights {job.weights}: there is no such folder; give the one with the weights files")
        names = names_of(job.source, job.data)
        if (
            job.target
            and "," in job.target
            and not any(each.is_dir() for each in (Path(job.target), job.data / job.target))
        ):
            raise RecipeError(f"--tgt {job.target}: there is one target at a time; run the command once for each")
        self.processes, self.device = join(job.device)
        if job.precision == "fp16" and self.device == "cpu":
            raise RecipeError("--precision fp16 is for GPUs: a CPU computes it many times slower; use fp32 or bf16")
        self.aloud = reporter  # for what one process alone has met with
        if self.processes.rank:  # the main process tells what all of them do
            self.reporter = reporter = Silent()
        opened = partial(open_domain, data=job.data, reporter=reporter, skip_damaged=SPLITS if job.skip_damaged else ())
        self.sources = tuple(map(opened, names))
        targets: tuple[Domain, ...] = () if job.target is None else (opened(job.target),)
        # By name too: protocols of one data set share its folder.
        self.listings = {(domain.root, domain.name): _listing(domain) for domain in (*self.sources, *targets)}
        targets = tuple(self._called_apart(target, reporter) for target in targets)
        for domain in self.sources:
            check_identities(domain)
        self.source = union(self.sources)
        self.target = targets[0] if targets else self.source
        if len(self.sources) > 1:  # what is unusual about each, `open_domain` has said
            for note in self.source.notes:
                reporter.log(f"{self.source.name}: {note}")
        twin = self._twin(self.target) if targets else None
        same = same_labels([part.name for part in self.sources], twin.name) if twin else ""
        if same:
            reporter.log(f"warning: {same}")
        # The report tells it again where the names say it.
        self.copied = (
            f"{self.target.name} is a copy of {twin.name}: {same}" if twin and twin.name != self.target.name else ""
        )
        role = "the source" if len(self.sources) == 1 else "one of the sources"
        # Whatever a strategy says of the target's images: they were trained on, with labels.
        self.labels_known: Facts = {"target images used": f"with labels: it is {role}"} if same else {}
        if job.bound and not (self.target.labelled and len(self.target.query) and len(self.target.gallery)):
            needs = "training images with identities, queries and a gallery"
            raise RecipeError(f"--bound needs a target with {needs}, and {self.target.name} lacks some; leave it out")
        images = len(self.target.train)
        if targets and images < FEWEST and recipe.strategy_name != "source_only":
            raise DataError(
                f"{self.target.name} has {images} training image to adapt to, and {FEWEST} are the least; "
                "add images of the site, or take --recipe source_only"
            )
        built_in = all(map(is_scene, (*self.sources, *targets)))
        profile = choose_profile(job.profile, built_in=built_in, target_images=images)
        cams = self.target.train.cams
        cameras = None if cams is None else len(np.unique(cams))
        self.recipe = load(
            job.recipe,
            profile=profile,
            settings=job.settings,
            target_images=images if targets else None,
            target_cameras=cameras,
            allow_code=job.allow_code,
        )
        # Of video, a person has any number of images in a camera.
        seen = cameras if self.target.train.tracklets is None else None
        self.doubt = cluster_warning(self.recipe.strategy, images, seen) if targets else ""
        if self.doubt:
            reporter.log(f"warning: {self.doubt}")
        check_groups(self.recipe, self.processes.count)
        self.folders = (job.weights, job.data / "weights") if job.weights else (job.data / "weights",)
        self.weights = find_weights(self.recipe.encoder, self.folders)

    def _twin(self, target: Domain) -> Domain | None:
        """Return the source whose images and labels are those of a target, whatever the two are called."""
        wanted = self.listings[target.root, target.name]
        return next((part for part in self.sources if self.listings[part.root, part.name] == wanted), None)

    def _called_apart(self, target: Domain, reporter: Reporter) -> Domain:
        """Return a target under a name that no other data set among the sources has."""
        if target.name not in {part.name for part in self.sources} or self._twin(target):
            return target
        known = self.listings[target.root, target.name]
        other = replace(target, name=f"{target.name}-{known[:6]}")
        self.listings[other.root, other.name] = known
        reporter.log(f"source and target are different data sets called {target.name}: the target is {other.name} here")
        return other

    def run(self, store: Path, reporter: Reporter | None = None) -> Run:
        """Return the surroundings of a stage that keeps its states in `store`."""
        return Run(
            seed=self.job.seed,
            device=self.device,
            precision=self.job.precision,
            store=CheckpointFolder(store, log=(reporter or self.reporter).log),
            reporter=reporter or self.reporter,
            processes=self.processes,
            accumulate=self.job.accumulate,
            rollbacks=self.job.rollbacks,
            compiled=self.job.compiled,
            stop=self.stop,
        )

    def tolerant(self, run: Run) -> Run:
        """Return a run that may lose a few images in training; never in tests, where every image counts."""
        return replace(run, unreadable=Unreadable(TOLERATED, self.aloud.log if self.processes.rank else run.log))

    def source_folder(self, domain: Domain) -> Path:
        """Return where the model trained with labels on `domain` lives: the same for every strategy and target."""
        options = resolved(self.recipe)
        identity = self._digest({"data": self._listing(domain)}, {"encoder", "pretrain"}, options)
        return self.job.out / "sources" / f"{domain.name}-s{self.job.seed}-{identity}"

    def run_folder(self) -> Path:
        """Return this job's own folder, named by everything that its numbers depend on."""
        domains = {"source": self._listing(self.source), "target": self._listing(self.target)}
        options = resolved(self.recipe)
        keys = options.keys() - {"name", "notes", "paper", "fidelity"}
        code = code_of(self.recipe.strategy)
        content = {**domains, "protocol": self.job.protocol, **({"code": code} if code else {})}
        identity = self._digest(content, keys, options)
        names = f"{self.recipe.name}-{self.source.name}-{self.target.name}-s{self.job.seed}-{identity}"
        return self.job.out / names

    def _listing(self, domain: Domain) -> str:
        listings = [self.listings[part.root, part.name] for part in self.parts(domain)]
        return listings[0] if len(listings) == 1 else digest_of(listings)

    def name_of(self, domain: Domain) -> str:
        """Return a domain's name with the digest of its listing."""
        return f"{domain.name}-{digest_of(self._listing(domain))[:10]}"

    def parts(self, domain: Domain) -> tuple[Domain, ...]:
        """Return what a domain was joined from: the sources for the source, and any other domain itself."""
        return self.sources if domain is self.source else (domain,)

    def left_out(self, *domains: Domain) -> Facts:
        """Return what a ledger says of the images of some domains that were left out."""
        parts = {part.name: part for domain in domains for part in self.parts(domain)}
        return left_out(*parts.values())

    def labels_of(self, domain: Domain) -> str:
        """Return what the ledger says of the labels of `domain`: the data sets that they come from."""
        return ", ".join(part.name for part in self.parts(domain))

    def notes(self) -> tuple[str, ...]:
        """Return options of the run that are not the usual ones, and what was unusual about every domain, by name."""
        joined = (self.source,) if len(self.sources) > 1 else ()
        usual = {"precision": "fp32", **USUAL}
        options = (f"{name} {value}" for name in usual if (value := getattr(self.job, name)) != usual[name])
        domains = (
            f"{domain.name}: {note}" for domain in (*self.sources, *joined, self.target) for note in domain.notes
        )
        return (*options, *filter(None, (self.doubt, self.copied)), *domains)

    def _digest(self, content: Mapping[str, Any], keys: Iterable[str], options: Mapping[str, Any]) -> str:
        # Not the number of processes: with any, the weights are the same but for rounding, and a run goes on with any.
        return digest_of(
            {
                **content,
                **{key: options[key] for key in keys},
                "weights": "" if self.weights is None else digest_of(self.weights),
                "seed": self.job.seed,
                "precision": self.job.precision,
                **{name: value for name, usual in USUAL.items() if (value := getattr(self.job, name)) != usual},
                "device": pick_device(self.job.device),
                "threads": threads_in_use(),
                "version": __version__,
            }
        )[:10]

    def facts(self, source: Source) -> Facts:
        """Return what the ledger says of every model that starts from a source model."""
        encoder, pretraining = self.recipe.encoder, self.recipe.pretrain
        weights = "random" if self.weights is None else self.weights.name
        held_out = f"{len(source.validation)} of {len(source.pids)} images held out"
        return {
            LABELLED: self.labels_of(self.source),
            "target images used": "none",
            "target images in batch norm": False,
            "camera ids used": False,
            "checkpoint": "last",
            "encoder": f"{encoder.backbone} {encoder.height}x{encoder.width}, initial weights: {weights}",
            "pretraining": f"{pretraining.loss}, {pretraining.epochs} epochs, {held_out}",
            "re-ranking, test-time augmentation": "none",
            **self.labels_known,
        }
