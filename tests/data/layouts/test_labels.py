from __future__ import annotations

import numpy as np
import pytest

from uda_reid.data.layouts.labels import divide
from uda_reid.types import Ids


def divided_by_hand(pids: Ids, cams: Ids | None) -> list[str]:
    """Answer as `divide` should, row by row; a query that leaves one without a match is taken back."""
    order = sorted({pid for pid in pids.tolist() if pid > 0})
    training = {pid for place, pid in enumerate(order) if place % 2 == 0}
    answer = ["train" if pid in training else "gallery" for pid in pids.tolist()]
    cameras = [0] * len(pids) if cams is None else cams.tolist()
    seen: set[tuple[int, int]] = set()
    for row in sorted(range(len(pids)), key=lambda row: (cameras[row], row)):
        pid = int(pids[row])
        if pid <= 0 or pid in training or (pid, cameras[row]) in seen:
            continue
        seen.add((pid, cameras[row]))
        answer[row] = "query"
        mine = [other for other in range(len(pids)) if pids[other] == pid]
        for query in (other for other in mine if answer[other] == "query"):
            if not any(
                answer[other] == "gallery" and (cams is None or cameras[other] != cameras[query]) for other in mine
            ):
                answer[row] = "gallery"
                break
    return answer


def test_divide_takes_no_query_that_would_leave_another_without_a_match() -> None:
    pids = np.array([1, 2, 2, 4, 5, 5, 5, 5, 5])
    cameras = np.array([1, 1, 2, 1, 1, 1, 2, 3, 3])
    assert divide(pids, cameras).tolist() == [
        *("train", "query", "gallery", "train"),
        *("query", "gallery", "query", "query", "gallery"),
    ]
    assert divide(np.array([1, 2]), np.array([1, 1])).tolist() == ["train", "gallery"]


@pytest.mark.parametrize("seed", range(20))
def test_divide_agrees_with_the_rule_in_plain_loops(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    pids = numbers.integers(-1, 9, 40)
    cameras = numbers.integers(1, 4, 40) if seed % 4 else None
    assert divide(pids, cameras).tolist() == divided_by_hand(pids, cameras)
