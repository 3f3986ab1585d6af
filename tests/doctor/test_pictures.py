from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uda_reid.doctor.findings import Finding
from uda_reid.doctor.people import search
from uda_reid.doctor.pictures import copies, decoded, look, repeated
from uda_reid.testing import tiny_domain
from uda_reid.training.devices import digest_of
from uda_reid.types import Domain, Split


@pytest.fixture
def yard(tmp_path: Path) -> Domain:
    return tiny_domain(tmp_path / "yard")


def seen(domain: Domain) -> list[Finding]:
    return list(decoded(domain, look(domain)))


def alike(domain: Domain) -> list[tuple[str, str]]:
    labels = search(domain).labels
    return [(finding.level, finding.text) for finding in repeated(domain, copies(domain), labels)]


def test_sound_images_are_measured_and_nothing_else(yard: Domain) -> None:
    assert seen(yard) == [Finding("note", "all images are 32 x 16 pixels (height x width)")]
    assert not alike(yard)


def test_unreadable_images_are_counted_and_the_first_named_with_the_reason(yard: Domain) -> None:
    for path in yard.train.paths[:12]:
        path.write_bytes(b"no picture")
    yard.query.paths[2].unlink()
    findings = seen(yard)
    errors = [finding.text for finding in findings if finding.level == "error"]
    assert errors[0] == (
        "13 images cannot be read (12 in train, 1 in query), and a run stops at the first of them: "
        "replace or remove them, or leave them out with `--skip-damaged` (the first 10 follow; `--json` names all)"
    )
    names = [f"train: train_{number:03d}.png: cannot be decoded (not an image)" for number in range(10)]
    assert [text.rsplit(":", 1)[0] for text in errors[1:]] == names
    assert findings[-1].text == "all images are 32 x 16 pixels (height x width)"
    assert {name: len(bad) for name, bad in look(yard).unreadable.items()} == {"train": 12, "query": 1, "gallery": 0}


def test_sizes_are_told_with_their_median(yard: Domain) -> None:
    Image.new("RGB", (10, 20)).save(yard.train.paths[0])
    Image.new("RGB", (64, 128)).save(yard.gallery.paths[-1])
    assert [finding.text for finding in seen(yard)] == [
        "images are 20 x 10 to 128 x 64 pixels (height x width), median 32 x 16"
    ]


@pytest.mark.parametrize(("wide", "level"), [(1, "note"), (3, "warning")])
def test_images_wider_than_tall_are_told_and_many_of_them_are_a_warning(yard: Domain, wide: int, level: str) -> None:
    for path in yard.gallery.paths[:wide]:
        Image.new("RGB", (40, 30)).save(path)
    finding = seen(yard)[-1]
    assert finding.level == level
    assert finding.text.startswith(f"{wide} image{'s' if wide > 1 else ''} ({wide / 54:.1%}) wider than tall")
    assert finding.text.endswith("look at gallery_000.png")


def test_looking_shows_progress_over_every_split(yard: Domain) -> None:
    said: list[tuple[str, int | None]] = []

    def progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        said.append((description, total))
        return items

    look(yard, progress=progress)
    copies(yard, progress=progress)
    assert said[:3] == [("decoding tiny train", 24), ("decoding tiny query", 6), ("decoding tiny gallery", 24)]
    assert said[3][0] == "comparing tiny"


def place(domain: Domain, split: str, row: int) -> Path:
    path: Path = getattr(domain, split).paths[row]
    return path


def copy(domain: Domain, source: tuple[str, int], to: tuple[str, int]) -> None:
    shutil.copy(place(domain, *source), place(domain, *to))


def test_same_bytes_are_found_and_same_sizes_are_not_enough(yard: Domain) -> None:
    copy(yard, ("train", 0), ("train", 1))
    content = place(yard, "train", 0).read_bytes()
    place(yard, "gallery", 0).write_bytes(content[:-1] + b"x")
    assert copies(yard) == [[("train", 0), ("train", 1)]]
    place(yard, "train", 1).unlink()
    assert not copies(yard)


@pytest.mark.parametrize(
    ("source", "to", "level", "text"),
    [
        (("train", 0), ("train", 1), "note", "identical files within train: 1, first train_000.png = train_001.png;"),
        (("train", 0), ("gallery", 2), "warning", "identical files in train and in the test: 1, first train_000.png"),
        (("query", 0), ("gallery", 1), "warning", "identical files in query and gallery: 1, first query_000.png"),
        (("gallery", 0), ("gallery", 9), "warning", "identical files with two identities: 1, first gallery_000.png"),
    ],
)
def test_identical_files_are_told_by_what_they_spoil(
    yard: Domain, source: tuple[str, int], to: tuple[str, int], level: str, text: str
) -> None:
    copy(yard, source, to)
    found = alike(yard)
    assert any(is_level == level and told.startswith(text) for is_level, told in found), found


def test_copy_of_a_query_that_the_protocol_removes_is_none(yard: Domain) -> None:
    copy(yard, ("query", 0), ("gallery", 0))  # the query's identity and camera
    assert not alike(yard)

    def blind(split: Split) -> Split:
        return replace(split, cams=None)

    without = replace(yard, query=blind(yard.query), gallery=blind(yard.gallery))
    assert [text.partition(":")[0] for _, text in alike(without)] == ["identical files in query and gallery"]


def test_only_files_that_begin_alike_are_read_to_the_end(yard: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    for row, content in enumerate((b"a" * 9000, b"a" * 8999 + b"b", b"b" * 9000, b"a" * 9000)):
        place(yard, "train", row).write_bytes(content)
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest_of(path)

    monkeypatch.setattr("uda_reid.doctor.pictures.digest_of", noted)
    assert copies(yard) == [[("train", 0), ("train", 3)]]
    assert {"train_000.png", "train_001.png", "train_003.png"} <= set(read)
    assert "train_002.png" not in read


def test_files_that_cannot_be_read_are_compared_with_none(yard: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(yard, ("train", 0), ("train", 1))

    def fails(path: Path) -> str:
        if path.name == "train_001.png":
            raise PermissionError
        return digest_of(path)

    monkeypatch.setattr("uda_reid.doctor.pictures.digest_of", fails)
    assert not copies(yard)
