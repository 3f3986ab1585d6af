"""A search in somebody's features: files and a table in, queries and a gallery with their labels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uda_reid.data.layouts.labels import count
from uda_reid.data.layouts.tokens import UNSEEN
from uda_reid.errors import DataError, RecipeError
from uda_reid.foreign.files import MATLAB, checked, read_features, read_result
from uda_reid.foreign.ids import IdTable, from_arrays, read_ids
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Ids

PARTS = ("query", "gallery")
ONE_LINE = "write one line for each row"


@dataclass(frozen=True)
class Search:
    """Queries and a gallery.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        query_pids: (Q,) int64 > 0.
        gallery_pids: (G,) int64 >= -1; -1 is junk, 0 a distractor.
        query_cams: (Q,) int64, or None where cameras are unknown.
        gallery_cams: (G,) int64, or None where cameras are unknown.
        query_rows: (Q,) int64, the row of each query in its file; None for 0, 1, ...
        query_names: Q identities as they were written; none for the numbers.
        query_cameras: Q cameras as they were written; none for the numbers.
        notes: what was unusual, one line each.
    """

    query: Tensor
    gallery: Tensor
    query_pids: Ids
    gallery_pids: Ids
    query_cams: Ids | None = None
    gallery_cams: Ids | None = None
    query_rows: Ids | None = None
    query_names: tuple[str, ...] = ()
    query_cameras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_search(files: Sequence[Path], ids: Path | None = None) -> Search:
    """Read queries and a gallery.

    Args:
        files: the queries' features and the gallery's; or one file with both, whose rows the table's column `split`
            tells apart; or the `.mat` file that Person_reID_baseline_pytorch writes.
        ids: the table of identities and cameras; none for a `.mat` file. Beside two files, it lists first the queries
            and then the gallery; with a column `split` the rows of either are taken from it in their order.

    Returns:
        The search. Rows of other splits, and queries that are junk, are left out with a note.

    Raises:
        DataError: a file or the table cannot be read, they do not fit each other, or a query has no identity.
        RecipeError: there are not one or two files, or the table is missing.
    """
    if not 1 <= len(files) <= 2:
        raise RecipeError(f"{len(files)} files of features; give the queries' and the gallery's, or one with both")
    return _one_file(files[0], ids) if len(files) == 1 else _two_files(files, ids)


def read_rows(features: Path, ids: Path | None = None) -> tuple[Tensor, IdTable | None]:
    """Read one file of features and the table beside it.

    Args:
        features: a file as for `files.read_features`, or a `.mat` file: its queries, then its gallery.
        ids: the table; none for a `.mat` file.

    Returns:
        (N, D) float32, and the table of the N rows if there is one.

    Raises:
        DataError: a file cannot be read, or they do not fit each other.
        RecipeError: there is a table beside a `.mat` file.
    """
    if features.suffix.lower() == MATLAB:
        if ids is not None:
            raise RecipeError(f"{features} holds its own labels; leave out --ids")
        return _matlab(features)
    found = read_features(features)
    table = read_ids(ids) if ids else None
    if table is not None and len(table) != len(found):
        raise DataError(
            f"{features} holds {count(len(found), 'row')} but {table.file} lists {len(table):,}; {ONE_LINE}"
        )
    return found, table


def _matlab(path: Path) -> tuple[Tensor, IdTable]:
    found = read_result(path)
    parts = []
    for part in PARTS:
        features = checked(torch.from_numpy(np.ascontiguousarray(found[f"{part}_f"])), path, f"{part}_f")
        labels, cams = found[f"{part}_label"], found[f"{part}_cam"]
        if len(features) != len(labels):
            raise DataError(
                f"{path}: {part}_f holds {len(features):,} rows but {part}_label {len(labels):,}; one each is needed"
            )
        parts.append((features, labels, cams))
    _check_dimensions(parts[0][0], parts[1][0], f"{path}: query_f", "gallery_f")
    table = from_arrays(str(path), [(part, labels, cams) for part, (_, labels, cams) in zip(PARTS, parts, strict=True)])
    return torch.cat([features for features, _, _ in parts]), table


def _one_file(file: Path, ids: Path | None) -> Search:
    if ids is None and file.suffix.lower() != MATLAB:
        raise _nobodys(file)
    features, table = read_rows(file, ids)
    if table is None or not len(table.splits):
        raise DataError(
            f"{ids}: no column split; {file} is to hold queries and gallery, so write query or gallery for each row, "
            "or give the gallery's file too"
        )
    query, gallery = (_rows(table, part) for part in PARTS)
    return _search(features[_slice(query)], features[_slice(gallery)], table, query, gallery, query)


def _two_files(files: Sequence[Path], ids: Path | None) -> Search:
    query, gallery = map(read_features, files)
    _check_dimensions(query, gallery, str(files[0]), str(files[1]))
    if ids is None:
        raise _nobodys(files[0])
    table = read_ids(ids)
    if len(table.splits):
        rows = [_rows(table, part) for part in PARTS]
    else:
        if len(table) != len(query) + len(gallery):
            both = f"{files[0]} and {files[1]} hold {len(query):,} + {len(gallery):,} rows"
            raise DataError(f"{both} but {table.file} lists {len(table):,}; {ONE_LINE}, the queries first")
        rows = [np.arange(len(query)), np.arange(len(query), len(table))]
    for file, features, part, lines in zip(files, (query, gallery), PARTS, rows, strict=True):
        if len(features) != len(lines):
            told = f"{table.file} lists {len(lines):,} of split {part}"
            raise DataError(f"{file} holds {count(len(features), 'row')} but {told}; {ONE_LINE}")
    return _search(query, gallery, table, rows[0], rows[1], np.arange(len(query)))


def _nobodys(file: Path) -> RecipeError:
    return RecipeError(f"{file}: whose images are these? give a table of identities with --ids")


def _check_dimensions(query: Tensor, gallery: Tensor, one: str, other: str) -> None:
    if query.shape[1] != gallery.shape[1]:
        sizes = f"{one} has {query.shape[1]} dimensions, {other} {gallery.shape[1]}"
        raise DataError(f"{sizes}; queries and gallery must come from one model")


def _rows(table: IdTable, part: str) -> Ids:
    """Return the rows of a split."""
    rows = np.flatnonzero(table.splits == part)
    if not len(rows):
        values, sizes = np.unique(table.splits.astype(str), return_counts=True)
        there = ", ".join(f"{value or 'blank'} ({size:,})" for value, size in zip(values, sizes, strict=True))
        raise DataError(f"{table.file}: no row of split {part}; there are {there}; write query and gallery")
    return rows


def _slice(rows: Ids) -> slice | Tensor:
    """Return rows that follow one another as a slice, which copies nothing."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows)


def _search(query: Tensor, gallery: Tensor, table: IdTable, mine: Ids, theirs: Ids, rows: Ids) -> Search:
    """Return the search of features whose lines in the table are `mine` and `theirs`.

    Args:
        query: (Q, D).
        gallery: (G, D).
        table: what is known of them.
        mine: (Q,) the queries' places in the table.
        theirs: (G,) the gallery's.
        rows: (Q,) the queries' rows in their file.
    """
    notes = [*table.notes, *_left_out(table)]
    shown = table.pids[theirs][table.pids[theirs] != JUNK]
    if len(np.unique(shown)) == 1:
        notes.append("the gallery shows one person only, so no answer is wrong, and the numbers say nothing")
    _check_identified(table, mine, theirs)
    junk = table.pids[mine] == JUNK
    if junk.all():
        raise DataError(f"{table.file}: every query is junk (-1); give the queries their identities")
    if junk.any():
        notes.append(f"{count(int(junk.sum()), 'query', 'queries')} of identity -1 (junk) left out")
        query, mine, rows = query[torch.from_numpy(~junk)], mine[~junk], rows[~junk]
    pids = table.pids
    if (pids[mine] == DISTRACTOR).any():
        pids = np.where(pids >= DISTRACTOR, pids + 1, pids)
        notes.append("identities count from 0, where 0 means a distractor in a gallery: 1 was added to each")
    known = _cameras_known(table, np.concatenate([mine, theirs]), notes)
    query_cams, gallery_cams = (table.cams[part] if known else None for part in (mine, theirs))
    names = tuple(table.names[mine].tolist())
    cameras = tuple(table.cameras[mine].tolist()) if known else ()
    return Search(
        query, gallery, pids[mine], pids[theirs], query_cams, gallery_cams, rows, names, cameras, tuple(notes)
    )


def copied(search: Search) -> list[str]:
    """Return a note where queries are in the gallery too: unless a camera takes them out, they find themselves."""
    mine, theirs = (
        [hash((pid, row.tobytes())) for pid, row in zip(pids.tolist(), features.cpu().numpy(), strict=True)]
        for pids, features in ((search.query_pids, search.query), (search.gallery_pids, search.gallery))
    )
    there = set(theirs)
    copies = sum(key in there for key in mine)
    if not copies:
        return []
    told = count(copies, "query is", "queries are")
    return [f"{told} in the gallery too, row for row, and every such query finds itself; leave the queries out of it"]


def _left_out(table: IdTable) -> list[str]:
    """Return a note on the rows of other splits."""
    others = table.splits[~np.isin(table.splits, PARTS)]
    values, sizes = np.unique(others.astype(str), return_counts=True)
    for value in values.tolist():
        close = get_close_matches(value, PARTS, n=1, cutoff=0.7)
        if close:
            where = table.where(int(np.flatnonzero(table.splits == value)[0]))
            raise DataError(f"{where}: split {value!r} is unknown; did you mean {close[0]!r}?")
    told = ", ".join(f"{size:,} of split {value or '(blank)'}" for value, size in zip(values, sizes, strict=True))
    return [f"rows left out: {told}"] if told else []


def _check_identified(table: IdTable, mine: Ids, theirs: Ids) -> None:
    for part, places in zip(PARTS, (mine, theirs), strict=True):
        blank = places[table.pids[places] == UNKNOWN]
        if len(blank):
            raise DataError(f"{table.where(int(blank[0]))}: identity is blank; every {part} row needs one")


def _cameras_known(table: IdTable, places: Ids, notes: list[str]) -> bool:
    cams = table.cams[places]
    blank = places[cams == UNSEEN]
    if len(blank) == len(cams):
        notes.append("no camera is given, so matches of the query's own camera cannot be removed")
        return False
    if len(blank):
        where = table.where(int(blank[0]))
        raise DataError(f"{where}: camera is blank here but given elsewhere; fill in all or none")
    if len(np.unique(cams)) == 1:
        notes.append("all rows are from one camera, so cameras count as unknown")
        return False
    return True
