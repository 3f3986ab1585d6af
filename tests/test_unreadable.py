from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.threads import all_of
from tests.training_loops import One
from uda_reid.data.images import IMAGENET_MEAN
from uda_reid.errors import UnreadableError
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.pipeline.sources import unusual
from uda_reid.run import Run
from uda_reid.sharing import ALONE, Processes
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.unreadable import Unreadable


class Losing:
    """Images of one colour each, whose row number it is; some are lost."""

    def __init__(self, *lost: int) -> None:
        self.lost = set(lost)

    def __len__(self) -> int:
        return 12

    def read(self, rows: Tensor, height: int, width: int) -> Tensor:
        bad = [row for row in rows.tolist() if row in self.lost]
        if bad:
            raise UnreadableError(f"row {bad[0]}: truncated", bad)
        return rows.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()


def batch_of(images: Losing, rows: list[int], run: Run) -> tuple[list[int], list[int], list[int]]:
    """Return the rows, labels and colours of a batch; two neighbours share a label."""
    labels = torch.arange(12) // 2
    plan = [torch.tensor(rows)]
    [batch] = Batches(images, labels, plan, size=(4, 2), augmentation="none", name="x", run=run)
    return batch.rows.tolist(), batch.labels.tolist(), (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def test_an_image_of_the_same_label_takes_the_place_of_one_that_is_lost() -> None:
    said: list[str] = []
    run = Run(unreadable=Unreadable(3, said.append))
    images = Losing(3)
    rows, labels, colours = batch_of(images, [0, 2, 3, 8], run)
    assert (rows, colours) == ([0, 2, 3, 8], [0, 2, 2, 8])
    assert labels == [0, 1, 1, 4]
    assert said == ["warning: row 3: truncated; it is left out (1 of at most 3)"]
    assert run.unreadable.facts() == {"images left out, unreadable": 1}


def test_more_lost_images_than_tolerated_are_an_error() -> None:
    run = Run(unreadable=Unreadable(2))
    images = Losing(1, 3, 5)
    batch_of(images, [0, 1, 2, 3], run)
    with pytest.raises(UnreadableError, match="row 5: truncated; 3 images were lost, and 2 are tolerated") as stop:
        batch_of(images, [4, 5], run)
    assert stop.value.rows == (5,)


def test_where_nobody_else_has_its_label_an_image_of_one_colour_takes_its_place() -> None:
    rows, labels, colours = batch_of(Losing(2, 3), [3, 8, 2], Run(unreadable=Unreadable(9)))
    grey = round(255 * IMAGENET_MEAN[0])
    assert (rows, labels, colours) == ([3, 8, 2], [1, 4, 1], [grey, 8, grey])


def test_an_image_that_takes_its_place_is_of_the_plan_but_of_any_batch() -> None:
    """What a training leaves out, such as people held out of it, stays out."""
    plan = [torch.tensor([3, 8]), torch.tensor([1, 9])]
    options: dict[str, Any] = {"size": (4, 2), "augmentation": "none", "name": "x"}
    run = Run(unreadable=Unreadable(3))
    found = Batches(Losing(3), torch.zeros(12), plan, run=run, **options)
    assert [(batch.images[:, 0, 0, 0] * 255).round().tolist() for batch in found] == [[8, 8], [1, 9]]


@pytest.mark.parametrize("augmentation", ["none", "reid"])
def test_several_processes_put_the_same_image_in_its_place(augmentation: str) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3])
    plan = [torch.tensor([0, 5, 6, 11, 8, 7, 2]), torch.tensor([4, 9])]

    def pictures(processes: Processes) -> Tensor:
        run = Run(unreadable=Unreadable(9), processes=processes)
        options: dict[str, Any] = {"size": (32, 16), "augmentation": augmentation, "name": "x", "run": run}
        batch = next(iter(Batches(Losing(6, 7, 8, 11), labels, plan, **options)))
        assert batch.rows.tolist() == plan[0].tolist()
        return batch.images

    whole = pictures(ALONE)
    assert torch.equal(torch.cat([pictures(One(rank, 3)) for rank in range(3)]), whole)
    if augmentation == "none":
        grey = round(255 * IMAGENET_MEAN[0])
        assert (whole[:, 0, 0, 0] * 255).round().tolist() == [0, 5, 4, grey, 9, 4, 2]  # 6 and 7 by 4, which comes next


def test_the_ledger_counts_what_all_processes_have_lost() -> None:
    def work(processes: Processes) -> object:
        run = Run(unreadable=Unreadable(9), processes=processes)
        for row in (0, 2) if processes.rank else (0, 4):  # one of them by both
            batch_of(Losing(row), [0, 2, 4, 6], replace(run, processes=ALONE))
        return unusual(run)

    assert all_of(2, work) == [{"images left out, unreadable": 3}] * 2


def test_without_tolerance_every_lost_image_is_an_error() -> None:
    with pytest.raises(UnreadableError, match=r"^row 1: truncated$"):
        batch_of(Losing(1), [0, 1], Run())
    assert Run().unreadable.facts() == {}


def test_rows_of_other_images_are_counted_apart() -> None:
    run = Run(unreadable=Unreadable(2))
    first, second = Losing(1), Losing(1)
    batch_of(first, [0, 1], run)
    batch_of(second, [0, 1], run)
    assert run.unreadable.count == 2


def test_features_of_lost_images_are_those_of_an_empty_picture_and_of_others_unchanged() -> None:
    encoder = build(EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none")).eval()
    whole = extract(encoder, Losing())
    found = extract(encoder, Losing(3, 7), run=Run(unreadable=Unreadable(2)))
    others = [row for row in range(12) if row not in (3, 7)]
    assert torch.equal(found[others], whole[others])
    assert torch.equal(found[3], found[7]) and not torch.equal(found[3], whole[3])
    with pytest.raises(UnreadableError):
        extract(encoder, Losing(3))
    assert len(extract(encoder, Losing(*range(12)), run=Run(unreadable=Unreadable(12)))) == 12
