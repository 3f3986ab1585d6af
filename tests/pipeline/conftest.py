"""A run that takes a moment, and the same from two sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from uda_reid.job import Job


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
