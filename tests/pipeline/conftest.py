"""A run that takes a moment, the same from two sources, and a reporter that interrupts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from uda_reid.job import Job

T = TypeVar("T")


class Stopper:
    """A reporter that interrupts the run when a line holds some text."""

    def __init__(self, text: str = "\0") -> None:
        self.text = text
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)
        if self.text in message:
            raise KeyboardInterrupt

    def progress(self, items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
        return items


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Job:
    return Job(
        recipe=str(data / "tiny.yaml"),
        source="alpha",
        target="beta",
        data=data,
        out=tmp_path / "runs",
        profile="paper",
    )


@pytest.fixture
def joint(job: Job, three: Path) -> Job:
    return replace(job, source="alpha,gamma", data=three)
