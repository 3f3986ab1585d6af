"""The page of a run: one file with everything in it, that asks nothing of any network and repeats byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uda_reid.errors import CheckpointError
from uda_reid.report import sections
from uda_reid.report.attention import AttentionMaps, evenness, read_maps
from uda_reid.report.lists import Lists, read_lists
from uda_reid.report.pictures import heat, thumbnails
from uda_reid.report.records import Record, read, remarks
from uda_reid.report.tables import fact, percent, points, protocol_line
from uda_reid.shipped import shipped
from uda_reid.training.checkpoint import replace_file

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, RECORD, LISTS, ATTENTION = "report.html", "record.json", "ranked.json", "attention.json"


def write_page(
    path: Path,
    record: Record,
    lists: Lists | None = None,
    maps: AttentionMaps | None = None,
    *,
    pictures: bool = True,
) -> None:
    """Write the page of a run, whole or not at all.

    Args:
        path: the HTML file.
        record: the run.
        lists: its ranked lists; None where none were kept.
        maps: its attention maps; None where its encoder has no attention.
        pictures: put small copies of the images into the page; without, places, marks and maps remain.
    """
    # Names of files may hold bytes that no encoding knows; they become question marks.
    replace_file(path, render(record, lists, maps, pictures=pictures).encode("utf-8", "replace"))


def rebuild(folder: Path, *, pictures: bool = True) -> Path:
    """Write the page of a finished run again, from `record.json` and what lies beside it.

    Args:
        folder: the run's folder, or a file in it.
        pictures: as for `write_page`; images that have gone are shown as their names.

    Returns:
        The page.

    Raises:
        CheckpointError: there is no finished run, or one of the files is damaged.
    """
    folder = folder.parent if folder.is_file() else folder
    if not (folder / RECORD).is_file():
        raise CheckpointError(
            f"{folder}: no finished run is there ({RECORD} is missing); give a folder that adapt printed"
        )
    lists = read_lists(folder / LISTS) if (folder / LISTS).is_file() else None
    maps = read_maps(folder / ATTENTION) if (folder / ATTENTION).is_file() else None
    write_page(folder / PAGE, read(folder / RECORD), lists, maps, pictures=pictures)
    return folder / PAGE


def render(
    record: Record, lists: Lists | None = None, maps: AttentionMaps | None = None, *, pictures: bool = True
) -> str:
    """Return the page as HTML text; arguments as for `write_page`."""
    models, score_lines = sections.score_table(record)
    scored = [row.scores for row in record.shown if row.scores is not None]
    scatter, no_scatter = sections.queries(record)
    groups, no_lists = sections.groups(lists, record)
    shown = tuple(part for part in (lists if groups else None, maps) if part is not None and pictures)
    template = templates().get_template("report.html.jinja")
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
        maps=maps,
        evenness=evenness(maps) if maps is not None else "",
        pictures=bool(shown),
        photographs=any(part.photographs for part in shown),
        thumbnails={path: address for part in shown for path, address in _thumbnails(part).items()},
        facts=tuple(dict.fromkeys(key for row in record.shown for key in row.facts)),
        options=sections.options(record.recipe),
        names=sections.MEANINGS,
    )


def _thumbnails(part: Lists | AttentionMaps) -> dict[str, str]:
    if isinstance(part, AttentionMaps):
        pictures = [parts.picture for parts in part.images]
    else:
        hits = [hit.picture for query in part.queries for hit in (*query.before, *query.after)]
        pictures = [*(query.picture for query in part.queries), *hits]
    return thumbnails(Path(part.root), (picture.path for picture in pictures))


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
    environment.filters.update(fact=fact, heat=heat, percent=percent, points=points, capitalize_first=_capitalised)
    return environment
