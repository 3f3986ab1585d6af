from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from uda_reid.data.layouts.labels import Row, arrange, choose_queries, divide
from uda_reid.errors import DataError
from uda_reid.types import UNKNOWN, Ids


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


def test_queries_are_chosen_of_every_identity_but_junk_and_distractors() -> None:
    pids = np.array([-1, 0, 3, 3, 3, 4, 4, 5])
    cameras = np.array([1, 1, 1, 1, 2, 2, 2, 1])
    assert choose_queries(pids, cameras).tolist() == [
        *("gallery", "gallery", "query", "gallery", "gallery"),
        *("gallery", "gallery", "gallery"),
    ]
    assert choose_queries(pids, None).tolist() == [
        *("gallery", "gallery", "query", "gallery", "gallery"),
        *("query", "gallery", "gallery"),
    ]


def test_images_without_an_identity_train() -> None:
    pids = np.array([UNKNOWN, 1, 2, 2, UNKNOWN])
    assert divide(pids, None).tolist() == ["train", "train", "query", "gallery", "train"]


def row(name: str, identity: str = "", camera: str = "", split: str = "", tracklet: str = "") -> Row:
    return Row(Path(name), identity, camera, split, f"list:{name}", tracklet)


def test_unknown_identities_are_neither_shifted_nor_left_out() -> None:
    rows = [
        row("a", split="train"),
        row("b", split="train"),
        row("c", "0", split="query"),
        row("d", "0", split="gallery"),
        row("e", "5", split="gallery"),
    ]
    parts = arrange(rows, folder=Path("own"))
    assert parts.train.pids.tolist() == [UNKNOWN, UNKNOWN]
    assert (parts.query.pids.tolist(), parts.gallery.pids.tolist()) == ([1], [1, 6])
    assert not any("left out" in note or "both in train and query" in note for note in parts.notes)


def test_images_without_identity_and_split_all_train() -> None:
    parts = arrange([row("b"), row("a")], folder=Path("own"))
    assert parts.train.paths == (Path("a"), Path("b"))
    assert parts.notes == ("no identities: it can be adapted to, nothing can be scored on it",)


def test_missing_identity_is_refused_where_one_is_needed() -> None:
    with pytest.raises(DataError, match=r"^list:b: identity is blank; every query image needs one$"):
        arrange([row("a", split="train"), row("b", split="query")], folder=Path("own"))
    with pytest.raises(DataError, match=r"^list:b: identity is blank here but given for other training images; fill"):
        arrange([row("a", "1", split="train"), row("b", split="train")], folder=Path("own"))


def test_cameras_may_be_known_of_the_tests_alone() -> None:
    rows = [row("a", split="train"), row("b", "1", "0", "query"), row("c", "1", "1", "gallery")]
    parts = arrange(rows, folder=Path("own"))
    assert parts.train.cams is None
    assert parts.query.cams is not None and parts.query.cams.tolist() == [1]
    assert parts.gallery.cams is not None and parts.gallery.cams.tolist() == [2]


def test_tracklets_are_numbered_as_labels_are() -> None:
    rows = [
        row("b", "1", split="train", tracklet="x"),
        row("a", "1", split="train", tracklet="y"),
        row("c", "2", split="query", tracklet="x"),
        row("d", "2", split="gallery", tracklet="z"),
    ]
    parts = arrange(rows, folder=Path("own"))
    found = [split.tracklets for split in (parts.train, parts.query, parts.gallery)]
    assert [None if numbers is None else numbers.tolist() for numbers in found] == [[2, 1], [1], [3]]
    assert arrange([row("a", "1", split="train")], folder=Path("own")).train.tracklets is None


def test_identities_that_are_written_in_several_ways_are_noted(tmp_path: Path) -> None:
    texts = ["1", "01", "001", "2", "3", "03", "4.0", "4"]
    rows = [Row(tmp_path / f"{n}.jpg", text, "", "train", "here") for n, text in enumerate(texts)]
    parts = arrange(rows, folder=tmp_path)
    assert parts.train.pids.tolist() == [1, 1, 1, 2, 3, 3, 4, 4]
    assert "2 identities written in several ways and read as one each: 001, 01, 1" in parts.notes
