"""The folder of a matrix: which runs it is made of, as `matrix.json`, and what is written beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uda_reid.errors import CheckpointError
from uda_reid.matrix.left import lacks, record_in
from uda_reid.matrix.page import render
from uda_reid.matrix.plan import Cell, Pair, Place, Planned, wanted_by
from uda_reid.matrix.published import for_pairs
from uda_reid.matrix.results import Summary
from uda_reid.matrix.summary import Runs, summarise
from uda_reid.matrix.tables import comma_separated, json_lines, latex, markdown
from uda_reid.ops.bootstrap import RESAMPLES
from uda_reid.pipeline.folders import locked
from uda_reid.reading import read_text
from uda_reid.report import EMBEDDING_MAP, PAGE, RECORD, Record, Shown, read_map, read_shown, whole, write_html
from uda_reid.report.records import DAMAGE
from uda_reid.run import Silent
from uda_reid.writing import replace_file

MATRIX = "matrix.json"
MAP = "map"
PARTS = {"bound": "bound", "forgetting": "scores on its source", "gap": "gap", "selection": "proxies", "map": "map"}
"""What the parts of a record are called, by the options of `job.Job`."""
FORMAT = 1
SINGLY = 3
"""How many runs that are not made yet are told of one by one."""


@dataclass(frozen=True)
class Entry:
    """One run of a matrix: what it is, where it lies, which parts are wanted, and why it failed, if it did."""

    recipe: str
    place: Place
    folder: str
    command: str
    wanted: tuple[str, ...] = ()
    failure: str = ""

    def __str__(self) -> str:
        """Return what the run is called."""
        return f"{self.place.source} -> {self.place.target}, {self.recipe}, seed {self.place.seed}"


@dataclass(frozen=True)
class Matrix:
    """A matrix on disk.

    Args:
        root: its folder.
        command: the command line that makes it.
        profile: of all its runs.
        entries: its runs, in their order.
    """

    root: Path
    command: str
    profile: str
    entries: tuple[Entry, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs, in their order."""
        return tuple(dict.fromkeys(entry.place.pair for entry in self.entries))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in their order."""
        return tuple(dict.fromkeys(entry.place.seed for entry in self.entries))


def matrix_of(planned: Planned, root: Path, command: str, *, failed: Mapping[Cell, str] | None = None) -> Matrix:
    """Return the matrix of a plan, with what went wrong, by cell."""
    entries = (
        Entry(
            recipe=cell.recipe,
            place=cell.place,
            folder=planned.folders[cell].name,
            command=job.command,
            wanted=(*wanted_by(job), *[MAP] * job.embedding_map),
            failure=(failed or {}).get(cell, ""),
        )
        for cell, job in planned.jobs.items()
    )
    return Matrix(root, command, planned.profile, tuple(entries))


def write_matrix(matrix: Matrix) -> None:
    """Write `matrix.json`, whole or not at all."""
    entries = [
        {
            "source": entry.place.source, "target": entry.place.target, "recipe": entry.recipe,
            "seed": entry.place.seed, "folder": entry.folder, "command": entry.command,
            "wanted": list(entry.wanted), "failure": entry.failure,
        }
        for entry in matrix.entries
    ]  # fmt: skip
    data = {"format": FORMAT, "command": matrix.command, "profile": matrix.profile, "runs": entries}
    replace_file(matrix.root / MATRIX, (json.dumps(data, indent=1) + "\n").encode())


def read_matrix(root: Path) -> Matrix:
    """Read `matrix.json` of a folder.

    Raises:
        CheckpointError: it is missing, or is not one of this version.
    """
    path = root / MATRIX
    try:
        data = json.loads(read_text(path))
        if data["format"] != FORMAT or not data["runs"]:
            raise ValueError("another format, or no run")
        entries = tuple(
            Entry(
                str(each["recipe"]), Place(str(each["source"]), str(each["target"]), int(each["seed"])),
                _beside(str(each["folder"])), str(each["command"]),
                tuple(map(str, each["wanted"])), str(each["failure"]),
            )
            for each in data["runs"]
        )  # fmt: skip
        return Matrix(root, str(data["command"]), str(data["profile"]), entries)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: is not the list of a matrix of this version of uda_reid ({error}); run `uda-reid matrix` again"
        ) from error


def _beside(folder: str) -> str:
    """Return the name of a run's folder, which lies in the matrix's own."""
    name = Path(folder).name
    if name in ("", ".."):
        raise ValueError(f"{folder!r} is no name of a folder")
    return name


def known_failures(root: Path, planned: Planned) -> dict[Cell, str]:
    """Return why runs of a plan failed when an earlier command in this folder tried them, by cell."""
    if not (root / MATRIX).is_file():
        return {}
    try:
        before = {entry.folder: entry.failure for entry in read_matrix(root).entries}
    except CheckpointError:
        return {}
    found = {cell: before.get(folder.name, "") for cell, folder in planned.folders.items()}
    return {cell: failure for cell, failure in found.items() if failure}


def replaced(root: Path, planned: Planned) -> list[str]:
    """Return what to say where a folder's tables had runs that a plan has not: the plan's take their place."""
    try:
        before = read_matrix(root)
    except CheckpointError:
        return []
    left = {entry.folder for entry in before.entries} - {folder.name for folder in planned.folders.values()}
    if not left:
        return []
    return [
        f"note: the tables in {root} were of {len(before.entries)} runs, {len(left)} of which are not in this matrix; "
        f"they stay on disk, and this brings their tables back: {before.command}"
    ]


def collect(matrix: Matrix) -> tuple[dict[str, dict[Place, Record]], tuple[str, ...]]:
    """Return the finished runs by recipe and place, and what is missing, one line each; many that wait in one."""
    runs: dict[str, dict[Place, Record]] = {}
    missing, waiting = [], []
    for entry in matrix.entries:
        record = record_in(matrix.root / entry.folder)
        lacking = lacks(record, entry.wanted) if record else ()
        if MAP in entry.wanted and not whole(matrix.root / entry.folder / EMBEDDING_MAP, read_map):
            lacking = (*lacking, MAP)
        if record is not None:
            runs.setdefault(entry.recipe, {})[entry.place] = record
        if record is None and (entry.failure or (matrix.root / entry.folder / RECORD).is_file()):
            missing.append(f"{entry} ({entry.failure or 'its record is damaged'})")
        elif record is None:
            waiting.append(f"{entry} (not made yet)")
        elif lacking or entry.failure:
            parts = ", ".join(PARTS[name] for name in lacking)
            told = f"has no {parts}" if lacking else "is whole, from an earlier start"
            missing.append(f"of {entry}: it {told}{f' ({entry.failure})' if entry.failure else ''}")
    if len(waiting) > SINGLY:
        count, first = len(waiting), waiting[0].removesuffix(" (not made yet)")
        told = "the line that makes the matrix lists them with --dry-run"
        waiting = [f"{count} of {len(matrix.entries)} runs are not made yet, from {first} on; {told}"]
    return runs, (*missing, *waiting)


def shown_by(matrix: Matrix, runs: Runs) -> tuple[dict[tuple[str, Place], Shown], list[str]]:
    """Return what the first finished run of every recipe and pair shows, and which of these cannot be read."""
    found: dict[tuple[str, Place], Shown] = {}
    failed = []
    for entry in matrix.entries:  # in the order of seeds
        done = entry.place in runs.get(entry.recipe, {})
        if done and not any(key[0] == entry.recipe and key[1].pair == entry.place.pair for key in found):
            try:
                found[entry.recipe, entry.place] = read_shown(matrix.root / entry.folder)
            except CheckpointError as error:
                failed.append(f"pictures of {entry} ({error})")
    return found, failed


def write_tables(
    matrix: Matrix, *, published: bool = False, pictures: bool = True, resamples: int = RESAMPLES
) -> tuple[Summary, list[Path]]:
    """Write what the finished runs say together beside them; return the summary and the files.

    Args:
        matrix: the matrix.
        published: put what others have published for its pairs beside it.
        pictures: put small copies of images into the page.
        resamples: draws of every interval.

    Raises:
        CheckpointError: no run has finished.
    """
    runs, missing = collect(matrix)
    if not runs:
        raise CheckpointError(f"{matrix.root}: none of its {len(matrix.entries)} runs has finished; {missing[0]}")
    shown, unread = shown_by(matrix, runs)
    summary = summarise(runs, matrix.pairs, matrix.seeds, missing=(*missing, *unread), resamples=resamples)
    if published:
        summary = replace(summary, published=for_pairs(matrix.pairs))
    made = origin(matrix, [record for places in runs.values() for record in places.values()])
    texts = {
        "matrix.md": markdown(summary, [f"```sh\n{matrix.command}\n```", made]),
        "matrix.csv": comma_separated(summary),
        "matrix.tex": latex(summary, [matrix.command, made]),
        "records.jsonl": json_lines(runs),
    }
    folders = {(entry.recipe, entry.place): entry.folder for entry in matrix.entries}
    page = render(summary, runs, folders, command=matrix.command, origin=made, shown=shown, pictures=pictures)
    # One after the other: tables of one state of the matrix do not come to lie beside a page of another.
    with locked(matrix.root, work="writing the tables of this matrix", waiting=Silent()):
        for name, text in texts.items():
            replace_file(matrix.root / name, text.encode("utf-8", "replace"))
        write_html(matrix.root / PAGE, page)
    return summary, [matrix.root / name for name in (*texts, PAGE)]


def origin(matrix: Matrix, records: Sequence[Record]) -> str:
    """Return everything that the numbers depend on, in a sentence."""
    surroundings = sorted(
        {
            f"torch {each.environment['torch']}, {each.environment['device']}, {each.environment['processor']}, "
            f"{each.environment['threads']} threads"
            for each in records
        }
    )
    protocols = ", ".join(sorted({record.adapted.scored.protocol for record in records}))
    versions = ", ".join(sorted({record.version for record in records}))
    counts = {record.target: record.adapted.scored.counted for record in records}
    queries = ", ".join(f"{count} on {target}" for target, count in counts.items())
    return (
        f"uda_reid {versions}, profile {matrix.profile}, seeds {', '.join(map(str, matrix.seeds))}, "
        f"protocol {protocols}, checkpoint last; counted queries: {queries}; {'; '.join(surroundings)}."
    )
