from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, market, names, touch
from uda_reid.data.layouts import read
from uda_reid.data.layouts.pytorch import is_pytorch

FILES = {
    "train_all": ("0002/0002_c1s1_000451_03.jpg", "0002/0002_c2s1_000001_01.jpg", "0007/0007_c1s1_000001_01.jpg"),
    "train": ("0002/0002_c2s1_000001_01.jpg",),
    "val": ("0002/0002_c1s1_000451_03.jpg", "0007/0007_c1s1_000001_01.jpg"),
    "query": ("0004/0004_c1s1_000001_00.jpg", "0005/0005_c2s1_000001_00.jpg"),
    "gallery": (
        "-1/-1_c1s1_000001_01.jpg",
        "0000/0000_c2s1_000001_01.jpg",
        "0004/0004_c2s1_000001_01.jpg",
        "0005/0005_c1s1_000001_01.jpg",
    ),
    "multi-query": ("0004/0004_c1s1_000002_00.jpg",),
}


def copied(folder: Path) -> Path:
    for part, images in FILES.items():
        touch(folder / part, images)
    return folder


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("market", "Market"),
        ("market", "Market-1501-v15.09.15"),
        ("market", "market1501/Market-1501-v15.09.15"),
        ("market", "market1501"),
        ("duke", "DukeMTMC-reID"),
        ("duke", "dukemtmc/DukeMTMC-reID"),
        ("duke", "dukemtmc-reid"),
        ("pytorch", "."),
        ("some-name", "some-name"),
    ],
)
def test_what_the_prepare_scripts_made_is_read(typed: str, place: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / place / "pytorch")
    domain = read(typed, tmp_path)
    assert domain.layout == "Person_reID_baseline_pytorch's folders"
    assert domain.name == typed
    assert domain.train.paths[0].samefile(folder / "train_all" / FILES["train_all"][0])
    assert names(domain.train) == [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000001_01.jpg",
        "0007_c1s1_000001_01.jpg",
    ]
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([2, 2, 7], [1, 2, 1])
    assert (domain.query.pids.tolist(), cams(domain.query)) == ([4, 5], [1, 2])
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([-1, 0, 4, 5], [1, 2, 2, 1])


def test_published_folders_go_before_their_copy(tmp_path: Path) -> None:
    copied(market(tmp_path / "market") / "pytorch")
    assert read("market", tmp_path).layout == "Market-1501's folders"


def test_other_folders_per_identity_are_no_copy(tmp_path: Path) -> None:
    folder = copied(tmp_path / "copy")
    assert is_pytorch(folder)
    (folder / "train_all" / "0002").rename(folder / "train_all" / "0001")
    assert not is_pytorch(folder)
    touch(tmp_path / "own", ["train_all/a/1.jpg", "query/b/1.jpg", "gallery/b/2.jpg"])
    assert not is_pytorch(tmp_path / "own")
    touch(tmp_path / "empty", ["train_all/notes.txt", "query/b/1.jpg", "gallery/b/2.jpg"])
    assert not is_pytorch(tmp_path / "empty")
