"""The page of a run: one file with everything in it, that asks nothing of any network and repeats byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uda_reid.errors import CheckpointError
from uda_reid.report import sections
from uda_reid.report.attention import AttentionMaps, evenness, read_maps
from uda_reid.report.embedding_map import EmbeddingMap, clouds, read_map, told
from uda_reid.report.lists import Lists, read_lists
from uda_reid.report.pictures import album, changed, heat, outside, real_people
from uda_reid.report.records import Record, read, remarks
from uda_reid.report.tables import fact, percent, points, protocol_line
from uda_reid.shipped import shipped
from uda_reid.writing import replace_file

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, RECORD = "report.html", "record.json"
NOTICE = "This page contains photographs of people: do not publish it."
LISTS, ATTENTION, EMBEDDING_MAP = "ranked.json", "attention.json", "embedding_map.json"


@dataclass(frozen=True)
class Shown:
    """What a run shows beside its numbers; None where that was not kept.

    Args:
        lists: its ranked lists.
        attention: the attention maps of its encoder.
        embeddings: where images of both domains lie.
    """

    lists: Lists | None = None
    attention: AttentionMaps | None = None
    embeddings: EmbeddingMap | None = None


def read_shown(folder: Path) -> Shown:
    """Return what a finished run shows.

    Raises:
        CheckpointError: one of the files is damaged.
    """
    return Shown(
        lists=read_lists(folder / LISTS) if (folder / LISTS).is_file() else None,
        attention=read_maps(folder / ATTENTION) if (folder / ATTENTION).is_file() else None,
        embeddings=read_map(folder / EMBEDDING_MAP) if (folder / EMBEDDING_MAP).is_file() else None,
    )


def whole(path: Path, read_it: Callable[[Path], object]) -> bool:
    """Return whether a file is there and can be read by its reader."""
    try:
        read_it(path)
    except CheckpointError:
        return False
    return True


def write_page(path: Path, record: Record, shown: Shown | None = None, *, pictures: bool = True) -> None:
    """Write the page of a run, whole or not at all.

    Args:
        path: the HTML file.
        record: the run.
        shown: what it shows beside its numbers.
        pictures: put small copies of the images into the page; without, places, marks and maps remain.
    """
    write_html(path, render(record, shown, pictures=pictures))


def write_html(path: Path, text: str) -> None:
    """Write a page, whole or not at all; where it contains photographs of people, its owner alone may read it."""
    # Names of files may hold bytes that no encoding knows; they become question marks.
    replace_file(path, text.encode("utf-8", "replace"), private=NOTICE in text)


def rebuild(folder: Path, *, pictures: bool = True) -> Path:
    """Write the page of a finished run again, from `record.json` and what lies beside it.

    Args:
        folder: the run's folder, or a file in it.
        pictures: as for `write_page`; images that have gone or changed are shown as their names.

    Returns:
        The page.

    Raises:
        CheckpointError: there is no finished run, or one of the files is damaged.
    """
    given, folder = folder, folder.parent if folder.is_file() else folder
    if not (folder / RECORD).is_file():
        raise CheckpointError(
            f"{given}: no finished run is there ({RECORD} is missing), nor a matrix (matrix.json is missing); give a "
            "folder that adapt or matrix printed"
        )
    write_page(folder / PAGE, read(folder / RECORD), read_shown(folder), pictures=pictures)
    return folder / PAGE


def render(record: Record, shown: Shown | None = None, *, pictures: bool = True) -> str:
    """Return the page as HTML text; arguments as for `write_page`."""
    shown = shown or Shown()
    models, score_lines = sections.score_table(record)
    scored = [row.scores for row in record.shown if row.scores is not None]
    scatter, no_scatter = sections.queries(record)
    groups, no_lists = sections.groups(shown.lists, record)
    parts = [part for part in (shown.lists if groups else None, shown.attention) if part is not None and pictures]
    root = Path(parts[0].root) if parts else Path()
    pictured = tuple(each for part in parts for each in part.pictures)
    small = album(root, pictured) if parts else None
    elsewhere = outside(each.path for each in pictured)
    template = templates().get_template("report.html.jinja")
    return template.render(
        record=record,
        remarks=(*remarks(record), *elsewhere),
        headline=sections.headline(record),
        tiles=sections.tiles(record),
        models=models,
        score_lines=score_lines,
        protocol=protocol_line(scored) if scored else "",
        learning=sections.learning(record),
        history=sections.history(record),
        pseudo_labels=sections.pseudo_labels(record),
        pretraining=sections.pretraining(record),
        scatter=scatter,
        no_scatter=no_scatter,
        groups=groups,
        no_lists=no_lists,
        rule=sections.rule(shown.lists, record) if shown.lists is not None and groups else "",
        maps=shown.attention,
        evenness="" if shown.attention is None else evenness(shown.attention),
        embeddings=shown.embeddings,
        clouds=() if shown.embeddings is None else clouds(shown.embeddings),
        mixed="" if shown.embeddings is None else told(shown.embeddings),
        album=small,
        changed=len(changed(root, pictured)),
        photographs=small is not None and real_people(root, small),
        facts=tuple(dict.fromkeys(key for row in record.shown for key in row.facts)),
        options=sections.options(record.recipe),
        names=sections.MEANINGS,
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def templates() -> Environment:
    """Return the package's templates; what they ask for and is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped("assets")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["NOTICE"] = NOTICE
    environment.filters.update(fact=fact, heat=heat, percent=percent, points=points, capitalize_first=_capitalised)
    return environment
