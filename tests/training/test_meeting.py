"""How processes find each other, and what is said where they cannot; `cli/test_runs.py` has real ones."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from tests.together import free_port, launch
from uda_reid.errors import DataError, RecipeError
from uda_reid.sharing import ALONE
from uda_reid.training import meeting
from uda_reid.training.meeting import join
from uda_reid.training.processes import Lost, speaks

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
STARTED = "start several processes with torchrun or accelerate launch, which set it, or unset WORLD_SIZE for one"


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({}, "cuda:0", r"device 'cuda:0' is one GPU for 2 processes; use cuda, which gives each its own"),
        ({"LOCAL_WORLD_SIZE": "2"}, "cuda", r"2 processes cannot share 1 GPUs; start one for each"),
        *(
            (
                {"WORLD_SIZE": given},
                "cpu",
                f"WORLD_SIZE={given!r} is no number of processes; a launcher sets it, else unset it",
            )
            for given in ("two", "0", "-1")
        ),
        *(
            (
                {"UDA_REID_TIMEOUT": given},
                "cpu",
                f"UDA_REID_TIMEOUT={given!r} is no number of seconds; leave it unset for 7200",
            )
            for given in ("soon", "nan", "0", "1e10")
        ),
        ({"UDA_REID_TIMEOUT": "soon", "WORLD_SIZE": "1"}, "cpu", r"UDA_REID_TIMEOUT='soon' is no .* for 7200"),
        *(({name: ""}, "cpu", f"WORLD_SIZE=2 without {name}: {STARTED}") for name in list(LAUNCHED)[1:]),
        *(
            ({name: "a"}, "cpu", f"{name}='a' is no number: {STARTED}")
            for name in ("RANK", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE")
        ),
        ({"RANK": "2"}, "cpu", f"RANK=2 is not below 2: {STARTED}"),
        ({"MASTER_PORT": "65536"}, "cpu", f"MASTER_PORT=65536 is not below 65536: {STARTED}"),
    ],
)
def test_what_cannot_go_together_is_refused(
    variables: dict[str, str], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**LAUNCHED, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "pick_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=f"^{message}$"):
        join(device)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if value is not None:
            monkeypatch.setenv("WORLD_SIZE", value)
        assert join("cpu") == (ALONE, "cpu")


@pytest.mark.parametrize(("rank", "reason"), [("0", "1/2 clients joined"), ("1", "timed out")])
def test_who_finds_no_others_says_where_it_looked(rank: str, reason: str) -> None:
    port = str(free_port())
    program = "from uda_reid.training.meeting import join; join('cpu')"
    variables = {**LAUNCHED, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "UDA_REID_TIMEOUT": "1"}
    [alone] = launch(["-c", program], 1, **variables)
    _, told = alone.communicate(timeout=120)
    where = f"Lost: this is one of 2 processes, which were to meet at 127.0.0.1:{port}; the others are not found ("
    assert alone.returncode == 1 and where in told and reason in told


def test_who_finds_no_others_says_so_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**LAUNCHED, "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert speaks(Lost("nobody came")) and not speaks(DataError("an error of all"))


def test_what_a_gpu_needs_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(**_: object) -> None:
        raise NotImplementedError("not on such a GPU")

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("accelerate.PartialState", meet)
    with pytest.raises(RecipeError, match=r"^not on such a GPU$"):
        join("cpu")


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_that_is_ignored_stays_ignored_in_a_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[object] = []

    def meet(**_: object) -> None:
        met.append(signal.getsignal(signal.SIGINT))
        raise RuntimeError("nobody came")

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("accelerate.PartialState", meet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(Lost):
        join("cpu")
    assert met == [signal.SIG_IGN] == [signal.getsignal(signal.SIGINT)]


@pytest.mark.usefixtures("ctrl_c")
def test_signals_end_a_meeting_at_once_and_are_the_programs_own_again_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met: list[object] = []

    def meet(**_: object) -> None:
        met.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
        raise RuntimeError("nobody came")

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("accelerate.PartialState", meet)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Lost, match=r"the others are not found \(nobody came\)$"):
        join("cpu")
    assert met == [signal.SIG_DFL, signal.SIG_DFL]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    # Elsewhere than in the main thread signals cannot be changed, and are left alone.
    met.clear()
    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            join("cpu")
        except Lost as error:
            found.append(error)

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert len(found) == 1 and tuple(met) == before
