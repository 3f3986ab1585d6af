"""The page of a run: one file with everything in it, that asks nothing of any network and repeats byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uda_reid.errors import CheckpointError
from uda_reid.report import sections
from uda_reid.report.lists import Lists, read_lists
from uda_reid.report.pictures import thumbnails
from uda_reid.report.records import Record, read, remarks
from uda_reid.report.tables import fact, percent, points, protocol_line
from uda_reid.shipped import shipped
from uda_reid.training.checkpoint import replace_file

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, RECORD, LISTS = "report.html", "record.json", "ranked.json"


def write_page(path: Path, record: Record, lists: Lists | None = None, *, pictures: bool = True) -> None:
    """Write the page of a run, whole or not at all.

    Args:
        path: the HTML file.
        record: the run.
        lists: its ranked lists; None where none were kept.
        pictures: put small copies of the images of the ranked lists into the page; without, places and marks remain.
    """
    # Names of files may hold bytes that no encoding knows; they become question marks.
    replace_file(path, render(record, lists, pictures=pictures).encode("utf-8", "replace"))


def rebuild(folder: Path, *, pictures: bool = True) -> Path:
    """Write the page of a finished run again, from `record.json` and `ranked.json` in its folder.

    Args:
        folder: the run's folder, or a file in it.
        pictures: as for `write_page`; images that have gone are shown as their names.

    Returns:
        The page.

    Raises:
        CheckpointError: there is no finished run, or one of the two files is damaged.
    """
    folder = folder.parent if folder.is_file() else folder
    if not (folder / RECORD).is_file():
        raise CheckpointError(
            f"{folder}: no finished run is there ({RECORD} is missing); give a folder that adapt printed"
        )
    lists = read_lists(folder / LISTS) if (folder / LISTS).is_file() else None
    write_page(folder / PAGE, read(folder / RECORD), lists, pictures=pictures)
    return folder / PAGE


def render(record: Record, lists: Lists | None = None, *, pictures: bool = True) -> str:
    """Return the page as HTML text; arguments as for `write_page`."""
    models, score_lines = sections.score_table(record)
    scored = [row.scores for row in record.shown if row.scores is not None]
    scatter, no_scatter = sections.queries(record)
    groups, no_lists = sections.groups(lists, record)
    with_pictures = lists if pictures and groups else None
    template = _environment().get_template("report.html.jinja")
    return template.render(
        record=record,
        remarks=remarks(record),
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
        rule=sections.rule(lists, record) if lists is not None and groups else "",
        pictures=with_pictures is not None,
        photographs=with_pictures is not None and with_pictures.photographs,
        thumbnails={} if with_pictures is None else _thumbnails(with_pictures),
        facts=tuple(dict.fromkeys(key for row in record.shown for key in row.facts)),
        options=sections.options(record.recipe),
        names=sections.MEANINGS,
    )


def _thumbnails(lists: Lists) -> dict[str, str]:
    hits = [hit.picture for query in lists.queries for hit in (*query.before, *query.after)]
    return thumbnails(Path(lists.root), (picture.path for picture in (*(q.picture for q in lists.queries), *hits)))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped("assets")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fact=fact, percent=percent, points=points, capitalize_first=_capitalised)
    return environment
