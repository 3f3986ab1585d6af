from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from uda_reid import embedding
from uda_reid.cells import plain
from uda_reid.data.images import images_of
from uda_reid.embedding import Embedded, embed
from uda_reid.errors import CheckpointError, DataError, RecipeError
from uda_reid.foreign import score_files
from uda_reid.job import open_domain
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.ops.distance import check_features
from uda_reid.pipeline.folders import locked
from uda_reid.training.encoders import save_encoder
from uda_reid.training.features import extract
from uda_reid.types import DISTRACTOR, JUNK, UNKNOWN, Domain

T = TypeVar("T")
SPEC = EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none", neck="none")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_encoder(tmp_path / "run" / "adapted", build(SPEC))


def lines(embedded: Embedded) -> list[dict[str, str]]:
    with embedded.rows.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def test_embeddings_are_those_of_the_evaluator_split_by_split(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("embedding", "training.features"):
        monkeypatch.setattr(f"uda_reid.{module}.BATCH", 5)  # several blocks, and a smaller last one
    found = embed(model.parent, "alpha", data=data, out=tmp_path / "out")
    array = np.load(found.features, mmap_mode="r")
    assert array.dtype == np.float32
    assert array.shape == (found.count, found.dim) == (54, 160)
    domain, encoder = open_domain("alpha", data), build(SPEC)
    whole = [extract(encoder, images_of(split)).numpy() for split in (domain.train, domain.query, domain.gallery)]
    np.testing.assert_array_equal(array, np.concatenate(whole))
    assert left(tmp_path / "out") == ["features.npy", "rows.csv"]


def test_damaged_images_have_no_row_where_they_are_left_out(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("train_003.png", "gallery_002.png"):
        (data / "alpha" / name).write_bytes(b"no image")
    found = embed(model.parent, "alpha", data=data, out=tmp_path / "out", skip_damaged=True)
    assert (found.count, found.left_out) == (52, {"train": 1, "gallery": 1})
    assert [int(line["row"]) for line in lines(found)] == list(range(52))
    assert not {"train_003.png", "gallery_002.png"} & {line["path"] for line in lines(found)}
    chosen = embed(model.parent, "alpha", data=data, out=tmp_path / "train", splits=["train"], skip_damaged=True)
    assert (chosen.count, chosen.left_out) == (23, {"train": 1})


def test_row_k_of_the_table_is_row_k_of_the_array(model: Path, data: Path, tmp_path: Path) -> None:
    found = embed(model, "alpha", data=data, out=tmp_path / "out")
    array, table, encoder = np.load(found.features), lines(found), build(SPEC)
    assert [line["row"] for line in table] == [str(number) for number in range(54)]
    assert [line["split"] for line in table] == ["train"] * 24 + ["query"] * 6 + ["gallery"] * 24
    domain = open_domain("alpha", data)
    for row in (0, 23, 24, 53):
        name = table[row]["path"]
        split = next(
            split for split in (domain.train, domain.query, domain.gallery) if data / "alpha" / name in split.paths
        )
        place = split.paths.index(data / "alpha" / name)
        assert split.cams is not None
        assert table[row]["identity"] == str(split.pids[place])
        assert table[row]["camera"] == str(split.cams[place])
        assert table[row]["tracklet"] == ""
        alone = extract(encoder, images_of(split), rows=torch.tensor([place])).numpy()[0]
        np.testing.assert_allclose(array[row], alone, atol=1e-5)


def test_rows_of_length_one_on_request(model: Path, data: Path, tmp_path: Path) -> None:
    raw = np.load(embed(model, "alpha", data=data, out=tmp_path / "raw").features)
    unit = np.load(embed(model, "alpha", data=data, out=tmp_path / "unit", normalise=True).features)
    lengths = np.sqrt((raw.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    assert abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(unit, raw / lengths, rtol=1e-6)


def test_chosen_splits_stand_in_their_usual_order(model: Path, data: Path, tmp_path: Path) -> None:
    found = embed(model, "alpha", data=data, out=tmp_path / "out", splits=("gallery", "query", "query"))
    assert [line["split"] for line in lines(found)] == ["query"] * 6 + ["gallery"] * 24
    assert len(np.load(found.features)) == found.count == 30
    with pytest.raises(RecipeError, match=r"^split 'probe' is unknown; use train, query, gallery$"):
        embed(model, "alpha", data=data, out=tmp_path / "other", splits=("probe",))
    assert left(tmp_path / "other") == []


def test_labels_that_nobody_knows_are_blank(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = open_domain("alpha", data)
    train = replace(domain.train, pids=np.full(24, UNKNOWN), cams=None, tracklets=np.arange(24) // 4)
    pids = domain.gallery.pids.copy()
    pids[:2] = JUNK, DISTRACTOR
    empty = replace(domain.query, paths=(), pids=np.zeros(0, np.int64), cams=None)
    odd = replace(domain, train=train, query=empty, gallery=replace(domain.gallery, pids=pids))
    opened(monkeypatch, odd)
    table = lines(embed(model, "alpha", out=tmp_path / "out"))
    assert [line["split"] for line in table] == ["train"] * 24 + ["gallery"] * 24
    assert {(line["identity"], line["camera"]) for line in table[:24]} == {("", "")}
    assert [line["tracklet"] for line in table[:9]] == ["0", "0", "0", "0", "1", "1", "1", "1", "2"]
    assert [line["identity"] for line in table[24:26]] == ["-1", "0"]
    with pytest.raises(DataError, match=r"alpha: no query images to embed; leave out --split query$"):
        embed(model, "alpha", out=tmp_path / "none", splits=("train", "query"))


def opened(monkeypatch: pytest.MonkeyPatch, domain: Domain) -> None:
    monkeypatch.setattr(embedding, "open_domain", lambda *_, **__: domain)


def test_file_name_that_is_no_utf8_keeps_its_bytes(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = open_domain("alpha", data)
    strange = domain.root / 'caf\udce9, "a".png'
    try:
        domain.train.paths[0].rename(strange)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    elsewhere = tmp_path / "elsewhere.png"
    domain.train.paths[1].rename(elsewhere)
    opened(
        monkeypatch, replace(domain, train=replace(domain.train, paths=(strange, elsewhere, *domain.train.paths[2:])))
    )
    found = embed(model, "alpha", out=tmp_path / "out", splits=("train",))
    text = found.rows.read_bytes().decode(errors="surrogateescape")
    table = list(csv.DictReader(io.StringIO(text)))
    assert [line["path"] for line in table[:2]] == [strange.name, elsewhere.as_posix()]


def test_output_is_named_after_the_data_set(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = embed(model, str(data / "alpha"), splits=("query",))
    assert found == Embedded(Path("alpha-features/features.npy"), Path("alpha-features/rows.csv"), 6, 160)
    assert found.features.is_file()


@pytest.mark.parametrize("name", ["features.npy", "rows.csv"])
def test_what_is_there_is_not_overwritten_unasked(model: Path, data: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    (out / "notes.txt").write_text("mine too")
    message = rf"out/{name} is there already; choose another --out, or replace it with --overwrite$"
    with pytest.raises(DataError, match=message):
        embed(model, "alpha", data=data, out=out)
    assert (out / name).read_text() == "mine"
    embed(model, "alpha", data=data, out=out, overwrite=True)
    assert len(np.load(out / "features.npy")) == 54
    assert left(out) == ["features.npy", "notes.txt", "rows.csv"]
    embed(model, "alpha", data=data, out=out, overwrite=True, splits=("query",))
    assert len(np.load(out / "features.npy")) == 6


def test_unreadable_image_is_named_before_anything_is_written(model: Path, data: Path, tmp_path: Path) -> None:
    bad = data / "alpha" / "gallery_003.png"
    bad.write_bytes(bad.read_bytes()[:200])
    message = (
        r"^.*gallery_003\.png: cannot be decoded \(truncated\): remove or replace it; 1 of 24 images is unreadable$"
    )
    with pytest.raises(DataError, match=message):
        embed(model, "alpha", data=data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert embed(model, "alpha", data=data, out=tmp_path / "out", splits=("train", "query")).count == 30


class Stopper:
    """A reporter that is interrupted in the second block."""

    def log(self, message: str) -> None:
        pass

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        for number, item in enumerate(items):
            if description == "embedding alpha" and number == 1:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("before", [False, True])
def test_interrupted_writing_leaves_what_was_there(model: Path, data: Path, tmp_path: Path, before: bool) -> None:
    out = tmp_path / "out"
    if before:
        embed(model, "alpha", data=data, out=out, splits=("query",))
    with pytest.raises(KeyboardInterrupt):
        embed(model, "alpha", data=data, out=out, overwrite=before, reporter=Stopper())
    assert left(out) == (["features.npy", "rows.csv"] if before else [])
    if before:
        assert len(np.load(out / "features.npy")) == 6
        assert len((out / "rows.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize("full", ["array", "table"])
def test_full_disk_is_one_line_and_leaves_what_was_there(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    out = tmp_path / "out"
    embed(model, "alpha", data=data, out=out, splits=("query",))

    def no_room(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedding, "_describe" if full == "table" else "unit_length", no_room)
    with pytest.raises(
        CheckpointError, match=r"^\S+ cannot be written \(No space left on device\); make room or write"
    ):
        embed(model, "alpha", data=data, out=out, overwrite=True, normalise=True)
    assert left(out) == ["features.npy", "rows.csv"]
    assert len(np.load(out / "features.npy")) == 6


def test_disk_that_is_too_small_is_refused_before_the_first_image(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=54 * 160 * 4 - 1))
    monkeypatch.setattr(embedding, "extract", lambda *_, **__: pytest.fail("an image was embedded"))
    with pytest.raises(CheckpointError, match=r"out: the embeddings take 0\.0 MB and 0\.0 MB are free; make room or"):
        embed(model, "alpha", data=data, out=tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_broken_model_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    encoder = build(SPEC)
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    broken = save_encoder(tmp_path / "broken", encoder)
    with pytest.raises(DataError, match=r"^embeddings of alpha train: row 0 holds NaN or infinity"):
        embed(broken, "alpha", data=data, out=tmp_path / "out")
    assert left(tmp_path / "out") == []
    with pytest.raises(CheckpointError, match=r"there is no such checkpoint"):
        embed(tmp_path / "absent", "alpha", data=data, out=tmp_path / "out")


def test_memory_does_not_hold_the_array(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "BATCH", 4)
    written: list[int] = []

    def counting(features: torch.Tensor, name: str) -> None:
        temporary = next((tmp_path / "out").glob(".features.npy.*.tmp"))
        written.append(temporary.stat().st_size)
        assert len(features) <= 4
        check_features(features, name)

    monkeypatch.setattr(embedding, "check_features", counting)
    embed(model, "alpha", data=data, out=tmp_path / "out")
    assert written[-1] > 20 * 160 * 4 > written[0]  # blocks reach the disk while later ones are computed


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_at_once_do_not_mix(model: Path, data: Path, tmp_path: Path, overwrite: bool) -> None:
    """Features of one beside rows of the other would both have been reported as written."""
    (tmp_path / "out").mkdir()
    with (
        locked(tmp_path / "out"),
        pytest.raises(CheckpointError, match="another process is embedding into this folder"),
    ):
        embed(model, "alpha", data=data, out=tmp_path / "out", overwrite=overwrite)
    assert left(tmp_path / "out") == []
    embed(model, "alpha", data=data, out=tmp_path / "out")  # it is waited for, the first remedy
    embed(model, "alpha", data=data, out=tmp_path / "other")  # and the other


def test_names_of_any_bytes_and_formulas_make_the_round_trip(model: Path, data: Path, tmp_path: Path) -> None:
    """Archives from other systems hold names that are no UTF-8, and a name may begin a formula."""
    folder = data / "site"
    for split in ("train", "query", "gallery"):
        for person in ("=cmd", "'@b", "anna"):
            (folder / split / person).mkdir(parents=True)
            name = os.fsdecode(b"\xd5\xd5\xc6\xac-c%d.png" % (1 + (split == "gallery")))
            shutil.copy(data / "alpha" / "train_000.png", folder / split / person / name)
    found = embed(model, "site", data=data, out=tmp_path / "out")
    table = found.rows.read_bytes()
    assert b"\xd5\xd5\xc6\xac" in table
    search, _ = score_files([found.features], ids=found.rows)
    assert len(search.query) == len(search.gallery) == 3


def test_no_cell_of_a_table_is_a_formula(model: Path, data: Path, tmp_path: Path) -> None:
    folder = data / "odd"
    folder.mkdir()
    (folder / "unlabelled.txt").touch()
    for name in ("=1+1.png", "+a.png", "-b.png", "@c.png", "plain.png"):
        shutil.copy(data / "alpha" / "train_000.png", folder / name)
    found = embed(model, "odd", data=data, out=tmp_path / "out")
    paths = [line["path"] for line in lines(found)]
    assert sorted(paths) == sorted(["'=1+1.png", "'+a.png", "'-b.png", "'@c.png", "plain.png"])
    assert sorted(map(plain, paths)) == sorted(path.name for path in folder.glob("*.png"))


def test_the_table_of_embeddings_is_a_manifest_too(model: Path, data: Path, tmp_path: Path) -> None:
    """Names of any bytes and formulas come back from it, where it lies as manifest.csv."""
    folder = data / "odd"
    names_of = [os.fsdecode(b"\xd5%d.png" % n) for n in range(2)] + ["=1.png", "two\rlines.png", "@.png", "plain.png"]
    for person in ("anna", "=ben", "carl", "@dora"):
        (folder / person).mkdir(parents=True)
        for name in names_of:
            shutil.copy(data / "alpha" / "train_000.png", folder / person / name)
    first = open_domain("odd", data)
    found = embed(model, "odd", data=data, out=tmp_path / "out")
    shutil.copy(found.rows, folder / "manifest.csv")
    again = open_domain("odd", data)
    for split in ("train", "query", "gallery"):
        one, other = getattr(first, split), getattr(again, split)
        assert one.paths == other.paths and one.pids.tolist() == other.pids.tolist()
