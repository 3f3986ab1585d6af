from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uda_reid.data.layouts import DATASETS, Counts, describe, listing, read
from uda_reid.data.layouts.crops import camera_in
from uda_reid.data.layouts.files import folders_in, images_in
from uda_reid.data.layouts.known import MARKET_NAME, KnownDataset, Published, find_known
from uda_reid.data.layouts.labels import divide
from uda_reid.data.layouts.market import read_market
from uda_reid.errors import DataError
from uda_reid.types import Domain, Ids, Split

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
TRAIN = ("0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c1s1_000001_01.jpg")
QUERY = ("0004_c1s1_000001_00.jpg", "0005_c2s1_000001_00.jpg")
GALLERY = (
    "-1_c1s1_000001_01.jpg",
    "0000_c2s1_000001_01.jpg",
    "0004_c2s1_000001_01.jpg",
    "0005_c1s1_000001_01.jpg",
)


def touch(folder: Path, names: Iterable[str]) -> None:
    """Write files that are no images: reading a layout must not decode anything."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")


def market(
    folder: Path,
    *,
    train: Iterable[str] = TRAIN,
    query: Iterable[str] = QUERY,
    gallery: Iterable[str] = GALLERY,
) -> Path:
    touch(folder / "bounding_box_train", train)
    touch(folder / "query", query)
    touch(folder / "bounding_box_test", gallery)
    return folder


def manifest(folder: Path, text: str, *, images: Iterable[str] = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")) -> Path:
    touch(folder, images)
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


def names(split: Split) -> list[str]:
    return [path.name for path in split.paths]


def cams(split: Split) -> list[int]:
    assert split.cams is not None
    return [int(cam) for cam in split.cams]


def mentions(domain: Domain, text: str) -> bool:
    return any(text in note for note in domain.notes)


def fault(name: str | Path, root: Path) -> str:
    with pytest.raises(DataError, match=r"^.+$") as caught:
        read(str(name), root)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- which folder a name means


@pytest.mark.parametrize("known", DATASETS.values(), ids=DATASETS.keys())
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


def test_name_of_a_folder_under_the_root_wins_over_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = market(tmp_path / "here" / "shop"), market(tmp_path / "there" / "shop")
    monkeypatch.chdir(tmp_path / "here")
    assert read("shop", tmp_path / "there").root == there
    assert read("shop", tmp_path / "nowhere").root.resolve() == here
    assert read(".", tmp_path / "here" / "shop").name == "shop"


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


# --- Market-1501's layout


def test_market_layout_is_read_sorted_with_junk_and_distractors_in_the_gallery(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop", train=reversed(TRAIN)).parent)
    assert names(domain.train) == sorted(TRAIN)
    assert domain.train.pids.tolist() == [2, 2, 7]
    assert cams(domain.train) == [1, 2, 1]
    assert domain.gallery.pids.tolist() == [-1, 0, 4, 5]
    assert cams(domain.query) == [1, 2]
    assert domain.train.pids.dtype == np.int64
    assert domain.train.cams is not None and domain.train.cams.dtype == np.int64
    assert domain.notes == ()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("0002_c1s1_000451_03.jpg", ("0002", "1")),
        ("-1_c3s2_000000_00.jpg", ("-1", "3")),
        ("0001_c2_f0046182.jpg", ("0001", "2")),
        ("00012_c014_x.jpg", ("00012", "014")),
        ("002_c1.jpg", None),
        ("x0002_c1.jpg", None),
        ("-2_c1.jpg", None),
    ],
)
def test_market_names_hold_identity_and_camera(name: str, labels: tuple[str, str] | None) -> None:
    match = MARKET_NAME.match(name)
    assert (match.groups() if match else None) == labels


def test_parent_folder_that_looks_like_a_label_does_not_disturb(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "exp-1_c2" / "shop").parent)
    assert domain.train.pids.tolist() == [2, 2, 7]
    assert cams(domain.train) == [1, 2, 1]


def test_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    extra = ("Thumbs.db", "._0002_c1s1_000451_03.jpg", ".DS_Store", "notes.txt", "0009_c1s1_000001_01.JPeG")
    domain = read("shop", market(tmp_path / "shop", train=(*TRAIN, *extra)).parent)
    assert names(domain.train) == [*sorted(TRAIN), "0009_c1s1_000001_01.JPeG"]
    assert domain.notes == ()


def test_unmatched_names_are_counted_in_one_note(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop", train=(*TRAIN, "cover.jpg"), gallery=(*GALLERY, "zebra.png"))
    domain = read("shop", tmp_path)
    assert len(domain.train) == 3
    assert len(domain.notes) == 1
    assert domain.notes[0].startswith("2 images are not named by identity and camera")
    assert str(folder / "bounding_box_train" / "cover.jpg") in domain.notes[0]


def test_junk_and_distractors_outside_the_gallery_are_dropped_with_a_note(tmp_path: Path) -> None:
    market(
        tmp_path / "shop",
        train=(*TRAIN, "-1_c1s1_000009_01.jpg"),
        query=(*QUERY, "0000_c1s1_000009_01.jpg"),
    )
    domain = read("shop", tmp_path)
    assert (names(domain.train), names(domain.query)) == (sorted(TRAIN), sorted(QUERY))
    assert mentions(domain, "left out of train: 1 of junk or distractors, first -1_c1s1_000009_01.jpg")
    assert mentions(domain, "left out of query: 1")
    assert domain.gallery.pids.tolist() == [-1, 0, 4, 5]


def test_identities_in_train_and_query_alike_are_noted(tmp_path: Path) -> None:
    market(tmp_path / "shop", query=(*QUERY, "0007_c2s1_000001_01.jpg"))
    assert mentions(read("shop", tmp_path), "1 identities are both in train and query")


def test_market_layout_faults_are_one_line(tmp_path: Path) -> None:
    folder = market(tmp_path / "shop")
    shutil.rmtree(folder / "query")
    assert "shop: the folder query is missing" in fault("shop", tmp_path)
    (folder / "query").mkdir()
    assert f"{folder / 'query'}: no images in it (jpg, jpeg, png, bmp, webp)" in fault("shop", tmp_path)
    touch(folder / "query", ["x.jpg", "y.jpg"])
    assert "none of its 2 images is named by identity and camera" in fault("shop", tmp_path)
    market(tmp_path / "junk", train=["-1_c1s1_000001_01.jpg"])
    assert f"{tmp_path / 'junk'}: no image is left in train" in fault("junk", tmp_path)


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


def test_other_folder_names_are_one_field_away(tmp_path: Path) -> None:
    market(tmp_path)
    (tmp_path / "bounding_box_train").rename(tmp_path / "image_train")
    (tmp_path / "query").rename(tmp_path / "image_query")
    (tmp_path / "bounding_box_test").rename(tmp_path / "image_test")
    parts = read_market(tmp_path, folders=("image_train", "image_query", "image_test"))
    assert [len(split) for split in (parts.train, parts.query, parts.gallery)] == [3, 2, 4]


# --- a manifest


def test_manifest_with_numbers_keeps_them(tmp_path: Path) -> None:
    manifest(
        tmp_path / "own",
        "\ufeffPath, Identity ,camera,split,remark\n"
        "b.jpg,12,3,train,x\na.jpg,7,1,train,\n\nc.jpg,9,1,query,\n./d.jpg,-1,3,gallery,\n",
    )
    domain = read("own", tmp_path)
    assert (domain.name, names(domain.train)) == ("own", ["a.jpg", "b.jpg"])
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([7, 12], [1, 3])
    assert (domain.query.pids.tolist(), domain.gallery.pids.tolist()) == ([9], [-1])
    assert domain.notes == ()


def test_manifest_with_text_is_numbered_in_sorted_order(tmp_path: Path) -> None:
    manifest(
        tmp_path / "own",
        "path,identity,camera,split\na.jpg,cleo,yard,train\nb.jpg,bob,door,query\nc.jpg,bob,yard,gallery\nd.jpg,-1,door,gallery\n",
    )
    domain = read("own", tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [
        [2],
        [1],
        [1, -1],
    ]
    assert [cams(split) for split in (domain.train, domain.query, domain.gallery)] == [[2], [1], [2, 1]]


def test_manifest_that_counts_from_zero_is_shifted(tmp_path: Path) -> None:
    manifest(
        tmp_path / "own",
        "path,identity,camera,split\na.jpg,0,0,train\nb.jpg,1,1,query\nc.jpg,1,0,gallery\nd.jpg,-1,0,gallery\n",
    )
    domain = read("own", tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [
        [1],
        [2],
        [2, -1],
    ]
    assert [cams(split) for split in (domain.train, domain.query, domain.gallery)] == [[1], [2], [1, 1]]
    assert mentions(domain, "identities count from 0")


def test_manifest_keeps_distractors_in_the_gallery(tmp_path: Path) -> None:
    manifest(tmp_path, "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\nd.jpg,0,gallery\n")
    domain = read(str(tmp_path), tmp_path)
    assert (domain.train.pids.tolist(), domain.gallery.pids.tolist()) == ([1], [2, 0])


@pytest.mark.parametrize(("column", "cell"), [("", ""), (",camera", ",")])
def test_manifest_without_cameras_has_none(column: str, cell: str, tmp_path: Path) -> None:
    manifest(
        tmp_path,
        f"path,identity{column}\n" + "".join(f"{n}.jpg,{i}{cell}\n" for n, i in zip("abcd", "1122", strict=True)),
    )
    domain = read(str(tmp_path), tmp_path)
    assert domain.train.cams is None and domain.gallery.cams is None
    assert (names(domain.train), names(domain.query), names(domain.gallery)) == (
        ["a.jpg", "b.jpg"],
        ["c.jpg"],
        ["d.jpg"],
    )
    assert mentions(domain, "no split is given: every second of the 2 identities trains")


def test_manifest_takes_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path / "far", ["x.png"])
    manifest(
        tmp_path / "own",
        f"path,identity,split\n{tmp_path / 'far' / 'x.png'},1,train\na.jpg,2,query\nb.jpg,2,gallery\n",
    )
    domain = read("own", tmp_path)
    assert domain.train.paths == (tmp_path / "far" / "x.png",)
    assert len(listing(domain)) == 64


def test_single_camera_counts_as_unknown(tmp_path: Path) -> None:
    manifest(tmp_path, "path,identity,camera\na.jpg,1,5\nb.jpg,1,5\nc.jpg,2,5\nd.jpg,2,5\n")
    domain = read(str(tmp_path), tmp_path)
    assert domain.train.cams is None
    assert names(domain.query) == ["c.jpg"]
    assert mentions(domain, "one camera")


def test_manifest_of_training_images_alone_can_only_be_a_source(tmp_path: Path) -> None:
    manifest(tmp_path, "path,identity,split\na.jpg,1,train\nb.jpg,2,train\n")
    domain = read(str(tmp_path), tmp_path)
    assert (len(domain.train), len(domain.query)) == (2, 0)
    assert mentions(domain, "can be a source but nothing can be scored on it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"manifest.csv:1: no column path and no column identity; the header is nothing"),
        ("path;identity\n", r"manifest.csv:1: no column path .*the header is path;identity"),
        ("path,pid\n", r"manifest.csv:1: no column identity; the header is path,pid"),
        ("path,identity\n", r"manifest.csv: lists no image"),
        ("path,identity\na.jpg,1,2\n", r"manifest.csv:2: 3 values under 2 columns"),
        ("path,identity\na.jpg,\n", r"manifest.csv:2: identity is blank"),
        ("path,identity\n,1\n", r"manifest.csv:2: path is blank"),
        ("path,identity\na.jpg,1\n\nz.jpg,1\n", r"manifest.csv:4: there is no file .*z.jpg"),
        (
            "path,identity\na.jpg,1\n./a.jpg,2\n",
            r"manifest.csv:3: ./a.jpg is listed already in .*manifest.csv:2",
        ),
        ("path,identity\na.jpg,1\nb.jpg,-2\n", r"manifest.csv:3: identity -2 is negative"),
        ("path,identity,camera\na.jpg,1,1\nb.jpg,1,-1\n", r"manifest.csv:3: camera -1 is negative"),
        (
            "path,identity,camera\na.jpg,1,1\nb.jpg,1,\n",
            r"manifest.csv:3: camera is blank here but given elsewhere",
        ),
        ("path,identity,split\na.jpg,1,train\nb.jpg,1,\n", r"manifest.csv:3: split is blank here"),
        (
            "path,identity,split\na.jpg,1,val\n",
            r"manifest.csv:2: split 'val' is unknown; use train, query, gallery",
        ),
        ("path,identity,split\na.jpg,1,query\n", r"no image is left in train"),
        ("path,identity\na.jpg,1\nb.jpg,1\n", r"1 identities, too few"),
        ("path,identity\na.jpg,-1\n", r"0 identities, too few"),
    ],
)
def test_manifest_faults_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    manifest(tmp_path / "own", text)
    with pytest.raises(DataError, match=message) as caught:
        read("own", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "own"))
    assert "\n" not in str(caught.value)


def test_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"path,identity\n\xff\xfe\x00.jpg,1\n")
    assert "manifest.csv: cannot be read as CSV text in UTF-8" in fault(tmp_path, tmp_path)


# --- looking into folders


@pytest.mark.parametrize("look", [images_in, folders_in])
def test_folder_that_cannot_be_read_is_refused(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: the folder cannot be read \(No such file"):
        look(tmp_path / "absent")


# --- a folder per identity


def test_folder_per_identity_is_divided_by_rule(tmp_path: Path) -> None:
    touch(tmp_path / "own", [f"{person}/{n}.png" for person in ("dan", "ann", "bob", "cleo") for n in (2, 1)])
    domain = read("own", tmp_path)
    shown = [
        [str(path.relative_to(domain.root)) for path in split.paths]
        for split in (domain.train, domain.query, domain.gallery)
    ]
    assert shown == [
        ["ann/1.png", "ann/2.png", "cleo/1.png", "cleo/2.png"],
        ["bob/1.png", "dan/1.png"],
        ["bob/2.png", "dan/2.png"],
    ]
    assert domain.train.pids.tolist() == [1, 1, 3, 3]
    assert domain.train.cams is None
    assert mentions(domain, "first image as query")


def test_folder_per_identity_takes_cameras_from_file_names(tmp_path: Path) -> None:
    crops = ["0001/x_c1.jpg", "0001/x_c2.jpg", "0002/x_c1.jpg", "0002/x_c2.jpg", "0002/y_c2.jpg"]
    touch(tmp_path / "own", crops)
    domain = read("own", tmp_path)
    assert (domain.train.pids.tolist(), cams(domain.train)) == ([1, 1], [1, 2])
    assert (names(domain.query), names(domain.gallery)) == (["x_c1.jpg"], ["x_c2.jpg", "y_c2.jpg"])
    touch(tmp_path / "own", ["0002/z.jpg"])
    domain = read("own", tmp_path)
    assert domain.train.cams is None
    assert mentions(domain, "only 5 of 6 file names hold a camera")


def test_folder_per_identity_under_given_splits(tmp_path: Path) -> None:
    crops = ["train/a/1.jpg", "train/b/1.jpg", "query/c/1.jpg", "gallery/c/2.jpg", "gallery/-1/3.jpg"]
    touch(tmp_path / "own", crops)
    domain = read("own", tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [
        [1, 2],
        [3],
        [-1, 3],
    ]
    assert domain.notes == ()
    shutil.rmtree(tmp_path / "own" / "gallery")
    assert "has a folder train but none called gallery" in fault("own", tmp_path)


def test_stray_images_beside_identities_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "cover.jpg"])
    assert mentions(read(str(tmp_path), tmp_path), "1 images outside the identities' folders were left out")


def test_images_without_any_label_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "own", ["a.jpg", "b.jpg"])
    assert "own: its 2 images have no identities, which evaluation needs" in fault("own", tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert "own: no images in it or in the folders in it" in fault("own", tmp_path)
    touch(tmp_path / "own", ["a/notes.txt", "readme.md"])
    assert "own: no images in it or in the folders in it" in fault("own", tmp_path)


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("0001_c2_f0046182", "2"),
        ("c3_0001", "3"),
        ("x-cam12-7", "12"),
        ("Camera_4_x", "4"),
        ("0001_C6_F0099", "6"),
        ("abc3_1", ""),
        ("c0012", ""),
        ("webcam5", ""),
        ("17", ""),
    ],
)
def test_camera_is_found_at_token_boundaries_only(name: str, camera: str) -> None:
    assert camera_in(name) == camera


# --- the division rule


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


# --- what is said about a domain


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
    assert len(digests) == 6


def test_listing_of_a_vanished_file_is_refused(tmp_path: Path) -> None:
    domain = read("shop", market(tmp_path / "shop").parent)
    domain.train.paths[0].unlink()
    with pytest.raises(
        DataError, match=r"0002_c1s1_000451_03.jpg: the image cannot be read .*; was the data set moved"
    ):
        listing(domain)


# --- real photographs


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs for development are not here")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mini_market1501", [(32, 16, 6), (32, 16, 6), (32, 16, 6)]),
        ("cuhk03", [(1942, 200, 10), (200, 100, 10), (760, 100, 10)]),
        ("pku", [(640, 40, 2), (68, 34, 2), (476, 34, 2)]),
    ],
)
def test_photographs_at_hand_have_the_stated_sizes(name: str, sizes: list[tuple[int, int, int]]) -> None:
    domain = read(name, SHARED)
    assert [(row.images, row.identities, row.cameras) for row in describe(domain)] == sizes
    assert (domain.name, domain.notes) == (name, ())
    for split in (domain.train, domain.query, domain.gallery):
        assert list(split.paths) == sorted(split.paths)
        assert min(cams(split)) >= 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs for development are not here")
def test_true_market_names_hold_the_right_labels() -> None:
    train = read("mini_market1501", SHARED).train
    for path, pid, cam in train:
        assert (f"{pid:04d}", str(cam)) == (path.name[:4], path.name[6])
