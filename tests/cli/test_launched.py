"""Commands that a launcher has started several times, seen from one of the processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from tests.commands import run
from uda_reid import cli
from uda_reid.cli import ending
from uda_reid.cli.arguments import resumable, screen, stop
from uda_reid.errors import DataError
from uda_reid.training.loop import Stopped


class Left(Exception):
    """The process has ended."""


@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0), ("2", 1), ("a", 1)])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["list", "recipes"],
            "list is work for one process, and the launcher started 2; start it without one "
            "(together go adapt, pretrain, evaluate)",
        ),
        (["adapt", "--src", "alpha"], "Missing option '--tgt'; see uda-reid adapt --help"),
        (
            ["evaluate", "--features", "x.npy"],
            "evaluate --features is work for one process, and the launcher started 2; start it without one",
        ),
        (
            ["adapt", "--src", "alpha", "--tgt", "beta", "--set", "adapt.lrr=1"],
            "--set adapt.lrr=1: unknown option; did you mean 'lr'?",
        ),
    ],
)
def test_mistakes_are_told_by_the_first_of_several_processes(
    rank: str, told: int, words: list[str], message: str, base: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    for name, value in {"WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["uda-reid", *words, *(base if words[0] == "adapt" else [])])
    with pytest.raises(Left):
        cli.main()
    output = capsys.readouterr()
    assert (codes, output.out, output.err) == ([2], "", f"error: {message}\n" * told)


@pytest.mark.parametrize("json_wanted", [True, False])
@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False)])
def test_scores_are_printed_by_the_first_process_alone(
    rank: str, prints: bool, json_wanted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("uda_reid.pipeline.score_checkpoint", lambda *_, **__: SimpleNamespace(scores=None))
    monkeypatch.setattr("uda_reid.report.scores_json", lambda _: "the scores\n")
    monkeypatch.setattr("uda_reid.report.show_row", lambda *_: "the scores")
    words = ["evaluate", "--checkpoint", "x", "--tgt", "beta", *(["--json"] if json_wanted else [])]
    assert run(monkeypatch, capsys, *words) == (0, "the scores\n" * prints, "")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0)])
def test_one_of_several_that_does_not_come_to_an_end_is_ended(
    rank: str, told: int, again: bool, number: signal.Signals, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    codes: list[int] = []

    def waits(**_: bool) -> None:
        with stop.watched():
            # A signal that Python does not follow, since it waits in code of others: only the thread sees it.
            signal.signal(number, lambda *_: None)
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 20
            if again:
                time.sleep(0.2)
                os.kill(os.getpid(), number)
            while not codes and time.monotonic() < deadline:
                time.sleep(0.01)

    for name, value in {"WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", waits)
    monkeypatch.setattr(ending, "leave", codes.append)
    monkeypatch.setattr(ending, "LAST", 100.0 if again else 0.3)
    monkeypatch.setattr(ending, "AT_ONCE", 0.1 if again else 100.0)
    with pytest.raises(SystemExit):
        cli.main()
    assert codes == [128 + number]
    said = "interrupted, and ended before it had come to a point to end at; what is saved stays\n"
    assert capsys.readouterr().err.count(said) == told
    assert signal.set_wakeup_fd(-1) == -1


def test_one_of_several_is_ended_also_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    def gone(*_: object, **__: object) -> None:
        raise SystemExit(1)  # as rich does it where a pipe is closed

    def waits(**_: bool) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.01)

    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", waits)
    monkeypatch.setattr(ending, "leave", codes.append)
    monkeypatch.setattr(ending, "LAST", 0.1)
    monkeypatch.setattr(screen, "print", gone)
    with pytest.raises(SystemExit):
        cli.main()
    assert codes == [143]


def test_an_error_that_nobody_reads_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(screen, "print", gone)
    monkeypatch.setattr(sys, "argv", ["uda-reid", "evaluate", "--tgt", "plaza"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_of_the_terminal_and_of_the_launcher_are_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    def app(**_: bool) -> None:
        with resumable():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    def told(*_: object) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return True

    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(ending, "leave", leave)
    monkeypatch.setattr("uda_reid.training.processes.speaks", told)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Left):
        cli.main()
    assert codes == [130] and capsys.readouterr().err.startswith("interrupted; the same command goes on")
    assert signal.getsignal(signal.SIGINT) is before


def test_processes_take_leave_of_each_other_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    parted: list[bool] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: parted.append(True))
    monkeypatch.setattr(cli, "app", lambda **_: 0)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and parted == [True]


def test_training_has_time_to_keep_its_step_before_it_is_ended() -> None:
    assert ending.AT_ONCE < ending.GRACE < ending.LAST < 30  # schedulers kill after 30 seconds


def test_who_ends_since_another_one_was_asked_to_ends_as_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: bool) -> None:
        with resumable():
            raise Stopped("pul: epoch 1: stopped after step 3")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 143
    told = "pul: epoch 1: stopped after step 3, which is kept; the same command goes on from there\n"
    assert capsys.readouterr().err == told


def test_who_was_asked_to_end_and_then_loses_the_others_has_ended_as_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: bool) -> None:
        with stop.watched():
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not stop.asked and time.monotonic() < deadline:
                time.sleep(0.01)
        raise DataError("another process has ended")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 143
    assert "error: another process has ended" in capsys.readouterr().err
