"""How the processes of a run find each other, where `accelerate launch` or `torchrun` has started several."""

from __future__ import annotations

import datetime
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uda_reid.errors import RecipeError
from uda_reid.launch import PROCESSES, RANK, launched
from uda_reid.sharing import ALONE, Processes
from uda_reid.training.devices import pick_device
from uda_reid.training.processes import Lost, Several, first_line

PATIENCE = 7200.0
"""Seconds that a process waits for another one: longer than the main process clusters."""
WAITING = "UDA_REID_TIMEOUT"
"""Environment variable with another number of seconds."""
FOREVER = 1e9
"""Seconds above which torch's clocks overflow."""
HOST, PORT = "MASTER_ADDR", "MASTER_PORT"
LOCAL, SIDE_BY_SIDE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
STARTED = "start several processes with torchrun or accelerate launch, which set it, or unset WORLD_SIZE for one"


def join(device: str = "auto") -> tuple[Processes, str]:
    """Find the other processes of this run, where a launcher has started several.

    Args:
        device: as `devices.pick_device`; `cuda` is the GPU that the launcher meant for this process.

    Returns:
        The processes, and the device of this one.

    Raises:
        RecipeError: the device is unknown or not there, or there are more processes than GPUs on this machine,
            or what a launcher tells is missing or makes no sense.
        Lost: the other processes are not found in time.
    """
    chosen = pick_device(device)
    patience = _patience()
    _check_launcher()
    if launched() < 2:
        return ALONE, chosen
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    if chosen.startswith("cuda:"):
        raise RecipeError(
            f"device {device!r} is one GPU for {launched()} processes; use cuda, which gives each its own"
        )
    here = int(os.environ.get(SIDE_BY_SIDE) or "1")
    if chosen == "cuda" and here > torch.cuda.device_count():
        raise RecipeError(f"{here} processes cannot share {torch.cuda.device_count()} GPUs; start one for each")
    threads = torch.get_num_threads()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate chooses, and warns
    kwargs = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=patience)).to_kwargs()
    try:
        with _ended_by_signals():
            state = PartialState(cpu=chosen == "cpu", **kwargs)
    except NotImplementedError as error:  # accelerate's, of a kind of GPU that needs other settings: it says which
        raise RecipeError(first_line(error)) from error
    except RuntimeError as error:
        where = f"{launched()} processes, which were to meet at {os.environ[HOST]}:{os.environ[PORT]}"
        raise Lost(f"this is one of {where}; the others are not found ({first_line(error)})") from error
    return Several(), chosen if chosen == "cpu" else str(state.device)  # accelerate's is cpu:0


def _patience() -> float:
    """Return for how many seconds a process waits for another one."""
    given = os.environ.get(WAITING) or str(PATIENCE)
    try:
        patience = float(given)
    except ValueError:
        patience = math.nan
    if not 0 < patience < FOREVER:
        raise RecipeError(f"{WAITING}={given!r} is no number of seconds; leave it unset for {PATIENCE:g}")
    return patience


def _check_launcher() -> None:
    """Check what a launcher tells each process in its environment.

    Raises:
        RecipeError: a part of it is missing, or is no number, or is out of range.
    """
    given = os.environ.get(PROCESSES) or "1"
    if not given.isdecimal() or int(given) < 1:
        raise RecipeError(f"{PROCESSES}={given!r} is no number of processes; a launcher sets it, else unset it")
    if launched() < 2:
        return
    for name in (RANK, LOCAL, HOST, PORT):
        if not os.environ.get(name):
            raise RecipeError(f"{PROCESSES}={given} without {name}: {STARTED}")
    for name in (RANK, LOCAL, PORT, SIDE_BY_SIDE):
        value = os.environ.get(name) or "0"
        if not value.isdecimal():
            raise RecipeError(f"{name}={value!r} is no number: {STARTED}")
    for name, end in ((RANK, launched()), (PORT, 1 << 16)):
        if int(os.environ[name]) >= end:
            raise RecipeError(f"{name}={os.environ[name]} is not below {end}: {STARTED}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end this process as if it were no Python: there is nothing to keep yet.

    Python follows a signal between two of its own instructions, and waiting for others is one.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    heard = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heard}
    try:
        yield
    finally:
        for number, act in before.items():
            signal.signal(number, act)
