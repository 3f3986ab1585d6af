"""Several processes that want one file of pixels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.images.yard import HEIGHT, ROWS, WIDTH, files, mapped, plain, preloaded
from uda_reid.types import Split

pytestmark = pytest.mark.usefixtures("cache")


BUILDER = """
import sys
from pathlib import Path
import numpy as np
from uda_reid.data.images import images_of, pixels
from uda_reid.types import Split

def halting(items, description, total):
    for done, item in enumerate(items):
        if description == "decoding" and done == total // 2:
            print("half way", flush=True)
            sys.stdin.readline()
        yield item

paths = tuple(map(Path, sys.argv[1:]))
pixels.SPARE = 0
images_of(Split(paths, np.zeros(len(paths), np.int64), None), mapped_above=0).preload(20, 12, halting)
"""


@pytest.fixture
def builder(split: Split) -> Iterator[subprocess.Popen[str]]:
    """Another process that has built half of the file, and waits for a line."""
    command = [sys.executable, "-c", BUILDER, *map(str, split.paths)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "half way\n"
        yield process
        process.kill()


def waiting_until(act: Callable[[], None], shown: list[str]) -> Callable[..., Iterator[Any]]:
    """Return a progress that acts once another process is waited for."""

    def progress(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        shown.append(description)
        for done, item in enumerate(items):
            if total is None and not done:
                act()
            yield item

    return progress


def test_second_process_waits_for_the_first_and_takes_its_file(
    split: Split, cache: Path, builder: subprocess.Popen[str]
) -> None:
    def go_on() -> None:
        assert builder.stdin is not None
        builder.stdin.write("\n")
        builder.stdin.flush()

    shown: list[str] = []
    images = mapped(split)
    images.preload(HEIGHT, WIDTH, waiting_until(go_on, shown))
    assert builder.wait(60) == 0
    assert shown == ["reading yard", "waiting for another process to decode yard"]
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert len(files(cache)) == 1


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_builder_leaves_nothing_that_counts(split: Split, cache: Path, builder: subprocess.Popen[str]) -> None:
    def kill() -> None:
        assert [path.suffix for path in files(cache)] == [".tmp"]
        builder.send_signal(signal.SIGKILL)

    mapped(split).preload(WIDTH, HEIGHT)  # another file: the leftover of a builder at work stays
    [other] = (path for path in files(cache) if path.suffix == ".pixels")
    other.unlink()
    shown: list[str] = []
    images = mapped(split)
    images.preload(HEIGHT, WIDTH, waiting_until(kill, shown))
    assert shown == ["reading yard", "waiting for another process to decode yard", "decoding yard"]
    assert torch.equal(images.read(ROWS, HEIGHT, WIDTH), plain(split))
    assert [path.suffix for path in files(cache)] == [".pixels"]


def test_leftovers_of_other_files_are_removed_too(split: Split, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f".{'ab' * 32}.pixels.0123456789abcdef.tmp").write_bytes(b"half")
    preloaded(split)
    assert [path.suffix for path in files(cache)] == [".pixels"]
