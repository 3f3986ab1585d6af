from __future__ import annotations

import threading
import time

from filelock import FileLock

from tests.pipeline.conftest import Stopper
from uda_reid.job import Job
from uda_reid.pipeline import one, source_model


def test_source_model_is_trained_once(job: Job) -> None:
    path, profile, validation = source_model(job)
    assert profile == "paper"
    written = path.stat().st_mtime_ns
    reporter = Stopper()
    record, _, _ = one(job, reporter=reporter)
    assert path.stat().st_mtime_ns == written
    assert record.validation == validation
    assert any(line.endswith("(found)") for line in reporter.lines)


def test_source_model_in_the_making_is_waited_for(job: Job) -> None:
    path, _, _ = source_model(job)
    lines, held = Stopper(), threading.Event()

    def hold() -> None:
        with FileLock(path.parent / ".lock"):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    one(job, reporter=lines)
    assert any("another process is working on this source model; waiting for it" in line for line in lines.lines)
