from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

from benchmarks import train_throughput
from benchmarks.train_throughput import BARE, OURS, Usual, chosen, main, prepared
from uda_reid.run import Run
from uda_reid.types import Split


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(train_throughput).failed == 0
    assert doctest.testmod(train_throughput).attempted > 0


def test_a_quick_run_measures_everything_and_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--device", "cpu", "--threads", str(torch.get_num_threads())])
    told = capsys.readouterr().out
    for words in (BARE, OURS, "c  usual loop, 2 workers", "usual loader alone, 2 workers", "our extract", "threads"):
        assert words in told


def test_the_usual_loader_gives_the_same_rows_and_labels_as_ours(tmp_path: Path) -> None:
    options = chosen(["--quick", "--device", "cpu"])
    training = prepared(tmp_path, options.images, options.spec, options.batch, Run())
    split = Split(tuple(sorted(tmp_path.glob("*.jpg"))), training.source.pids.numpy(), None)
    batches = zip(training.some(6), Usual(split, training, 0, 6), strict=True)
    seen = 0
    for ours, usual in batches:
        assert torch.equal(ours.rows, usual.rows)
        assert torch.equal(ours.labels, usual.labels)
        assert ours.images.shape == usual.images.shape
        seen += 1
    assert seen == 6  # more than an epoch has
