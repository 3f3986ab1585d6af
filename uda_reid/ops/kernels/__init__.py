"""The few compiled loops, and how threads share them: the only door to numba."""

from __future__ import annotations

from uda_reid.ops.kernels.loops import compiled, share
from uda_reid.ops.kernels.neighbours import exact_cosine, nearest_in_columns, nearest_in_rows, pair_products
from uda_reid.ops.kernels.ranking import SORT_FROM, rank_rows
from uda_reid.ops.kernels.reciprocal import averaged, expanded, mix_rows, overlaps, reciprocal

__all__ = [
    "SORT_FROM",
    "averaged",
    "compiled",
    "exact_cosine",
    "expanded",
    "mix_rows",
    "nearest_in_columns",
    "nearest_in_rows",
    "overlaps",
    "pair_products",
    "rank_rows",
    "reciprocal",
    "share",
]
