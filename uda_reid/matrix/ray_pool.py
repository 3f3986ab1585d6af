"""The runs of a matrix on a Ray cluster: one task for each, on whichever machine has room."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from uda_reid.errors import RecipeError
from uda_reid.job import Job
from uda_reid.matrix.workers import POOLS, Answer, answer_in

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where the person who starts the program may have put a token of theirs."""


class RayPool:
    """Tasks of a Ray cluster. Its machines have to see the folders of data and runs under the same paths.

    Args:
        size: tasks at a time; 0 for as many as the cluster has room for when this begins.
        threads: CPU threads of each, and the processors that it asks for.
        gpus: graphics processors that each asks for.
        address: of the cluster, or `auto` for the one this machine belongs to; empty starts one on this machine, which
            listens on the loopback address alone, keeps its files where no other user can read or write, and asks for
            a token where this version of Ray has one.

    Raises:
        RecipeError: Ray is not installed, or there is no such cluster, or it has no room for one task.
    """

    private: Path | None = None

    def __init__(self, size: int, threads: int, *, gpus: int = 0, address: str = "") -> None:
        if not address:
            guard_cluster_of_this_machine()
        try:
            import ray
        except ImportError as error:
            raise RecipeError('--executor ray needs Ray; install it with: pip install "uda_reid[ray]"') from error
        self.ray: Any = ray
        self.running: dict[int, Any] = {}
        on_end = signal.getsignal(signal.SIGTERM)
        try:
            self._connect(address)
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            told = " ".join(str(error).split())
            if not address:
                raise RecipeError(f"--executor ray: no cluster starts on this machine ({told})") from error
            raise RecipeError(f"--address {address}: no Ray cluster is there ({told}); start one: ray start") from error
        finally:
            signal.signal(signal.SIGTERM, on_end)  # Ray puts one of its own there, which ends without a word
        has = self.ray.cluster_resources()
        room = int(has.get("CPU", 0)) // threads
        room = min(room, int(has.get("GPU", 0)) // gpus) if gpus else room
        if not room:
            self.close()
            raise RecipeError(
                f"the Ray cluster has {has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs, and a run asks "
                f"for {threads} and {gpus}; ask for fewer threads, or add machines"
            )
        self.size = min(size, room) if size else room
        surroundings = {"env_vars": dict.fromkeys(POOLS, str(threads))}
        options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0, "runtime_env": surroundings}
        self.task: Any = self.ray.remote(**options)(answer_in)

    def _connect(self, address: str) -> None:
        """Connect to a cluster, or start one on this machine that no other user of it can reach."""
        quiet = {"ignore_reinit_error": True, "log_to_driver": False, "include_dashboard": False}
        if address or self.ray.is_initialized():  # a program that uses this as a library may have its own
            self.ray.init(address=address or None, **quiet)
            return
        # Not None: that connects to what RAY_ADDRESS or a file in Ray's shared folder names, which any user may write.
        # Ray makes its folders writable for everyone (2.60); inside this one only its owner reaches them. In /tmp: the
        # path of a socket has at most 107 bytes.
        short = "/tmp" if Path("/tmp").is_dir() else None
        self.private = Path(tempfile.mkdtemp(prefix="uda-ray-", dir=short))
        self.ray.init(address="local", _temp_dir=str(self.private / "ray"), **quiet)
        listens = self.ray.util.get_node_ip_address()
        if not ip_address(listens).is_loopback:
            self.close()
            raise RecipeError(
                f"--executor ray: the cluster of this machine listens on {listens}, which other machines reach; set "
                f"{CLUSTERS}=0 before Ray is imported, or give the --address of a cluster"
            )

    def begin(self, slot: int, job: Job) -> None:
        """Hand a run to the cluster."""
        self.running[slot] = self.task.remote(os.getcwd(), job)  # noqa: PTH109

    def wait(self, slots: Sequence[int], seconds: float | None) -> list[int]:
        """Return which tasks have ended."""
        by_task = {self.running[slot]: slot for slot in slots}
        ready, _ = self.ray.wait(list(by_task), num_returns=1, timeout=seconds) if by_task else ([], [])
        return [by_task[task] for task in ready]

    def answer(self, slot: int) -> Answer:
        """Return what came of the run; a task whose machine or process is gone has failed."""
        try:
            found: Answer = self.ray.get(self.running.pop(slot))
        except self.ray.exceptions.RayError as error:
            told = str(error).strip().splitlines()
            reason = told[0] if told else type(error).__name__
            return Answer(None, failure=f"its task ended ({reason}); start again to go on")
        return found

    def close(self) -> None:
        """End the tasks; a cluster that was started here ends with them."""
        for task in self.running.values():
            self.ray.cancel(task, force=True)
        self.ray.shutdown()
        if self.private is not None:
            shutil.rmtree(self.private, ignore_errors=True)


CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Read by Ray when it is imported (seen in 2.60). 0: a cluster is of this machine alone, and listens on 127.0.0.1."""


def guard_cluster_of_this_machine() -> None:
    """Set what Ray reads from the environment, so that neither other machines nor other users can hand it tasks.

    What the user has set stays, but for the loopback address. A Ray that is imported already has read all of it, and
    those of its processes that start later would follow other values.
    """
    if "ray" in sys.modules:
        return
    os.environ[CLUSTERS] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray 2.52 and later; earlier ones do not read it
    if not any(name in os.environ for name in TOKENS):
        os.environ[TOKENS[0]] = secrets.token_hex(32)  # else Ray writes one into a file that all users can read (2.60)
