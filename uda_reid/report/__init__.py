"""Records of runs, and how they are shown: what was measured, how, and with which knowledge."""

from __future__ import annotations

from uda_reid.report.attention import AttentionMaps, collect_maps, read_maps, write_maps
from uda_reid.report.lists import Lists, collect, read_lists, write_lists
from uda_reid.report.page import ATTENTION, LISTS, PAGE, RECORD, rebuild, write_page
from uda_reid.report.records import (
    BOUND,
    LABELLED,
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
    "SOURCE_ONLY",
    "AttentionMaps",
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
    "write",
    "write_lists",
    "write_maps",
    "write_page",
]
