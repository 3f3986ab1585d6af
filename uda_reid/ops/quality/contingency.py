"""Labels as checked columns of integers, and how often each two of their values meet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from uda_reid.errors import DataError
from uda_reid.types import Ids

LabelsLike = npt.ArrayLike | Tensor


class Contingency(NamedTuple):
    """The cells of a contingency table that are not 0: C of them, at most one per row of the data."""

    first: Ids
    """(C,) the place of the first column's value among its sorted values."""
    second: Ids
    """(C,) the same for the second column."""
    both: Ids
    """(C,) how many rows hold the two, at least 1."""
    first_total: Ids
    """How many rows hold each value of the first column."""
    second_total: Ids
    """The same for the second column."""

    @property
    def commonest(self) -> float:
        """The share of rows that hold, of their first value, the commonest second value; 0 without rows."""
        most = np.zeros_like(self.first_total)
        np.maximum.at(most, self.first, self.both)
        return float(most.sum() / max(self.both.sum(), 1))


def contingency(first: Ids, second: Ids) -> Contingency:
    """Count how often each two values of two columns meet, sparsely: O(N log N) time and O(N) memory.

    Args:
        first: (N,) int64.
        second: (N,) int64.

    Returns:
        The cells that are not 0.

    >>> contingency(np.array([7, 7, 9]), np.array([1, 1, 1])).both.tolist()
    [2, 1]
    """
    first_names, one = np.unique(first, return_inverse=True)
    second_names, other = np.unique(second, return_inverse=True)
    cells, both = np.unique(one * len(second_names) + other, return_counts=True)
    width = max(len(second_names), 1)
    return Contingency(
        cells // width,
        cells % width,
        both,
        np.bincount(one, minlength=len(first_names)),
        np.bincount(other, minlength=len(second_names)),
    )


def column(labels: LabelsLike, name: str) -> Ids:
    """Return labels as a column of integers.

    Args:
        labels: what should be (N,) integers, on any device.
        name: how they are called in the message.

    Returns:
        (N,) int64 on the CPU.

    Raises:
        DataError: another shape or dtype.

    >>> column([0.5], "labels")
    Traceback (most recent call last):
    ...
    uda_reid.errors.DataError: labels: float64 of shape (1,) given, integers (N,) expected
    """
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise DataError(f"{name}: {values.dtype} of shape {values.shape} given, integers (N,) expected")
    return values.astype(np.int64)


def two_columns(one: LabelsLike, other: LabelsLike, *, names: tuple[str, str]) -> tuple[Ids, Ids]:
    """Return two labellings of the same rows as columns of integers.

    Args:
        one: what should be (N,) integers, on any device.
        other: what should be (N,) integers, on any device.
        names: how the two are called in the message.

    Returns:
        Two (N,) int64 on the CPU.

    Raises:
        DataError: another shape or dtype, or they differ in length.

    >>> two_columns([0, 1], [0], names=("clusters", "pids"))
    Traceback (most recent call last):
    ...
    uda_reid.errors.DataError: 2 rows of clusters but 1 of pids; one of each per row is needed
    """
    first, second = column(one, names[0]), column(other, names[1])
    if len(first) != len(second):
        raise DataError(
            f"{len(first)} rows of {names[0]} but {len(second)} of {names[1]}; one of each per row is needed"
        )
    return first, second


def check_pseudo_labels(labels: Ids, name: str) -> None:
    """Refuse pseudo-labels below -1.

    Args:
        labels: (N,) int64.
        name: how they are called in the message.

    Raises:
        DataError: a label is below -1.
    """
    if labels.min(initial=-1) < -1:
        raise DataError(f"{name}: label {labels.min()} given; clusters count from 0, and -1 marks unused rows")


def noise_apart(labels: Ids) -> Ids:
    """Return pseudo-labels in which every unused row is a cluster of its own.

    Args:
        labels: (N,) int64 >= -1; -1 marks an unused row.

    Returns:
        (N,) int64; clusters keep their numbers, unused rows are numbered from -1 downwards.

    >>> noise_apart(np.array([-1, 4, -1])).tolist()
    [-1, 4, -2]
    """
    apart, noise = labels.copy(), labels < 0
    apart[noise] = -1 - np.arange(noise.sum())
    return apart
