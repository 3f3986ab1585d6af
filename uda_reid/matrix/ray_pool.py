"""The runs of a matrix on a Ray cluster: one task for each, on whichever machine has room."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import Any

from uda_reid.errors import RecipeError
from uda_reid.job import Job
from uda_reid.matrix.workers import POOLS, Answer, answer_in


def _keep_to_this_machine() -> None:
    """Let the cluster that Ray starts listen on the loopback alone, and take no task without a token of this process.

    A Ray cluster runs whatever is sent to it, with the rights of who started it, and listens on all interfaces. Ray
    reads both settings from the environment: the first when it is imported (on other systems than Linux it is the
    default already), the second in versions that have tokens. A program that has imported Ray before has settled both.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():  # Ray would write one for all to read
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class RayPool:
    """Tasks of a Ray cluster. Its machines have to see the folders of data and runs under the same paths.

    Args:
        size: tasks at a time; 0 for as many as the cluster has room for when this begins.
        threads: CPU threads of each, and the processors that it asks for.
        gpus: graphics processors that each asks for.
        address: of the cluster, or `auto` for the one this machine belongs to; empty starts one on this machine.

    Raises:
        RecipeError: Ray is not installed, or there is no such cluster, or it has no room for one task.
    """

    def __init__(self, size: int, threads: int, *, gpus: int = 0, address: str = "") -> None:
        if not address and "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
            _keep_to_this_machine()
        try:
            import ray
        except ImportError as error:
            raise RecipeError('--executor ray needs Ray; install it with: pip install "uda_reid[ray]"') from error
        self.ray: Any = ray
        on_end = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(
                address=address or None, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())
            raise RecipeError(f"--address {address}: no Ray cluster is there ({told}); start one: ray start") from error
        signal.signal(signal.SIGTERM, on_end)  # Ray puts one of its own there, which ends without a word
        has = self.ray.cluster_resources()
        room = int(has.get("CPU", 0)) // threads
        room = min(room, int(has.get("GPU", 0)) // gpus) if gpus else room
        if not room:
            raise RecipeError(
                f"the Ray cluster has {has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs, and a run asks "
                f"for {threads} and {gpus}; ask for fewer threads, or add machines"
            )
        self.size = min(size, room) if size else room
        surroundings = {"env_vars": dict.fromkeys(POOLS, str(threads))}
        options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0, "runtime_env": surroundings}
        self.task: Any = self.ray.remote(**options)(answer_in)
        self.running: dict[int, Any] = {}

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
