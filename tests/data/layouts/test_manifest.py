from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.layouts.folders import cams, fault, manifest, mentions, names, touch
from uda_reid.data.layouts import listing, read
from uda_reid.errors import DataError
from uda_reid.types import UNKNOWN


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
    assert domain.notes == ("columns of manifest.csv that are ignored: remark",)


def test_manifest_is_found_in_whatever_case(tmp_path: Path) -> None:
    manifest(tmp_path / "own", "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\n")
    (tmp_path / "own" / "manifest.csv").rename(tmp_path / "own" / "Manifest.CSV")
    domain = read("own", tmp_path)
    assert (domain.layout, names(domain.train)) == ("a table (manifest.csv)", ["a.jpg"])


def test_numbers_with_decimals_are_whole_numbers(tmp_path: Path) -> None:
    manifest(
        tmp_path,
        "path,identity,camera,split\na.jpg,3.0,1.0,train\nb.jpg,12.0,2.0,query\nc.jpg,12,1.0,gallery\n"
        "d.jpg,-1.0,1.0,gallery\n",
    )
    domain = read(str(tmp_path), tmp_path)
    assert [split.pids.tolist() for split in (domain.train, domain.query, domain.gallery)] == [[3], [12], [12, -1]]
    assert (cams(domain.query), cams(domain.gallery)) == ([2], [1, 1])
    assert not mentions(domain, "written in several ways")


def test_every_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [f"x/{number}.jpg" for number in range(20)]
    manifest(tmp_path, "path\n" + "\n".join(images) + "\n", images=images)
    asked: list[Path] = []
    is_file = Path.is_file

    def counted(path: Path) -> bool:
        asked.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", counted)
    assert len(read(str(tmp_path), tmp_path).train) == 20
    assert not [path for path in asked if path.suffix == ".jpg"]


def test_dead_link_in_a_table_stays_to_be_called_unreadable(tmp_path: Path) -> None:
    manifest(tmp_path, "path\na.jpg\nz.jpg\n")
    (tmp_path / "z.jpg").symlink_to(tmp_path / "gone.jpg")
    domain = read(str(tmp_path), tmp_path)
    assert names(domain.train) == ["a.jpg", "z.jpg"]
    with pytest.raises(DataError, match=r"z.jpg: the image cannot be read \(No such file"):
        listing(domain)


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
    ("header", "cells"),
    [
        ("path", ""),
        ("path,identity", ","),
        ("path,remark", ",x"),
        ("path,split", ",train"),
        ("path,identity,split", ",,train"),
    ],
)
def test_manifest_without_identities_is_a_target_without_labels(header: str, cells: str, tmp_path: Path) -> None:
    manifest(tmp_path, f"{header}\nb.jpg{cells}\na.jpg{cells}\n")
    domain = read(str(tmp_path), tmp_path)
    assert names(domain.train) == ["a.jpg", "b.jpg"]
    assert (domain.train.pids.tolist(), domain.train.cams) == ([UNKNOWN, UNKNOWN], None)
    assert (len(domain.query), len(domain.gallery)) == (0, 0)
    assert domain.notes[-1] == "no identities: it can be adapted to, nothing can be scored on it"
    assert not domain.labelled


def test_manifest_without_identities_keeps_cameras(tmp_path: Path) -> None:
    manifest(tmp_path, "path,camera\na.jpg,yard\nb.jpg,door\n")
    assert cams(read(str(tmp_path), tmp_path).train) == [2, 1]


@pytest.mark.parametrize(("yard", "train"), [("", None), ("4", [4, 4]), ("0", [1, 1])])
def test_manifest_with_labelled_tests_beside_unlabelled_training_images(
    yard: str, train: list[int] | None, tmp_path: Path
) -> None:
    manifest(
        tmp_path,
        "path,identity,camera,split\n"
        f"a.jpg,,{yard},train\nb.jpg,,{yard},train\nc.jpg,bob,1,query\nd.jpg,bob,2,gallery\n",
    )
    domain = read(str(tmp_path), tmp_path)
    assert domain.train.pids.tolist() == [UNKNOWN, UNKNOWN]
    assert (None if domain.train.cams is None else cams(domain.train)) == train
    shift = yard == "0"
    assert (domain.query.pids.tolist(), cams(domain.query)) == ([1], [1 + shift])
    assert (domain.gallery.pids.tolist(), cams(domain.gallery)) == ([1], [2 + shift])
    assert mentions(domain, "it can be adapted to and scored on, but is no source")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"manifest.csv:1: no column path; the header is nothing"),
        ("path;identity\n", r"manifest.csv:1: no column path; the header is path;identity, .*; put commas"),
        ("path\tidentity\n", r"manifest.csv:1: no column path; the header is path\tidentity, .*; put commas"),
        ("path,identity,cam\n", r"manifest.csv:1: no column camera; the header is path,identity,cam, write path,"),
        ("path,identity,CamID\n", r"manifest.csv:1: no column camera; .*if camid means something else give it another"),
        ("path,identity,camera_id\n", r"manifest.csv:1: no column camera; "),
        ("path,identity,cameras\n", r"manifest.csv:1: no column camera; "),
        ("path,identity,camrea\n", r"manifest.csv:1: no column camera; "),
        ("path,identity,spilt\n", r"manifest.csv:1: no column split; "),
        ("path,identity,subset\n", r"manifest.csv:1: no column split; "),
        ("path,identity,set\n", r"manifest.csv:1: no column split; "),
        ("path,idenity\n", r"manifest.csv:1: no column identity; "),
        ("path,identity,identity\n", r"manifest.csv:1: the column identity is there twice; .* leave one of the two"),
        ("path,identity\nx\\a.jpg,1\n", r"manifest.csv:2: there is no file .*; write / between folders"),
        (f"path,identity\n{'x' * 5000},1\n", r"manifest.csv:2: x* ?.*cannot be read \(File name too long\)"),
        ("path,pid\n", r"manifest.csv:1: no column identity; the header is path,pid, .*left blank where nobody knows"),
        ("path,person_id\na.jpg,1\n", r"manifest.csv:1: no column identity; the header is path,person_id"),
        ("path,Label,camera\na.jpg,1,1\n", r"manifest.csv:1: no column identity; the header is path,label"),
        ("path,identity\n", r"manifest.csv: lists no image"),
        ("path,identity\na.jpg,1,2\n", r"manifest.csv:2: 3 values under 2 columns"),
        ("path,identity\na.jpg,1\nb.jpg,\n", r"manifest.csv:3: identity is blank here but given for other training"),
        (
            "path,identity,split\nb.jpg,,train\na.jpg,1,train\n",
            r"manifest.csv:2: identity is blank here but given for other training images; fill in all",
        ),
        (
            "path,identity,split\na.jpg,,train\nb.jpg,,gallery\n",
            r"manifest.csv:3: identity is blank; every gallery image",
        ),
        ("path,split\na.jpg,train\nb.jpg,query\n", r"manifest.csv:3: identity is blank; every query image"),
        ("path,camera\na.jpg,1\nb.jpg,\n", r"manifest.csv:3: camera is blank here but given elsewhere"),
        ("path,split\na.jpg,train\nb.jpg,\n", r"manifest.csv:3: split is blank here but given elsewhere"),
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
        ("path,identity\na.jpg,1\nb.jpg,1\n", r"1 identity, too few"),
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
    assert ", and the table is not in UTF-8; save it as UTF-8" in fault(tmp_path, tmp_path)


def test_gallery_of_one_identity_is_noted(tmp_path: Path) -> None:
    manifest(tmp_path / "one", "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\nd.jpg,-1,gallery\n")
    assert mentions(read("one", tmp_path), "the gallery shows one identity, so every answer is right")
    manifest(tmp_path / "two", "path,identity,split\na.jpg,1,train\nb.jpg,2,query\nc.jpg,2,gallery\nd.jpg,0,gallery\n")
    assert not mentions(read("two", tmp_path), "every answer is right")
