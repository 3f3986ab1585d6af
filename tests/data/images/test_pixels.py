from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.images.yard import COUNT, DECODED, HEIGHT, READ, ROWS, WIDTH, Watcher, files, mapped, plain, preloaded
from tests.test_tampering import secrets
from uda_reid import writing
from uda_reid.data.images import images_of, photographs, pixels, target_order, unlabelled
from uda_reid.errors import DataError, UnreadableError
from uda_reid.types import Domain, Split

pytestmark = pytest.mark.usefixtures("cache")


# ---- what is kept ------------------------------------------------------------


def test_pixels_are_those_of_decoding(split: Split, cache: Path) -> None:
    images, watcher = preloaded(split)
    assert watcher.shown == [READ, DECODED]
    assert watcher.lines == []
    expected = plain(split)
    for path in split.paths:
        path.unlink()  # nothing is decoded any more
    found = images.read(ROWS, HEIGHT, WIDTH)
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    rows = torch.tensor([7, 3, 7, 39])
    assert torch.equal(images.read(rows, HEIGHT, WIDTH), expected[rows])
    found.zero_()  # the caller owns what it got
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), expected)
    assert images.read(ROWS[:0], HEIGHT, WIDTH).shape == (0, 3, HEIGHT, WIDTH)
    with pytest.raises(DataError, match="row 40 is out of range"):
        images.read(torch.tensor([40]), HEIGHT, WIDTH)
    [file] = files(cache)
    assert file.stat().st_size == 4096 + COUNT * (3 * HEIGHT * WIDTH + 4)  # and a checksum of each


def test_few_images_stay_in_memory(split: Split, cache: Path) -> None:
    size = COUNT * 3 * HEIGHT * WIDTH
    for limit, number in ((size, 0), (size - 1, 1)):
        images = images_of(split, mapped_above=limit)
        images.preload(HEIGHT, WIDTH)
        assert len(files(cache)) == number
        assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    images_of(split).preload(HEIGHT, WIDTH)
    assert len(files(cache)) == 1


def test_reading_alone_makes_no_file(split: Split, cache: Path) -> None:
    images = mapped(split, cache_bytes=1 << 30)
    images.read(ROWS[:3], HEIGHT, WIDTH)
    assert files(cache) == []
    images.preload(HEIGHT, WIDTH)  # and what it has kept gives way to the file
    assert len(files(cache)) == 1
    assert images._caches == {}
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))


def test_orders_copies_and_parts_of_a_split_have_their_own_pixels(split: Split, cache: Path, tmp_path: Path) -> None:
    preloaded(split)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    copies = []
    for row in order.tolist():
        copies.append(tmp_path / f"copy{row}.jpg")
        shutil.copy(split.paths[row], copies[-1])
    copied, watcher = preloaded(Split(tuple(copies), np.arange(COUNT), None))
    assert watcher.shown == [READ]  # other names in another order, and nothing is decoded
    assert torch.equal(copied.read(ROWS, HEIGHT, WIDTH), plain(split)[order])
    twice = Split((*split.paths, split.paths[3], copies[0]), np.arange(COUNT + 2), None)
    images, watcher = preloaded(twice)
    assert watcher.shown == [("reading yard", COUNT + 2)]
    assert torch.equal(images.read(torch.arange(COUNT + 2), HEIGHT, WIDTH), plain(twice))
    assert len(files(cache)) == 1
    part = Split(split.paths[5:9], np.arange(4), None)
    images, _ = preloaded(part)
    assert torch.equal(images.read(torch.arange(4), HEIGHT, WIDTH), plain(part))
    assert len(files(cache)) == 2


def test_sizes_have_files_of_their_own(split: Split, cache: Path) -> None:
    images, watcher = preloaded(split)
    images.preload(WIDTH, HEIGHT, watcher.progress)
    images.preload(HEIGHT, WIDTH, watcher.progress)  # is there, and shows nothing
    assert watcher.shown == [READ, DECODED] * 2
    assert torch.equal(images.read(ROWS, WIDTH, HEIGHT), plain(split, WIDTH, HEIGHT))
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert len(files(cache)) == 2


def test_another_pillow_decodes_anew(split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded(split)
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert preloaded(split)[1].shown == [READ, DECODED]
    assert len(files(cache)) == 2


def test_changed_content_is_another_file(split: Split, cache: Path) -> None:
    old, _ = preloaded(split)
    before, path = plain(split), split.paths[4]
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 0x15  # pixels, of the same number of bytes
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = plain(split)
    assert not torch.equal(before, after)
    images, watcher = preloaded(split)
    assert watcher.shown == [READ, DECODED]
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), after)
    assert torch.equal(old.read(ROWS, HEIGHT, WIDTH), before)
    assert len(files(cache)) == 2


# ---- targets ------------------------------------------------------------


def domain_of(train: Split) -> Domain:
    empty = Split((), np.empty(0, np.int64), None)
    return Domain("yard", Path("yard"), train, empty, empty)


def test_target_finds_the_file_of_the_training_images(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(split)[target_order(COUNT)]
    preloaded(split)
    target = unlabelled(domain_of(split), cache_bytes=0, mapped_above=0)
    monkeypatch.setattr(photographs, "decode", None)
    assert torch.equal(target.images.read(ROWS, HEIGHT, WIDTH), expected)
    assert len(files(cache)) == 1


def test_target_with_a_file_leads_to_no_file_name(split: Split) -> None:
    preloaded(split)
    target = unlabelled(domain_of(split), cache_bytes=0, mapped_above=0)
    read = target.images.read(ROWS, HEIGHT, WIDTH)
    split.paths[3].unlink()
    anew = unlabelled(domain_of(split), cache_bytes=0, mapped_above=0)
    with pytest.raises(UnreadableError) as caught:
        anew.images.read(ROWS, HEIGHT, WIDTH)
    caught.value.__traceback__ = None  # but for this frame, which knows the files
    assert secrets(domain_of(split), target, target.images.read, read, anew, caught.value) == []


@pytest.mark.parametrize("change", ["touched", "gone", "file gone", "never read"])
def test_target_without_a_file_decodes(split: Split, cache: Path, change: str) -> None:
    if change != "never read":
        preloaded(split)
    if change == "touched":
        os.utime(split.paths[3])
    if change == "file gone":
        shutil.rmtree(cache)
    target = unlabelled(domain_of(split), cache_bytes=0, mapped_above=0)
    expected = plain(split)[target_order(COUNT)]
    if change == "gone":
        split.paths[3].unlink()
        rows = ROWS[target_order(COUNT) != 3]
        assert torch.equal(target.images.read(rows, HEIGHT, WIDTH), expected[rows])
    else:
        assert torch.equal(target.images.read(ROWS, HEIGHT, WIDTH), expected)


# ---- unreadable images ------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_preload_names_the_first_unreadable_image_and_counts_all(split: Split, cache: Path, damage: str) -> None:
    for row in (31, 8):
        content = split.paths[row].read_bytes()
        split.paths[row].write_bytes(content[: len(content) // 2])
    if damage == "gone":
        split.paths[5].unlink()
    shutil.copy(split.paths[8], split.paths[20])
    first, rows = ("0008", (8, 20, 31)) if damage == "cut" else ("0005", (5, 8, 20, 31))
    watcher = Watcher()
    with pytest.raises(
        UnreadableError, match=rf"{first}_c1\.jpg: cannot be .*; {len(rows)} of 40 images are unreadable$"
    ) as caught:
        mapped(split).preload(HEIGHT, WIDTH, watcher.progress, watcher.lines.append)
    assert caught.value.rows == rows
    assert watcher.lines == []
    assert files(cache) == []


def test_image_that_changes_between_reading_and_decoding_is_refused(split: Split, cache: Path) -> None:
    def changing(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        if description.startswith("decoding"):
            split.paths[6].write_bytes(split.paths[7].read_bytes())
        yield from items

    with pytest.raises(
        UnreadableError, match=r"0006_c1\.jpg: changed while it was being read; start again .*; 1 of 40 images is unr"
    ):
        mapped(split).preload(HEIGHT, WIDTH, changing)
    assert files(cache) == []


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_read_lists_all_rows_that_cannot_be_read(split: Split, cache_bytes: int) -> None:
    for row in (9, 2, 30):
        split.paths[row].write_bytes(b"no image")
    images = images_of(split, cache_bytes=cache_bytes)
    with pytest.raises(
        UnreadableError, match=r"0002_c1\.jpg: cannot be decoded \(not an image\): re.*ace it$"
    ) as caught:
        images.read(torch.tensor([1, 2, 2, 5, 9, 1]), HEIGHT, WIDTH)
    assert caught.value.rows == (2, 9)
    assert torch.equal(images.read(torch.tensor([5, 1]), HEIGHT, WIDTH)[0], images.read(ROWS[5:6], HEIGHT, WIDTH)[0])
    assert pickle.loads(pickle.dumps(caught.value)).rows == (2, 9)  # processes send errors to one another
    target = unlabelled(domain_of(split), cache_bytes=cache_bytes).images
    with pytest.raises(UnreadableError, match=r"^an image of the target cannot be read any more; `uda-") as caught:
        target.read(ROWS, HEIGHT, WIDTH)
    order = target_order(COUNT).tolist()
    assert sorted(order[row] for row in caught.value.rows) == [2, 9, 30]


def test_images_first_read_in_inference_mode_are_read_outside_of_it(split: Split) -> None:
    images = images_of(split)
    with torch.inference_mode():
        images.read(ROWS[:3], HEIGHT, WIDTH)
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))


# ---- files that are none ------------------------------------------------------------


def shorter(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def longer(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def foreign(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def other_key(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [shorter, longer, empty, foreign, other_key, Path.unlink])
def test_damaged_file_is_built_anew(split: Split, cache: Path, damage: Callable[[Path], None]) -> None:
    preloaded(split)
    [file] = files(cache)
    whole = file.read_bytes()
    damage(file)
    images, watcher = preloaded(split)
    assert watcher.shown == [READ, DECODED]
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert files(cache) == [file] and file.read_bytes() == whole


# ---- no place for a file ------------------------------------------------------------


def no_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    cache.parent.write_text("a file")
    return r"pixels: Not a directory"


def no_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def usage(_: Any) -> Any:
        return SimpleNamespace(free=3_400_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(pixels, "SPARE", 3_400_000_000)
    return r"pixels: 0.0 GB and 3.4 GB to spare are needed, 3.4 GB are free"


def disk_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    return r"pixels: No space left on device"


def no_locks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    class Lock:
        is_locked = False

        def __init__(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(pixels, "FileLock", Lock)
    return r"pixels: FileSystem does not appear to support flock"


@pytest.mark.parametrize("obstacle", [no_folder, no_room, disk_full, no_locks])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_without_a_place_images_are_kept_in_memory_or_decoded_anew(
    split: Split,
    cache: Path,
    cache_bytes: int,
    obstacle: Callable[[Path, pytest.MonkeyPatch], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = obstacle(cache, monkeypatch)
    images, watcher = mapped(split, cache_bytes=cache_bytes), Watcher()
    images.preload(HEIGHT, WIDTH, watcher.progress, watcher.lines.append)
    [line] = watcher.lines
    remedy = "set UDA_REID_CACHE to a folder with room"
    assert re.fullmatch(rf"yard: decoded images are not kept on disk \(.*{reason}\); {remedy}", line)
    assert files(cache) == []
    assert len(images._caches) == (cache_bytes > 0)
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))


# ---- files that are damaged ------------------------------------------------------------

IMAGE = 3 * HEIGHT * WIDTH


def overwritten(file: Path, first: int, count: int) -> None:
    """Put other bytes in the place of images, as a bad disk or another program does."""
    with file.open("r+b") as opened:
        opened.seek(4096 + first * IMAGE)
        opened.write(np.random.default_rng(1).bytes(count * IMAGE))


def test_images_whose_checksum_is_wrong_are_decoded_again_mended_and_said(split: Split, cache: Path) -> None:
    preloaded(split)
    [file] = files(cache)
    whole = file.read_bytes()
    overwritten(file, 10, 20)
    images, watcher = preloaded(split)
    assert watcher.shown == [READ] and watcher.lines == []  # each image is checked when it is first read
    for _ in range(2):
        assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert file.read_bytes() == whole
    assert watcher.lines == [
        f"warning: yard: the file of decoded images is damaged ({file}); "
        "images whose checksum is wrong are decoded again and replaced in it"
    ]


def test_wrong_checksums_do_no_harm(split: Split, cache: Path) -> None:
    preloaded(split)
    [file] = files(cache)
    whole = file.read_bytes()
    file.write_bytes(whole[: -4 * COUNT] + b"\xff" * 4 * COUNT)
    images, watcher = preloaded(split)
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert len(watcher.lines) == 1 and file.read_bytes() == whole


@pytest.mark.parametrize("rows", [0, 3, COUNT])
def test_file_cut_off_while_it_is_open_ends_no_process(split: Split, cache: Path, rows: int) -> None:
    images, watcher = preloaded(split)
    [file] = files(cache)
    whole = file.read_bytes()
    os.truncate(file, 4096 + rows * IMAGE)
    for _ in range(2):
        assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert len(watcher.lines) == (rows < COUNT)  # the checksums at the end were read before
    again, _ = preloaded(split)  # mended or built anew
    assert torch.equal(again.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert file.read_bytes() == whole


def test_damaged_image_whose_own_file_has_changed_is_unreadable(split: Split, cache: Path) -> None:
    images, _ = preloaded(split)
    [file] = files(cache)
    before = plain(split)
    os.truncate(file, 4096)
    split.paths[7].write_bytes(split.paths[8].read_bytes())
    with pytest.raises(UnreadableError, match=r"0007_c1\.jpg: changed while it was being read") as caught:
        images.read(ROWS, HEIGHT, WIDTH)
    assert caught.value.rows == (7,)
    rows = ROWS[ROWS != 7]
    assert torch.equal(images.read(rows, HEIGHT, WIDTH), before[rows])


def test_damaged_file_that_cannot_be_mended_is_read_around(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, watcher = preloaded(split)
    [file] = files(cache)
    overwritten(file, 0, COUNT)
    file.unlink()  # and what is open is all there is
    for _ in range(2):
        assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert len(watcher.lines) == 1 and files(cache) == []


def test_file_that_another_process_has_built_anew_is_taken(split: Split, cache: Path) -> None:
    images, watcher = preloaded(split)
    [file] = files(cache)
    overwritten(file, 0, COUNT)
    os.truncate(file, file.stat().st_size - 1)
    assert preloaded(split)[1].shown == [READ, DECODED]
    assert torch.equal(images.read(ROWS[:1], HEIGHT, WIDTH), plain(split)[:1])
    for path in split.paths:
        path.unlink()  # nothing is decoded any more
    assert torch.equal(images.read(ROWS[1:], HEIGHT, WIDTH)[:0], images.read(ROWS[:0], HEIGHT, WIDTH))
    assert len(watcher.lines) == 1


def test_target_s_file_that_is_damaged_is_said(split: Split, cache: Path) -> None:
    preloaded(split)
    lines: list[str] = []
    target = unlabelled(domain_of(split), cache_bytes=0, mapped_above=0, log=lines.append)
    overwritten(files(cache)[0], 0, COUNT)
    assert torch.equal(target.images.read(ROWS, HEIGHT, WIDTH), plain(split)[target_order(COUNT)])
    assert len(lines) == 1 and "damaged" in lines[0] and "_c1" not in lines[0]


def test_images_with_a_file_are_copied_with_their_own_access_to_it(split: Split, cache: Path) -> None:
    images, _ = preloaded(split)
    copies = [copy.deepcopy(images), pickle.loads(pickle.dumps(images))]
    expected = plain(split)
    del images
    for path in split.paths:
        path.unlink()
    for each in copies:
        assert torch.equal(each.read(ROWS, HEIGHT, WIDTH), expected)


# ---- other users ------------------------------------------------------------

POSIX = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


@POSIX
@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_no_other_user_may_read_decoded_images(split: Split, cache: Path, before: int | None) -> None:
    if before is not None:
        cache.mkdir(parents=True)
        cache.chmod(before)
    preloaded(split)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(cache)} == {0o600}


@POSIX
@pytest.mark.parametrize("loose", ["owner", "mode"])
def test_file_that_another_user_could_have_written_is_not_believed(
    split: Split, cache: Path, loose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloaded(split)
    [file] = files(cache)
    if loose == "mode":
        file.chmod(0o666)
        assert preloaded(split)[1].shown == [READ, DECODED]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        return
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    monkeypatch.setattr(writing, "_ROOT", -1)
    images, watcher = preloaded(split)
    assert watcher.shown == [READ, DECODED]
    assert watcher.lines == [
        f"yard: decoded images are not kept on disk ({cache}: it belongs to another user); "
        "set UDA_REID_CACHE to a folder with room"
    ]
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
