from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training_loops import Noise, One
from uda_reid.data.images import AUGMENTATIONS
from uda_reid.run import Run
from uda_reid.training.batches import Batches, SideBySide, ahead
from uda_reid.types import Batch


def test_batches_carry_pixels_between_0_and_1_with_their_labels() -> None:
    batches = Batches(
        Noise(), torch.arange(12) * 10, [torch.tensor([3, 1])], size=(4, 2), augmentation="none", name="x", run=Run()
    )
    batch = next(iter(batches))
    assert len(batches) == 1
    assert batch.images.shape == (2, 3, 4, 2)
    assert torch.allclose(batch.images[:, 0, 0, 0], torch.tensor([3 / 255, 1 / 255]))
    assert batch.labels.tolist() == [30, 10]


def test_side_by_side_are_batches_of_all_domains_in_their_order() -> None:
    def batches(rows: list[list[int]], label: int) -> Batches:
        plan = [torch.tensor(some) for some in rows]
        labels = torch.full((12,), label)
        return Batches(Noise(), labels, plan, size=(4, 2), augmentation="none", name=str(label), run=Run())

    pairs = SideBySide(batches([[0, 1], [2, 3]], 7), batches([[4], [5]], 8))
    assert len(pairs) == 2
    found = [(one.rows.tolist(), other.rows.tolist()) for one, other in pairs]
    assert found == [([0, 1], [4]), ([2, 3], [5])]
    assert [(one.labels[0].item(), other.labels[0].item()) for one, other in pairs] == [(7, 8), (7, 8)]
    with pytest.raises(ValueError, match="shorter"):
        list(SideBySide(batches([[0], [1]], 7), batches([[2]], 8)))
    three = SideBySide(batches([[0]], 7), batches([[1, 2]], 8), batches([[3]], 9))
    assert [[part.rows.tolist() for part in parts] for parts in three] == [[[0], [1, 2], [3]]]


# Batches that begin later


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_batches_behind_those_left_out_are_the_same_and_the_others_are_not_read(augmentation: str, start: int) -> None:
    read: list[list[int]] = []

    class Counted(Noise):
        def read(self, rows: Tensor, height: int, width: int) -> Tensor:
            read.append(rows.tolist())
            return super().read(rows, height, width)

    def made() -> Batches:
        rows = torch.split(torch.arange(12), 5)
        return Batches(
            Counted(), torch.arange(12), rows, size=(16, 8), augmentation=augmentation, name="x", run=Run()
        )  # fmt: skip

    whole = list(made())
    read.clear()
    later = made()
    later.skip(start)
    found = list(later)
    assert len(read) == len(found) == 3 - start
    for one, other in zip(whole[start:], found, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.rows, other.rows)
    assert all(torch.equal(one.images, other.images) for one, other in zip(whole, later, strict=True))  # once more


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_image_is_changed_the_same_however_the_rows_are_dealt(augmentation: str) -> None:
    rows = torch.randint(0, 12, (30,), generator=torch.Generator().manual_seed(0))

    def made(size: int) -> Tensor:
        options: dict[str, Any] = {"size": (16, 8), "augmentation": augmentation, "run": Run()}
        batches = Batches(Noise(), torch.arange(12), torch.split(rows, size), name="x", **options)
        return torch.cat([batch.images for batch in batches])

    whole = made(30)
    assert torch.equal(made(4), whole)
    again = [torch.nonzero(rows == row).flatten()[:2].tolist() for row in range(1, 12)]  # row 0 is black
    pairs = torch.tensor([places for places in again if len(places) == 2])
    same = (whole[pairs[:, 0]] == whole[pairs[:, 1]]).flatten(1).all(1)
    assert bool(same.all()) is bool(same.any()) is (augmentation == "none")  # each time in another way


def test_side_by_side_skips_in_every_domain() -> None:
    def made() -> SideBySide:
        options: dict[str, Any] = {"size": (16, 8), "augmentation": "reid", "run": Run()}
        plans = torch.split(torch.arange(12), 4), torch.split(torch.arange(6), 2)
        return SideBySide(
            *(Batches(Noise(), torch.arange(12), plan, name=f"{len(plan[0])}", **options) for plan in plans)
        )

    whole, later = list(made()), made()
    later.skip(2)
    [found] = later
    for one, other in zip(whole[2], found, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("start", [0, 1])
def test_processes_have_the_images_of_their_shares_and_the_labels_of_all(augmentation: str, start: int) -> None:
    def made(run: Run) -> list[Batch]:
        rows = torch.split(torch.randperm(12, generator=torch.Generator().manual_seed(0)), 5)
        batches = Batches(
            Noise(), torch.arange(12), rows[:2], size=(16, 8), augmentation=augmentation, name="x", run=run
        )
        batches.skip(start)
        return list(batches)

    shares = zip(*(made(Run(processes=One(rank, 3))) for rank in range(3)), strict=True)
    for whole, parts in zip(made(Run()), shares, strict=True):
        assert [len(part.images) for part in parts] == [2, 2, 1]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert all(torch.equal(part.labels, whole.labels) and torch.equal(part.rows, whole.rows) for part in parts)


# Reading ahead


def rows_of(count: int) -> list[Tensor]:
    return list(torch.arange(count).reshape(-1, 1))


@pytest.mark.parametrize("many", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_what_is_read_ahead_comes_in_order(many: int, count: int) -> None:
    assert [int(each) for each in ahead(lambda rows: rows * 10, rows_of(count), many=many)] == [
        10 * number for number in range(count)
    ]


@pytest.mark.parametrize("many", [1, 3])
def test_a_thread_reads_while_somebody_works_but_never_far_ahead(many: int) -> None:
    begun: list[int] = []
    read = threading.Condition()

    def note(rows: Tensor) -> Tensor:
        assert threading.current_thread() is not threading.main_thread()
        with read:
            begun.append(int(rows))
            read.notify()
        return rows

    def waited_for(count: int) -> bool:
        with read:
            return read.wait_for(lambda: len(begun) >= count, timeout=5)

    for number, rows in enumerate(ahead(note, rows_of(8), many=many)):
        assert int(rows) == number
        assert waited_for(min(number + 1 + many, 8)), "nothing is read meanwhile"
        time.sleep(0.002)
        assert len(begun) <= number + 1 + many


def test_errors_of_reading_come_out_where_the_batch_would() -> None:
    def read(rows: Tensor) -> Tensor:
        if int(rows) == 2:
            raise OSError("gone")
        return rows

    def all_of(items: Iterator[Tensor]) -> None:
        found.extend(int(each) for each in items)

    found: list[int] = []
    with pytest.raises(OSError, match="gone"):
        all_of(ahead(read, rows_of(6)))
    assert found == [0, 1]
