from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.data.layouts.folders import TRAIN, market
from uda_reid.data.layouts import DATASETS, read
from uda_reid.data.layouts.known import Published, find_known


def test_each_surprise_in_a_known_dataset_is_one_note(tmp_path: Path) -> None:
    market(tmp_path / "market", train=(*TRAIN, "0008_c7s1_000001_01.jpg"))
    domain = read("market", tmp_path)
    assert domain.notes == (
        "train has 4 images of 3 identities, Market-1501 was published with 12,936 of 751",
        "query has 2 images of 2 identities, Market-1501 was published with 3,368 of 750",
        "gallery has 3 images of 2 identities, Market-1501 was published with 15,913 of 750",
        "has images of camera 7, Market-1501 was published with cameras 1 to 6",
    )


def test_known_dataset_as_published_has_no_notes(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop").parent)
    sizes = {"train": Published(3, 2), "query": Published(2, 2), "gallery": Published(3, 2)}
    assert replace(DATASETS["market"], published=sizes).surprises(domain) == ()


def test_published_counts_are_the_literature_ones() -> None:
    counts = {
        name: [tuple(known.published[split]) for split in ("train", "query", "gallery")]
        for name, known in DATASETS.items()
    }
    assert counts == {
        "market": [(12_936, 751), (3_368, 750), (15_913, 750)],
        "duke": [(16_522, 702), (2_228, 702), (17_661, 1_110)],
    }
    assert [known.cameras for known in DATASETS.values()] == [6, 8]


def test_no_name_means_two_datasets() -> None:
    taken = [name for known in DATASETS.values() for name in (known.name, *known.aliases)]
    assert len(taken) == len(set(taken))
    for known in DATASETS.values():
        assert all(find_known(name) is known for name in (known.name, *known.aliases, known.title))
