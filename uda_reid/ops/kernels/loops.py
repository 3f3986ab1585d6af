"""The few compiled loops, and how threads share them: the only door to numba.

Every loop works on a range of rows and writes only what belongs to them, so threads need no locks and their number
changes no bit of a result. Floating-point arithmetic is done in the order written, but for one product of two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy.typing as npt
import torch

Function = TypeVar("Function", bound=Callable[..., Any])
Array = npt.NDArray[Any]


def compiled(function: Function, **options: Any) -> Function:
    """Compile a loop on first use, for other threads to run beside it, and keep it on disk where that is possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # nowhere to write: compiled anew in every process
        return cast(Function, numba.njit(**options)(function))


def share(work: Callable[[int, int], Any], rows: int, *, least: int = 1) -> list[Any]:
    """Call `work(start, stop)` on equal ranges of rows, one in each of torch's threads; results in the rows' order.

    Args:
        work: must not change what another range reads.
        rows: the number of rows.
        least: rows that are not worth another thread.
    """
    parts = max(1, min(torch.get_num_threads(), rows // max(least, 1)))
    if parts == 1:
        return [work(0, rows)]
    bounds = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as threads:
        return list(threads.map(work, bounds[:-1], bounds[1:]))
