from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.layouts.folders import TRAIN, cams, manifest, market
from uda_reid.data.layouts import DATASETS, read
from uda_reid.data.layouts.dataset import Published
from uda_reid.data.layouts.known import find_known, known_at


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
        name: [tuple(known.published.get(split, ())) for split in ("train", "query", "gallery")]
        for name, known in DATASETS.items()
    }
    assert counts == {
        "market": [(12_936, 751), (3_368, 750), (15_913, 750)],
        "duke": [(16_522, 702), (2_228, 702), (17_661, 1_110)],
        "msmt17": [(32_621, 1_041), (11_659, 3_060), (82_161, 3_060)],
        "msmt17-train": [(30_248, 1_041), (11_659, 3_060), (82_161, 3_060)],
        "occluded-duke": [(15_618, 702), (2_210, 519), (17_661, 1_110)],
        "personx": [(9_840, 410), (5_136, 856), (30_816, 856)],
        "randperson": [(132_145, 8_000), (), ()],
        "mars": [(509_914, 625), (1_980, 626), (9_330, 620)],
        "duke-video": [(369_656, 702), (702, 702), (2_636, 1_110)],
        "cuhk03": [(7_365, 767), (1_400, 700), (5_332, 700)],
        "cuhk03-labelled": [(7_368, 767), (1_400, 700), (5_328, 700)],
        "cuhk03-classic": [(0, 1_367), (0, 100), (0, 100)],
        "cuhk03-labelled-classic": [(0, 1_367), (0, 100), (0, 100)],
        "cuhk01": [(1_940, 485), (972, 486), (972, 486)],
        "viper": [(632, 316), (316, 316), (316, 316)],
        "pku": [(912, 57), (0, 57), (0, 57)],
    }
    assert {name: known.cameras for name, known in DATASETS.items()} == {
        "market": 6,
        "duke": 8,
        "msmt17": 15,
        "msmt17-train": 15,
        "occluded-duke": 8,
        "personx": 6,
        "randperson": 19,
        "mars": 6,
        "duke-video": 8,
        "cuhk03": 10,
        "cuhk03-labelled": 10,
        "cuhk03-classic": 10,
        "cuhk03-labelled-classic": 10,
        "cuhk01": 2,
        "viper": 2,
        "pku": 2,
    }


def test_training_images_without_identities_are_compared_by_their_number_alone(tmp_path: Path) -> None:
    manifest(tmp_path / "own", "path,identity,split\na.jpg,,train\nb.jpg,,train\nc.jpg,1,query\nd.jpg,1,gallery\n")
    domain = read("own", tmp_path)
    sizes = {"train": Published(2, 751), "query": Published(1, 1), "gallery": Published(1, 1)}
    assert replace(DATASETS["market"], published=sizes).surprises(domain) == ()
    sizes["train"] = Published(3, 751)
    assert replace(DATASETS["market"], published=sizes).surprises(domain) == (
        "train has 2 images of 0 identities, Market-1501 was published with 3 of 751",
    )


@pytest.mark.parametrize(
    ("typed", "name", "place"),
    [
        ("duke", "duke", "dukemtmcreid/DukeMTMC-reID"),
        ("duke", "duke", "dukemtmc-reid/DukeMTMC-reID"),
        ("DukeMTMC-reID", "duke", "dukemtmc/DukeMTMC-reID"),
        ("dukemtmc", "duke", "DukeMTMC-reID"),
        ("dukemtmcreid", "duke", "dukemtmc-reid"),
        ("occluded-duke", "occluded-duke", "Occluded_Duke"),
        ("occluded_duke", "occluded-duke", "occluded_duke/Occluded_Duke"),
        ("Occluded_Duke", "occluded-duke", "dukemtmcreid/Occluded_Duke"),
        ("occ-duke", "occluded-duke", "Occluded-DukeMTMC"),
        ("Occluded-DukeMTMC", "occluded-duke", "occluded-duke"),
    ],
)
def test_duke_and_its_occluded_division_are_found_where_people_put_them(
    typed: str, name: str, place: str, tmp_path: Path
) -> None:
    folder = market(
        tmp_path / place,
        train=("0001_c2_f0046182.jpg", "0007_c8_f0046302.jpg"),
        query=("0002_c1_f0044158.jpg",),
        gallery=("0002_c5_f0044158.jpg", "0003_c6_f0044158.jpg"),
    )
    domain = read(typed, tmp_path)
    assert (domain.name, domain.root) == (name, folder)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1, 7], [2, 8])
    assert (domain.query.pids.tolist(), cams(domain.query)) == ([2], [1])
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([2, 3], [5, 6])


def test_no_name_means_two_datasets() -> None:
    taken = [name for known in DATASETS.values() for name in (known.name, *known.aliases)]
    assert len(taken) == len(set(taken))
    for known in DATASETS.values():
        assert all(find_known(name) is known for name in (known.name, *known.aliases, known.title))


def test_folder_is_known_by_the_end_of_its_path(tmp_path: Path) -> None:
    known = known_at(tmp_path / "CUHK01" / "campus")
    assert known is not None and known.name == "cuhk01"
    assert known_at(tmp_path / "campus") is None
    domain = read(str(market(tmp_path / "msmt17" / "MSMT17_V1")), tmp_path)
    assert domain.name == "msmt17"
