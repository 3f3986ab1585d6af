"""Several processes that train one model; `meeting` is how they find each other.

Every process runs the same program. It reads its own rows of a batch; on the embeddings of the whole batch, which are
exchanged with their gradients, every process computes the same loss; gradients are averaged, and so all weights stay
equal. What is not training or embedding - clustering, files, the terminal - is the main process's.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uda_reid.errors import UdaReidError
from uda_reid.launch import first, launched
from uda_reid.models.batch_norm import shared
from uda_reid.training.faults import is_full

T = TypeVar("T")

TOLD = "uda_reid/told"
REASONS = {
    "has not answered in time": ("timed out", "timeout"),
    "has ended": ("closed", "reset", "refused", "broken pipe", "exited", "aborted"),
}
"""What has become of another process -> how gloo and nccl say so."""
ASKED = "work of the main process alone asks for the other processes, who wait for its end"


class Lost(UdaReidError):
    """Another process of this run has ended, or does not answer."""


class Several:
    """The processes of torch's default group; see `run.Processes`."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        self._alone = False

    def __deepcopy__(self, _: object) -> Self:
        return self  # modules hold on to it, and are copied

    def gather(self, tensor: Tensor, total: int) -> Tensor:
        """Return the rows of all processes in order, with gradient."""
        sizes = [total // self.count + (rank < total % self.count) for rank in range(self.count)]  # as `Run.share`
        if len(tensor) != sizes[self.rank]:
            raise ValueError(f"process {self.rank} has {len(tensor)} of {total} rows, not {sizes[self.rank]}")
        found: Tensor = _Gather.apply(tensor, sizes, self)
        return found

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place; each kind of number in one message."""
        for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
            mine = [tensor for tensor in tensors if tensor.dtype == kind]
            message = torch.cat([tensor.detach().reshape(-1) for tensor in mine])
            self.add(message)
            message /= self.count
            for tensor, mean in zip(mine, torch.split(message, [tensor.numel() for tensor in mine]), strict=True):
                tensor.detach().copy_(mean.view_as(tensor))

    def main_only(self, action: Callable[[], T]) -> T:
        """Return to all processes what `action` gives on the main one; its error is raised on all of them."""
        if self.rank:
            answer, error = self._broadcast(None)
            if error is not None:
                error.of_main = True  # who tells it
                raise error
            return cast(T, answer)
        if self._alone:
            raise RuntimeError(ASKED)
        self._alone = True
        try:
            result, error = action(), None
        except Exception as raised:
            result, error = None, raised
        finally:
            self._alone = False
        self._broadcast((result, None if error is None else _portable(error)))
        if error is not None:
            raise error
        return cast(T, result)

    def any(self, here: bool) -> bool:
        """Return whether it is so on any process."""
        flag = torch.tensor([float(here)], device=self.device)
        self.add(flag)
        return bool(flag > 0)

    def prepare(self, module: nn.Module, *, trained: bool) -> None:
        """Let batch norm look at the images of all processes."""
        shared(module, self, trained=trained)

    def add(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all processes, in place."""
        with self._together():
            dist.all_reduce(tensor)

    def collect(self, tensor: Tensor) -> Tensor:
        """Return tensors of one shape from all processes, (count, ...)."""
        found = tensor.new_empty((self.count, *tensor.shape))
        with self._together():
            dist.all_gather(list(found.unbind()), tensor.contiguous())
        return found

    def _broadcast(self, content: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        box = [content]
        with self._together():
            broadcast_object_list(box)
        return box[0]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Turn the loss of another process into an error that says so."""
        if self._alone:
            raise RuntimeError(ASKED)
        try:
            yield
        except RuntimeError as error:
            if is_full(error):
                raise
            reason = first_line(error)
            known = [what for what, words in REASONS.items() if any(each in reason.lower() for each in words)]
            what = known[0] if known else "cannot be reached"
            raise Lost(f"another process of this run {what}; what is saved stays ({reason})") from error


class _Gather(torch.autograd.Function):
    """The rows of all processes. Backward, a row gets the sum of what all processes have made of it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, sizes: list[int], processes: Several) -> Tensor:
        context.sizes, context.processes = sizes, processes
        # Messages have one length: the shares differ by a row at most, which is filled up and cut off again.
        message = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        message[: len(tensor)] = tensor
        there = message.to(processes.device)
        found = processes.collect(there)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)]).to(tensor.device)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = gradients
        there = gradient.to(context.processes.device).contiguous().clone()
        context.processes.add(there)
        first = sum(context.sizes[: context.processes.rank])
        own = there[first : first + context.sizes[context.processes.rank]]
        return own.to(gradient.device), None, None


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or one of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's own class makes of it
        return UdaReidError(f"{type(error).__name__}: {error}")
    return error


def speaks(error: BaseException | None = None) -> bool:
    """Return whether this process is the one that tells the person of an error: the first that has one.

    An error of all, such as a typing mistake, is told once; one that only this process has, by this process.
    """
    if getattr(error, "of_main", False):
        return False
    if launched() < 2:
        return True
    if not dist.is_initialized():
        return first() or isinstance(error, Lost)
    try:
        return bool(dist.distributed_c10d._get_default_store().add(TOLD, 1) == 1)
    except RuntimeError:  # the process that kept the store has ended: it had the error before this one
        return False


def first_line(error: Exception) -> str:
    """Return what an error says, without where in its source that was and what libraries append to it."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^\]]*\] ", "", line).split(". ")[0]
