from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.layouts.folders import TRAIN, cams, fault, manifest, market, mentions, names, touch
from uda_reid.data.layouts import DATASETS, Counts, describe, listing, read
from uda_reid.data.layouts.dataset import KnownDataset
from uda_reid.data.layouts.market import MARKET
from uda_reid.errors import DataError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


MARKET_LIKE = {name: known for name, known in DATASETS.items() if MARKET in known.layouts}


@pytest.mark.parametrize("known", MARKET_LIKE.values(), ids=MARKET_LIKE.keys())
def test_known_dataset_is_found_in_each_of_its_places_under_each_of_its_names(
    known: KnownDataset, tmp_path: Path
) -> None:
    for number, place in enumerate(known.places):
        folder = market(tmp_path / str(number) / place)
        for alias in (known.name, *known.aliases, known.title, known.name.upper()):
            domain = read(alias, tmp_path / str(number))
            assert (domain.name, domain.root) == (known.name, folder)


def test_nested_folder_wins_over_the_folder_around_it(tmp_path: Path) -> None:
    inner = market(tmp_path / "market1501" / "Market-1501-v15.09.15")
    assert read("market", tmp_path).root == inner


def test_known_dataset_given_by_path_keeps_its_short_name(tmp_path: Path) -> None:
    folder = market(tmp_path / "elsewhere" / "Market-1501-v15.09.15")
    domain = read(str(folder), tmp_path / "no such data folder")
    assert domain.name == "market"
    assert mentions(domain, "Market-1501 was published with 12,936 of 751")


@pytest.mark.parametrize("folder", ["Market1501", "Market-1501", "MARKET1501", "market1501/market-1501-V15.09.15"])
@pytest.mark.parametrize("typed", ["Market1501", "market", "market-1501"])
def test_known_dataset_is_found_whatever_the_case_of_its_folder(folder: str, typed: str, tmp_path: Path) -> None:
    inner = market(tmp_path / folder)
    domain = read(typed, tmp_path)
    assert (domain.name, domain.root) == ("market", inner)


def test_known_dataset_is_found_under_its_title(tmp_path: Path) -> None:
    folder = market(tmp_path / "DUKEMTMC-reid")
    assert read("DukeMTMC-reID", tmp_path).root == folder
    assert read("duke", tmp_path).root == folder


def test_folder_spelt_as_typed_wins_over_other_cases(tmp_path: Path) -> None:
    small, large = tmp_path / "market1501", tmp_path / "Market1501"
    market(small)
    if large.exists():
        pytest.skip("this file system tells no case apart")
    market(large)
    assert read("Market1501", tmp_path).root == large
    assert read("market1501", tmp_path).root == small
    assert read("market", tmp_path).root == small


def test_linked_folder_keeps_the_name_that_was_typed(tmp_path: Path) -> None:
    market(tmp_path / "disk" / "volume7")
    (tmp_path / "shop").symlink_to(tmp_path / "disk" / "volume7")
    assert read("shop", tmp_path).name == "shop"
    assert read(f"{tmp_path}/disk/../shop", tmp_path).name == "shop"
    market(tmp_path / "disk" / "Market-1501-v15.09.15")
    (tmp_path / "mine").symlink_to(tmp_path / "disk" / "Market-1501-v15.09.15")
    domain = read("mine", tmp_path)
    assert domain.name == "mine"
    assert mentions(domain, "Market-1501 was published with 12,936 of 751")


def test_name_of_a_folder_under_the_root_wins_over_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = market(tmp_path / "here" / "shop"), market(tmp_path / "there" / "shop")
    monkeypatch.chdir(tmp_path / "here")
    domain = read("shop", tmp_path / "there")
    assert domain.root == there
    assert domain.notes == (f"read from {there}; for shop in the working directory type ./shop",)
    assert read("shop", tmp_path / "nowhere").root.resolve() == here
    assert read("shop", tmp_path / "here").notes == ()
    monkeypatch.chdir(here)
    assert read(".", tmp_path / "there" / "shop").name == "shop"


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read (File name too long); check" in fault("x" * 5000, tmp_path)
    market(tmp_path / "shop")

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    assert fault("shop", tmp_path) == (
        f"{tmp_path / 'shop' / 'manifest.csv'}: cannot be read (Permission denied); check the path and its rights"
    )


def test_manifest_wins_over_every_other_layout(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop")
    manifest(folder, "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\n")
    assert names(read("shop", tmp_path).train) == ["a.jpg"]
    shutil.copytree(folder, tmp_path / "market")
    assert read("market", tmp_path).root == tmp_path / "market"


def test_missing_known_dataset_says_where_it_was_looked_for_and_where_it_comes_from(tmp_path: Path) -> None:
    message = fault("market1501", tmp_path)
    for part in (*DATASETS["market"].places, "bounding_box_train, query and bounding_box_test", "zheng-lab"):
        assert part in message
    assert "withdrawn" in fault("duke", tmp_path)
    (tmp_path / "duke").mkdir()
    assert "duke (DukeMTMC-reID) is not in" in fault("duke", tmp_path)
    assert "there is no folder" in fault("duke", tmp_path / "absent")


@pytest.mark.parametrize(
    ("typed", "meant"), [("markt", "market"), ("Duk", "duke"), ("campsu", "campus"), ("shopp", "Shop")]
)
def test_unknown_name_suggests_a_known_one(typed: str, meant: str, tmp_path: Path) -> None:
    market(tmp_path / "Shop")
    with pytest.raises(DataError, match=f"'{typed}' is no known data set.*did you mean '{meant}'.*market, duke"):
        read(typed, tmp_path, others=("plaza", "campus"))


def test_unknown_name_suggests_nothing_when_nothing_is_close(tmp_path: Path) -> None:
    assert "did you mean" not in fault("xyzzy", tmp_path)
    assert "there is no folder" in fault("xyzzy", tmp_path / "absent")
    assert "no data set is named" in fault(" ", tmp_path)


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["shop.zip"])
    assert "shop.zip is a file; give the folder" in fault("shop.zip", tmp_path)


def test_describe_counts_every_split(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop").parent)
    assert describe(domain) == (
        Counts("train", images=3, identities=2, cameras=2, distractors=0, junk=0),
        Counts("query", images=2, identities=2, cameras=2, distractors=0, junk=0),
        Counts("gallery", images=4, identities=2, cameras=2, distractors=1, junk=1),
    )


def test_listing_stays_when_the_folder_moves(tmp_path: Path) -> None:
    before = listing(read("shop", market(tmp_path / "shop").parent))
    (tmp_path / "shop").rename(tmp_path / "store")
    assert listing(read("store", tmp_path)) == before


def test_listing_changes_with_any_file_or_label(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop")
    digests = {listing(read("shop", tmp_path))}
    path = folder / "bounding_box_train" / TRAIN[0]
    path.write_bytes(b"a picture of another size")
    digests.add(listing(read("shop", tmp_path)))
    path.rename(path.with_name("0002_c2s1_000451_03.jpg"))
    domain = read("shop", tmp_path)
    digests.add(listing(domain))
    digests.add(listing(replace(domain, train=replace(domain.train, pids=domain.train.pids + 1))))
    digests.add(listing(replace(domain, train=replace(domain.train, cams=None))))
    digests.add(listing(replace(domain, train=domain.query, query=domain.train)))
    for tracklets in ([1, 1, 2], [1, 2, 2]):
        digests.add(listing(replace(domain, train=replace(domain.train, tracklets=np.array(tracklets)))))
    assert len(digests) == 8


def test_listing_of_a_vanished_file_is_refused(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop").parent)
    domain.train.paths[0].unlink()
    with pytest.raises(
        DataError, match=r"0002_c1s1_000451_03.jpg: the image cannot be read .*; was the data set moved"
    ):
        listing(domain)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs for development are not here")
@pytest.mark.parametrize(
    ("name", "sizes", "title"),
    [
        ("mini_market1501", [(32, 16, 6), (32, 16, 6), (32, 16, 6)], ""),
        ("cuhk03", [(1942, 200, 10), (200, 100, 10), (760, 100, 10)], "CUHK03-NP detected"),
        ("pku", [(640, 40, 2), (68, 34, 2), (476, 34, 2)], "PKU-Reid"),
    ],
)
def test_photographs_at_hand_have_the_stated_sizes(name: str, sizes: list[tuple[int, int, int]], title: str) -> None:
    domain = read(name, SHARED)
    assert [(row.images, row.identities, row.cameras) for row in describe(domain)] == sizes
    # CUHK03 and PKU-Reid are there in part only, which is said of each split and of nothing else.
    assert domain.name == name
    assert [note.partition(" has ")[0] for note in domain.notes] == (["train", "query", "gallery"] if title else [])
    assert all(f"{title} was published with " in note for note in domain.notes)
    for split in (domain.train, domain.query, domain.gallery):
        assert list(split.paths) == sorted(split.paths)
        assert min(cams(split)) >= 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs for development are not here")
def test_true_market_names_hold_the_right_labels() -> None:
    train = read("mini_market1501", SHARED).train
    for path, pid, cam in train:
        assert (f"{pid:04d}", str(cam)) == (path.name[:4], path.name[6])
