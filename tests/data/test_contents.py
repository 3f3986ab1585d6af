from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from uda_reid.data import contents
from uda_reid.data.contents import digests
from uda_reid.errors import DataError, UnreadableError


def test_digests_are_those_of_the_bytes_in_the_order_of_the_paths(tmp_path: Path) -> None:
    paths = []
    for number in range(3 * contents._BLOCK + 1):  # enough for threads
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
        paths.append(tmp_path / f"{number}.jpg")
    paths = [*paths[::-1], paths[5]]
    assert digests(paths) == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert digests([]) == []


def test_file_that_changes_within_a_step_of_its_times_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    times = path.stat().st_mtime_ns
    first = digests([path])
    path.write_bytes(b"two")
    os.utime(path, ns=(times, times))
    assert digests([path]) != first


def test_file_is_read_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_SETTLED", -(1 << 62))  # whatever the time
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    first = digests([path])
    with monkeypatch.context() as blind:
        blind.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
        assert digests([path]) == first
    path.write_bytes(b"another")
    assert digests([path]) != first


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a.jpg").symlink_to("fifo")
    with pytest.raises(
        DataError,
        match=r"a\.jpg: it is a pipe, a socket or a device and no file; remove it, or put the image in its place$",
    ):
        digests([tmp_path / "a.jpg"])


@pytest.mark.parametrize("name", ["gone.jpg", "a\0b.jpg"])
def test_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"jpg: the image cannot be read \(.+\); was the data set moved\?$"):
        digests([tmp_path / name])


def test_every_file_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("nowhere")
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    with pytest.raises(UnreadableError, match=r"b\.jpg: it is a pipe.*; 2 of 3 images are unreadable$") as raised:
        digests(paths)
    assert raised.value.rows == (1, 2)
