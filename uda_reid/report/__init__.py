"""Records of runs, and how they are shown: what was measured, how, and with which knowledge."""

from __future__ import annotations

from uda_reid.report.attention import AttentionMaps, collect_maps, read_maps, write_maps
from uda_reid.report.embedding_map import EmbeddingMap, collect_map, read_map, write_map
from uda_reid.report.lists import Lists, collect, read_lists, write_lists
from uda_reid.report.page import (
    ATTENTION,
    EMBEDDING_MAP,
    LISTS,
    PAGE,
    RECORD,
    Shown,
    read_shown,
    rebuild,
    whole,
    write_html,
    write_page,
)
from uda_reid.report.records import (
    BOUND,
    LABELLED,
    SMALLEST_GAP,
    SOURCE_ONLY,
    Facts,
    Record,
    Row,
    gap_closed,
    read,
    same_labels,
    scores_json,
    to_json,
    write,
)
from uda_reid.report.tables import show, show_row

__all__ = [
    "ATTENTION",
    "BOUND",
    "LABELLED",
    "LISTS",
    "PAGE",
    "RECORD",
    "SMALLEST_GAP",
    "SOURCE_ONLY",
    "EMBEDDING_MAP",
    "AttentionMaps",
    "EmbeddingMap",
    "Shown",
    "collect_map",
    "read_map",
    "read_shown",
    "write_map",
    "Facts",
    "Lists",
    "Record",
    "Row",
    "collect",
    "collect_maps",
    "gap_closed",
    "read",
    "read_lists",
    "read_maps",
    "rebuild",
    "same_labels",
    "scores_json",
    "show",
    "show_row",
    "to_json",
    "whole",
    "write",
    "write_lists",
    "write_maps",
    "write_html",
    "write_page",
]
