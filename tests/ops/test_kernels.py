from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda_reid.ops import kernels


def double(numbers: Any) -> float:
    total = 0.0
    for number in numbers:
        total += 2 * number
    return total


@settings(max_examples=300)
@given(rows=st.integers(0, 300), threads=st.integers(1, 9), least=st.integers(0, 60))
def test_share_covers_every_row_once_in_as_many_ranges_as_are_worth_it(rows: int, threads: int, least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        ranges = kernels.share(lambda start, stop: (start, stop), rows, least=least)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert len(ranges) == 1 or min(sizes) >= max(least, 1)
    assert len(ranges) <= threads
    assert len(ranges) == threads or rows < (len(ranges) + 1) * max(least, 1)


def test_share_works_on_ranges_side_by_side_and_keeps_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    last_is_done = threading.Event()

    def work(start: int, stop: int) -> tuple[int, bool]:
        if stop == 10:
            last_is_done.set()
        return start, last_is_done.wait(timeout=30)

    assert kernels.share(work, 10) == [(0, True), (5, True)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [0, 4, 8])
def test_share_passes_on_what_a_range_raises(monkeypatch: pytest.MonkeyPatch, threads: int, bad: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def work(start: int, stop: int) -> None:
        if bad in range(start, stop):
            raise ArithmeticError(f"row {bad}")

    with pytest.raises(ArithmeticError, match=f"row {bad}"):
        kernels.share(work, 9)


def test_compiled_loops_are_kept_on_disk_and_let_other_threads_run() -> None:
    function: Any = kernels.compiled(double)
    assert function.targetoptions["nogil"]
    assert function.stats.cache_path is not None
    assert function(np.arange(4.0)) == 12


def test_compiled_loops_work_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_loop, asked = numba.njit, []

    def nowhere(*, cache: bool = False, **options: Any) -> Callable[..., Any]:
        asked.append((cache, options))
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        loop: Callable[..., Any] = compile_loop(**options)
        return loop

    monkeypatch.setattr(numba, "njit", nowhere)
    function: Any = kernels.compiled(double, fastmath={"reassoc"})
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"}}
    assert asked == [(True, options), (False, options)]
    assert function.stats.cache_path is None
    assert function(np.arange(4.0)) == 12


def test_compiled_takes_a_function_from_no_file() -> None:
    room: dict[str, Any] = {}
    exec(compile("def twice(x):\n    return 2 * x\n", "<nowhere>", "exec"), room)
    assert kernels.compiled(room["twice"])(3) == 6
