from __future__ import annotations

import errno
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from uda_reid.errors import CheckpointError
from uda_reid.training.checkpoint import load, save
from uda_reid.writing import Occupied, append_text, keep_aside, private_folder, replace_file, replacing


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_no_temporary_one(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    save(path, {"x": torch.ones(3)}, kind="test")
    old = path.read_bytes()

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the new file is there, under another name
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "fsync" else Path, broken, fail)
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be written \(No space left on device\)"):
        save(path, {"x": torch.zeros(300)}, kind="test")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save(path, {"x": 1}, kind="test")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt("by hand")

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt, match="by hand"):
        save(path, {"x": 2}, kind="test")
    assert load(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file_at_once_leave_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, together = tmp_path / "state", threading.Barrier(4, timeout=30)
    monkeypatch.setattr(os, "fsync", lambda _: together.wait())  # all four are written before one is put in place
    contents = [bytes([number]) * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda content: replace_file(path, content), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_file_that_is_written_piece_by_piece_appears_whole_or_not_at_all(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "new folder" / "state"
    with replacing(path) as file:
        file.write(b"one ")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"one two"
    with pytest.raises(error, match="stopped"), replacing(path) as file:
        file.write(b"half")
        raise error("stopped")
    assert path.read_bytes() == b"one two"
    assert list(path.parent.iterdir()) == [path]


def test_leavings_of_killed_writers_are_swept_once_they_are_old(tmp_path: Path) -> None:
    path = tmp_path / "state[1]"
    old, young = tmp_path / ".state[1].old.tmp", tmp_path / ".state[1].young.tmp"
    kept = [young, tmp_path / ".state1.old.tmp", tmp_path / "state[1].old.tmp"]
    for left in (old, *kept):
        left.write_bytes(b"")
        if left != young:
            os.utime(left, (time.time() - 4000,) * 2)
    replace_file(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_written_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    replace_file(tmp_path / "state", b"")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_folder_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file" / "state", {}, kind="test")


@pytest.mark.parametrize("linked", [True, False])
def test_second_name_outlasts_the_replacement_and_the_first_is_there_all_the_while(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", none)
    path, other = tmp_path / "state", tmp_path / "state.previous"
    for content in (b"one", b"two"):
        replace_file(path, content)
        keep_aside(path, other)
        assert path.read_bytes() == other.read_bytes() == content
    replace_file(path, b"three")
    assert (path.read_bytes(), other.read_bytes()) == (b"three", b"two")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["state", "state.previous"]


def test_second_name_that_cannot_be_given_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "state"
    replace_file(path, b"one")
    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr("uda_reid.writing.shutil.copyfile", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        keep_aside(path, tmp_path / "other")
    assert [each.name for each in tmp_path.iterdir()] == ["state"] and path.read_bytes() == b"one"


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_does_not_take_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "labels.csv"
    with replacing(path, fresh=True) as file:
        file.write(b"first")
    with pytest.raises(Occupied), replacing(path, fresh=True) as file:
        file.write(b"second")
    assert path.read_bytes() == b"first" and [each.name for each in tmp_path.iterdir()] == ["labels.csv"]


POSIX = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_private_file_is_for_its_user_alone_from_its_first_byte(tmp_path: Path, umask: int) -> None:
    (tmp_path / "page").write_bytes(b"of an earlier version")
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "page", private=True) as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        replace_file(tmp_path / "table", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "page").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "table").stat().st_mode) == 0o666 & ~umask


@POSIX
def test_private_folder_is_made_or_closed(tmp_path: Path) -> None:
    for mode in (None, 0o777, 0o700):
        folder = tmp_path / f"parent/{mode}"
        if mode is not None:
            folder.mkdir(parents=True)
            folder.chmod(mode)
        private_folder(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@POSIX
@pytest.mark.parametrize("what", ["stat", "lstat"])
def test_private_folder_of_another_user_or_behind_another_s_link_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o755)
    look = getattr(Path, what)

    def of_another(path: Path, **options: bool) -> os.stat_result:
        seen = list(look(path, **options))
        seen[stat.ST_UID] += 1
        return os.stat_result(seen)

    monkeypatch.setattr(Path, what, of_another)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        private_folder(tmp_path / "folder")
    monkeypatch.undo()
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


@POSIX
@pytest.mark.parametrize("reader", [False, True])
def test_nothing_is_added_to_a_pipe_or_behind_a_link(tmp_path: Path, reader: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    listening = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK) if reader else None
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"'.*{name}'"):
            append_text(tmp_path / name, "line\n")
    if listening is not None:
        os.close(listening)
    assert (tmp_path / "mine").read_text() == "mine"


def test_lines_are_added_at_the_end_of_a_file(tmp_path: Path) -> None:
    for line in ("one\n", "\udcff\n"):
        append_text(tmp_path / "log.txt", line)
    assert (tmp_path / "log.txt").read_text() == "one\n\\udcff\n"
