"""The data doctor: what is in a data set, what is wrong with it, and what it can be used for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from uda_reid.data.images import Progress
from uda_reid.data.layouts import DATASETS, Counts, describe
from uda_reid.data.layouts.labels import count
from uda_reid.data.layouts.manifest import TABLE
from uda_reid.doctor.findings import LEVELS, NAMED, Finding, Level
from uda_reid.doctor.people import Search, cameras, identities, in_test, in_train, search
from uda_reid.doctor.pictures import SPLITS, Damaged, copies, decoded, look, repeated
from uda_reid.run import QUIET
from uda_reid.terminal import words
from uda_reid.types import Domain

__all__ = ["Diagnosis", "Finding", "Level", "Verdict", "examine", "show", "to_json"]

FORMAT = 1
"""Raised when a field of the JSON changes its meaning."""
RETOLD = (
    "every answer is right and scores say nothing",
    "both in train and query",
    "nothing can be scored on it",
    "training images have no identities",
    "no file name holds a camera",
)
"""Parts of the layouts' notes that the doctor tells itself, with more detail."""
LOST = ("not named by identity and camera and so left out", "of a kind that is not read", "to nothing, so what lay")
"""Parts of the layouts' notes on images that are there and yet not in the data set."""
FEWEST = 2
"""Images to adapt to, and identities to train on."""
STYLES: Mapping[Level, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Verdict:
    """Whether a data set can be used for something, and why (not)."""

    works: bool
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a data set.

    Args:
        name: the data set.
        root: its folder.
        layout: the layout that it was recognised as.
        counts: what its splits hold.
        findings: errors first, then warnings, then notes.
        target: whether a model can be adapted to it.
        source: whether a model can be trained on it with labels.
        scoring: whether a model can be scored on it.
        unreadable: split -> all its images that cannot be read; empty where no image was opened.
    """

    name: str
    root: Path
    layout: str
    counts: tuple[Counts, ...]
    findings: tuple[Finding, ...]
    target: Verdict
    source: Verdict
    scoring: Verdict
    unreadable: Mapping[str, tuple[Damaged, ...]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 where adaptation to the data set works, 2 where it fails."""
        return 0 if self.target.works else 2


def examine(domain: Domain, *, progress: Progress = QUIET.progress, decode: bool = True) -> Diagnosis:
    """Look at everything that decides what a data set can be used for.

    Args:
        domain: the data set, as `data.layouts.read` or `job.open_domain` give it.
        progress: shows how many images have passed, as `Run.progress` does.
        decode: open every image; without, damaged ones and copies stay unknown and nothing is said about sizes.
    """
    found = search(domain)
    damaged: Mapping[str, tuple[Damaged, ...]] = {}
    findings = list(_noted(domain))
    if decode:
        looked = look(domain, progress=progress)
        findings += decoded(domain, looked)
        damaged = looked.unreadable
        findings += repeated(domain, copies(domain, progress=progress), found.labels)
    else:
        text = "no image was opened, so damaged ones and copies of one another are not known"
        findings.append(Finding("note", text))
    findings += in_train(domain.train)
    findings += in_test(domain, found)
    findings += cameras(domain)
    unreadable = {name: len(damaged.get(name, ())) for name in SPLITS}
    return Diagnosis(
        name=domain.name,
        root=domain.root,
        layout=domain.layout,
        counts=describe(domain),
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
        target=_target(domain, found, unreadable),
        source=_source(domain, unreadable),
        scoring=_scoring(found, unreadable),
        unreadable=damaged,
    )


def _noted(domain: Domain) -> Iterator[Finding]:
    """Yield the reader's notes; a known data set that differs from what was published is more than a note."""
    known = DATASETS.get(re.sub(r"-split\d+$", "", domain.name))
    # A folder of somebody's own may be called like a published data set.
    if known and domain.layout not in {layout.title for layout in (*known.layouts, TABLE)}:
        known = None
    surprises = known.surprises(domain) if known else ()
    if known and known.remark:
        yield Finding("note", f"{known.title}: {known.remark}")
    for note in domain.notes:
        if not any(part in note for part in RETOLD):
            grave = note in surprises or any(part in note for part in LOST)
            yield Finding("warning" if grave else "note", note)


def _target(domain: Domain, found: Search, unreadable: Mapping[str, int]) -> Verdict:
    images = len(domain.train)
    faults = _unread(unreadable, ("train",) if found.missing else SPLITS)
    if images < FEWEST:
        faults.append(f"{count(images, 'training image')} to learn from, where {FEWEST} are the least")
    if found.fault:
        faults.append(found.fault)
    scored = "without scores" if found.missing else "with scores"
    return Verdict(not faults, "; ".join(faults) or f"{count(images, 'training image')}, {scored}")


def _source(domain: Domain, unreadable: Mapping[str, int]) -> Verdict:
    known = len(identities(domain.train))
    faults = _unread(unreadable, ("train",))
    if known < FEWEST:
        faults.append(f"{count(known, 'identity', 'identities')} in train, where {FEWEST} are the least")
    return Verdict(
        not faults,
        "; ".join(faults) or f"{count(len(domain.train), 'image')} of {count(known, 'identity', 'identities')}",
    )


def _scoring(found: Search, unreadable: Mapping[str, int]) -> Verdict:
    faults = _unread(unreadable, ("query", "gallery"))
    if found.labels is None or found.fault:
        return Verdict(False, "; ".join([*faults, found.fault or found.missing]))
    valid = f"{int(found.valid.sum()):,} of {len(found.valid):,}"
    return Verdict(not faults, "; ".join(faults) or f"protocol {found.labels.protocol}, queries with a match: {valid}")


def _unread(unreadable: Mapping[str, int], splits: Sequence[str]) -> list[str]:
    return [f"{count(unreadable[name], 'unreadable image')} in {name}" for name in splits if unreadable[name]]


def to_json(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as JSON text; everything that was found is in it, however much."""
    damaged = [
        {"split": name, "path": str(each.path), "why": each.why}
        for name, files in diagnosis.unreadable.items()
        for each in files
    ]
    content = {
        "format": FORMAT,
        "name": diagnosis.name,
        "root": str(diagnosis.root),
        "layout": diagnosis.layout,
        "counts": [counts._asdict() for counts in diagnosis.counts],
        "findings": [{key: value for key, value in asdict(finding).items() if value} for finding in diagnosis.findings],
        "unreadable": damaged,
        "verdicts": {name: asdict(verdict) for name, verdict in _verdicts(diagnosis).items()},
        "exit_code": diagnosis.exit_code,
    }
    return json.dumps(content, indent=1) + "\n"


def show(diagnosis: Diagnosis) -> RenderableType:
    """Return a diagnosis for a terminal: counts, findings, verdicts."""
    counts = Table(box=SIMPLE_HEAD)
    counts.add_column("split", no_wrap=True)
    columns = ("images", "identities", "cameras", "distractors", "junk")
    for column in columns:
        counts.add_column(column, justify="right", no_wrap=True)
    for split in diagnosis.counts:
        numbers = split._asdict()
        counts.add_row(split.split, *(f"{numbers[column]:,}" if numbers[column] else "-" for column in columns))
    findings, verdicts = _lines(), _lines()
    for finding in diagnosis.findings:
        findings.add_row(words(finding.level, STYLES[finding.level]), words(finding.text))
    for name, verdict in _verdicts(diagnosis).items():
        word = words("works", "green") if verdict.works else words("fails", "bold red")
        verdicts.add_row(words(name), words("").append_text(word).append_text(words(f": {verdict.why}")))
    cut = any(len(finding.items) > NAMED for finding in diagnosis.findings)
    more = [words("`--json` gives the lists whole", "dim")] if cut else []
    title = words(f"{diagnosis.name}: {diagnosis.layout or 'of no known layout'}", "bold")
    return Group(title, words(str(diagnosis.root), "dim"), counts, findings, *more, "", verdicts)


def _lines() -> Table:
    table = Table.grid(padding=(0, 2, 0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _verdicts(diagnosis: Diagnosis) -> dict[str, Verdict]:
    return {"as a target": diagnosis.target, "as a source": diagnosis.source, "scoring": diagnosis.scoring}
