"""Several processes in one: threads that pass each other's messages, under the real `training.processes.Several`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from uda_reid.training import processes
from uda_reid.training.processes import Lost, Several

T = TypeVar("T")


class Board:
    """Where threads put their messages; stands for `torch.distributed`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=30)
        self.messages: list[Any] = [None] * count
        self.me = threading.local()

    def exchange(self, message: Any) -> list[Any]:
        self.messages[self.me.rank] = message
        try:
            self.barrier.wait()
            found = list(self.messages)
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RuntimeError("Connection closed by peer") from error  # as gloo says it
        return found

    def get_rank(self) -> int:
        return int(self.me.rank)

    def get_world_size(self) -> int:
        return self.count

    def get_backend(self) -> str:
        return "gloo"

    def all_reduce(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(torch.stack(self.exchange(tensor.detach().clone())).sum(0))

    def all_gather(self, found: list[Tensor], tensor: Tensor) -> None:
        for place, message in zip(found, self.exchange(tensor.detach().clone()), strict=True):
            assert place.shape == message.shape, "messages have one length"
            place.copy_(message)

    def broadcast_object_list(self, box: list[Any]) -> list[Any]:
        box[0] = pickle.loads(self.exchange(pickle.dumps(box[0]))[0])
        return box


@contextmanager
def _connected(board: Board) -> Iterator[None]:
    with (
        mock.patch.object(processes, "dist", board),
        mock.patch("accelerate.utils.broadcast_object_list", board.broadcast_object_list),
    ):
        yield


def together(count: int, work: Callable[[Several], T]) -> list[T]:
    """Do `work` on so many processes; return what each gives, or the error that it ends with."""
    board, found = Board(count), list[Any]([None] * count)

    def one(rank: int) -> None:
        board.me.rank = rank
        try:
            found[rank] = work(Several())
        except BaseException as error:
            found[rank] = error
            board.barrier.abort()  # as the end of a process ends what the others wait for

    with _connected(board):
        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def all_of(count: int, work: Callable[[Several], T]) -> list[T]:
    """As `together`; an error of any is raised here."""
    found = together(count, work)
    errors = [each for each in found if isinstance(each, BaseException)]
    for error in sorted(errors, key=lambda each: isinstance(each, Lost)):  # the cause before what came of it
        raise error
    return found
