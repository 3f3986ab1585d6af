from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import TRAIN, fault, manifest, market, mentions, touch
from uda_reid.data.layouts import DATASETS, read


@pytest.mark.parametrize("typed", ["./shop", "shop/", "../here/shop", "~/shop", "{absolute}"])
def test_path_means_what_it_says(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = market(tmp_path / "here" / "shop")
    market(tmp_path / "there" / "shop")
    market(tmp_path / "here" / "shop2", train=TRAIN[:1])
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    domain = read(typed.format(absolute=here), tmp_path / "there")
    assert domain.root.resolve() == here
    assert domain.notes == ()
    assert read("./shop2", tmp_path / "there").name == "shop2"


def test_known_dataset_in_the_working_directory_is_taken_after_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market(tmp_path / "here" / "market")
    monkeypatch.chdir(tmp_path / "here")
    assert read("market", tmp_path / "there").root.resolve() == tmp_path / "here" / "market"
    root = market(tmp_path / "there" / "Market1501")
    assert read("market", tmp_path / "there").root == root


def test_folder_called_as_typed_goes_before_other_places(tmp_path: Path) -> None:
    first = market(tmp_path / "market1501")
    assert read("market", tmp_path).root == first
    own = market(tmp_path / "market")
    assert read("market", tmp_path).root == own
    assert read("market1501", tmp_path).root == first
    assert read("Market-1501", tmp_path).root == first


@pytest.mark.parametrize("around", ["nest", "nest/market1501", "market1501", "Market-1501-v15.09.15"])
@pytest.mark.parametrize("inner", ["Market-1501-v15.09.15", "files"])
def test_dataset_that_lies_deeper_is_gone_into_with_a_note(around: str, inner: str, tmp_path: Path) -> None:
    folder = market(tmp_path / around / inner)
    (tmp_path / around / "readme.txt").touch()
    domain = read(f"{tmp_path}/{around.partition('/')[0]}", tmp_path / "absent")
    known = inner != "files" or around in ("market1501", "Market-1501-v15.09.15")
    assert (domain.root, domain.name) == (folder, "market" if known else around.partition("/")[0])
    assert mentions(domain, f"read from {folder}, where the data set lies")


def test_twice_packed_archive_below_the_root_is_found_by_the_name(tmp_path: Path) -> None:
    folder = market(tmp_path / "Market1501" / "x" / "y")
    assert read("market", tmp_path).root == folder
    market(tmp_path / "Market1501" / "z")
    assert "market (Market-1501) is not in" in fault("market", tmp_path)


def test_sub_place_is_gone_into_beside_other_folders(tmp_path: Path) -> None:
    folder = market(tmp_path / "market1501" / "Market-1501-v15.09.15")
    touch(tmp_path / "market1501", ["weights/model.pth", "thumbs/1.jpg"])
    domain = read(f"{tmp_path}/market1501", tmp_path)
    assert (domain.name, domain.root) == ("market", folder)


@pytest.mark.parametrize("name", ["market", "mars", "viper"])
def test_folder_of_ones_own_called_like_a_known_dataset_claims_nothing(name: str, tmp_path: Path) -> None:
    touch(tmp_path / name, [f"{person}/{n}.jpg" for person in "abcd" for n in (1, 2)])
    domain = read(f"{tmp_path}/{name}", tmp_path)
    assert (domain.name, domain.layout) == (name, "a folder per identity")
    assert not any("published" in note for note in domain.notes)
    assert f"to read {tmp_path / name} as a data set of your own give its path" in fault(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["viper", "viper:3", "cuhk01:2", "cuhk03-labelled", "cuhk03-classic:5", "msmt17-train"]
)
def test_table_is_no_division_of_a_known_dataset(name: str, tmp_path: Path) -> None:
    place = DATASETS[name.partition(":")[0]].places[-1]
    folder = manifest(tmp_path / place, "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\n")
    assert f"{folder}: is read through its manifest.csv, which does not say that it is {name}; give" in fault(
        name, tmp_path
    )
    domain = read(str(folder), tmp_path)
    assert len(domain.train) == 1
    assert not (name.startswith("viper") and mentions(domain, "published"))


def test_table_of_a_known_dataset_is_compared_with_what_was_published(tmp_path: Path) -> None:
    manifest(tmp_path / "market", "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\n")
    assert mentions(read("market", tmp_path), "Market-1501 was published with")


@pytest.mark.parametrize("depth", ["site", "download/site"])
def test_a_data_set_of_one_s_own_that_lies_alone_in_a_folder_is_entered(depth: str, tmp_path: Path) -> None:
    people = [
        f"{split}/000{who}/c{cam}_1.jpg" for split in ("train", "query", "gallery") for who in (1, 2) for cam in (1, 2)
    ]
    touch(tmp_path / "b" / depth, people)
    domain = read("b", tmp_path)
    assert domain.root == tmp_path / "b" / depth and len(domain.train) == 4
    assert mentions(domain, f"read from {tmp_path / 'b' / depth}, where the data set lies")


def test_images_that_are_marked_unlabelled_are_found_one_folder_deeper(tmp_path: Path) -> None:
    touch(tmp_path / "b" / "site", ["entrance/1.jpg", "exit/2.jpg", "unlabelled.txt"])
    domain = read("b", tmp_path)
    assert len(domain.train) == 2 and not domain.labelled
