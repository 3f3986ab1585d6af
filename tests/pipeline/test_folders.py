from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from uda_reid.errors import CheckpointError, DataError
from uda_reid.job import Job
from uda_reid.pipeline import one


def test_two_processes_on_one_run_do_not_meet(job: Job) -> None:
    _, folder, _ = one(job)
    with (
        FileLock(folder / ".lock"),
        pytest.raises(CheckpointError, match="another process is working on this very run"),
    ):
        one(job)


def test_out_that_cannot_be_a_folder_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.* cannot be created .*; choose another --out"):
        one(replace(job, out=tmp_path / "file"))
