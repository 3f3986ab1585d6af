"""Where a data set lies: from what was typed to the folder that holds it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from uda_reid.data.layouts.dataset import KnownDataset
from uda_reid.data.layouts.files import first_image, folder_called, folders_in
from uda_reid.data.layouts.known import DATASETS, find_known
from uda_reid.data.layouts.labels import SPLITS
from uda_reid.data.layouts.manifest import MANIFEST, TABLE
from uda_reid.data.layouts.unlabelled import UNLABELLED, is_marked
from uda_reid.errors import DataError
from uda_reid.options import closest

_NESTED = 2
"""How many folders deep a data set is looked for in folders that hold nothing else, as twice packed archives do."""


class Place(NamedTuple):
    """A folder that holds a data set, the one that was meant by its name or path, and what is unusual about both."""

    folder: Path
    meant: Path
    notes: tuple[str, ...] = ()


def place_of_known(known: KnownDataset, name: str, root: Path) -> Place:
    """Return where a known data set lies: in one of its places, or in a folder called as it was typed or by its title.

    Args:
        known: the data set.
        name: its name as it was typed, without the number of a split.
        root: the folder that holds data sets; a folder of that name in the working directory comes after it.

    Raises:
        DataError: it is in none of them, or only in another edition than the one that was typed.
    """
    places = _ordered(known, name)
    copies = [folder for place in places for folder in _spelt(place, root, name) if _holds(folder, known)]
    if not copies:
        folders = [folder for place in places for folder in _spelt(place, root, name)]
        folders += [Path(name)] if Path(name).is_dir() else []
        nested = (_entered(folder, known) for folder in folders)
        found = next((place for place in nested if _holds(place.folder, known)), None)
        if found is None:
            raise DataError(_missing(known, places, root, next(iter(folders), None)))
        return found
    return _of_edition(known, name, list(dict.fromkeys(copies)))


def place_of_folder(name: str, root: Path, others: Iterable[str]) -> Place:
    """Return where the data set of a folder's name or path lies.

    A name means a folder below `root` and then one in the working directory; a path means what it says.

    Raises:
        DataError: there is no such folder.
    """
    if not name.strip():
        raise DataError(f"no data set is named; known are {', '.join(DATASETS)}, or give a folder")
    typed, below = _typed(name), root / name
    is_path = typed.is_absolute() or re.match(r"\.\.?(/|$)", name) is not None or name.endswith("/")
    places = list(dict.fromkeys((typed, below) if is_path else (below, typed)))
    there = [place for place in places if place.is_dir()]
    if there:
        notes = []
        if not is_path and len(there) > 1 and not there[0].samefile(there[1]):
            notes.append(f"read from {there[0]}; for {name} in the working directory type ./{name}")
        found = _entered(there[0], find_known(there[0].name))
        return found._replace(notes=(*notes, *found.notes))
    for place in places:
        if place.is_file():
            raise DataError(f"{place} is a file; give the folder that holds the data set")
    raise DataError(_unknown(name, places, root, others))


def _entered(folder: Path, known: KnownDataset | None) -> Place:
    """Return the folder inside `folder` that holds the data set, where an archive or a habit nests it, with a note.

    Args:
        folder: one that may itself be in a layout; then it is the place.
        known: the data set that is looked for, also in its sub-places; None: any published one.
    """
    if _holds(folder, None) or UNLABELLED.recognises(folder):
        return Place(folder, folder)
    inner = next((inner for inner in _sub_places(folder, known) if _holds(inner, known)), None)
    inner = inner or _only(folder, known, _NESTED)
    if inner is None:
        return Place(folder, folder)
    return Place(inner, folder, (f"read from {inner}, where the data set lies",))


def _absent(root: Path) -> str:
    """Return, where there is no data folder, the words that say so."""
    return "" if root.is_dir() else f" (there is no folder {root})"


def _holds(folder: Path, known: KnownDataset | None) -> bool:
    """Return whether a folder holds a known data set; any of them where none is named."""
    published = known.layouts if known else [layout for each in DATASETS.values() for layout in each.layouts]
    return any(layout.recognises(folder) for layout in dict.fromkeys((TABLE, *published)))


def _sub_places(folder: Path, known: KnownDataset | None) -> Iterator[Path]:
    for place in known.places if known else ():
        head, _, rest = place.partition("/")
        if rest and head.casefold() == folder.name.casefold():
            yield from _spelt(rest, folder, "")


def _only(folder: Path, known: KnownDataset | None, depth: int) -> Path | None:
    """Return the folder that lies alone in another, or alone in that one, where it holds a data set."""
    inner = folders_in(folder)
    if not depth or len(inner) != 1 or inner[0].name.casefold() in SPLITS or first_image(folder):
        return None
    holds = _holds(inner[0], known) or (known is None and _is_own(inner[0]))
    return inner[0] if holds else _only(inner[0], known, depth - 1)


def _is_own(folder: Path) -> bool:
    """Return whether a folder is evidently a data set of one's own: by its splits, or because its owner says so."""
    return is_marked(folder) or any(folder_called(folder, split) for split in SPLITS)


def _ordered(known: KnownDataset, name: str) -> list[str]:
    """Return a known data set's places, each in one case, those with a folder called as it was typed first."""
    spellings: dict[str, str] = {}
    for place in (*known.places, name, known.title):
        spellings.setdefault(place.casefold(), place)
    return sorted(spellings.values(), key=lambda place: _plain(name) not in map(_plain, place.split("/")))


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).casefold()


def _of_edition(known: KnownDataset, name: str, copies: list[Path]) -> Place:
    """Return the copy of the edition that was typed; where none was, the first, noting that there are others."""
    wanted = _edition(known, name)
    editions = [_edition(known, folder.name, *(_inside(folder) if known.editions else ())) for folder in copies]
    # A folder may be of either edition where its name does not tell.
    right = [place for edition in (wanted, "") for place in range(len(copies)) if editions[place] == edition]
    if wanted and not right:
        raise DataError(
            f"{name}: {copies[0]} holds {known.title} {editions[0]} and not {wanted}; type {known.name} to read it"
        )
    chosen = right[0] if wanted else 0
    others = [place for place in range(len(copies)) if editions[place] not in ("", editions[chosen])]
    notes: tuple[str, ...] = ()
    if others and editions[chosen]:
        other = others[0]
        notes = (
            f"read in the edition {editions[chosen]}, from {copies[chosen]}; "
            f"for {editions[other]} give the path {copies[other]}",
        )
    return Place(copies[chosen], copies[chosen], notes)


def _inside(folder: Path) -> Iterator[str]:
    return (inner.name for inner in folders_in(folder))


def _edition(known: KnownDataset, *names: str) -> str:
    """Return the edition that one of some names ends with, or nothing."""
    ends = (edition for name in names for edition in known.editions if name.casefold().endswith(edition.casefold()))
    return next(ends, "")


def _spelt(place: str, root: Path, name: str) -> Iterator[Path]:
    """Yield the folders at `place` below `root` in whatever case, those called exactly `name` or so first."""
    head, _, rest = place.partition("/")
    here = folders_in(root) if root.is_dir() else ()
    same = [folder for folder in here if folder.name.casefold() == head.casefold()]
    for folder in sorted(same, key=lambda folder: (folder.name != name, folder.name != head)):
        if rest:
            yield from _spelt(rest, folder, name)
        else:
            yield folder


def _typed(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # nobody of that name lives here
        return Path(name)


def _missing(known: KnownDataset, places: list[str], root: Path, there: Path | None) -> str:
    own = f"; to read {there} as a data set of your own give its path" if there else ""
    return (
        f"{known.name} ({known.title}) is not in {root}{_absent(root)}: looked for "
        f"{', '.join(places)}; one has to hold {', or '.join(layout.holds for layout in known.layouts)}, "
        f"or a {MANIFEST}; {known.origin}{own}"
    )


def _unknown(name: str, places: list[Path], root: Path, others: Iterable[str]) -> str:
    names = list(dict.fromkeys((*DATASETS, *others)))
    aliases = [alias for known in DATASETS.values() for alias in known.aliases]
    here = [folder.name for folder in folders_in(root)] if root.is_dir() else []
    spellings = {spelling.casefold(): spelling for spelling in (*here, *aliases, *names)}
    close = closest(name, spellings)
    hint = f"did you mean {spellings[close]!r}? " if close else ""
    looked = " and ".join(map(str, places))
    return (
        f"{name!r} is no known data set and no folder (looked for {looked}{_absent(root)}); {hint}"
        f"known are {', '.join(names)}, or give the path of a folder"
    )
