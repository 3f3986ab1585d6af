from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training_loops import Memory, Noise, Once, StopAt, Work
from uda_reid.errors import NotFiniteError, OutOfMemoryError
from uda_reid.models.batch_norm import grouped
from uda_reid.models.encoder import EncoderSpec, build
from uda_reid.run import Run
from uda_reid.training.batches import Batches
from uda_reid.training.features import extract
from uda_reid.training.loop import LOOK, Stateful, train
from uda_reid.types import Batch
from uda_reid.updates import fuse

# A loss that is looked at later


@pytest.mark.parametrize(("bad", "steps"), [(1, 3), (3, 3), (LOOK, LOOK + 2), (LOOK + 1, LOOK + 2)])
def test_a_loss_that_was_not_finite_is_told_later_with_its_step_and_rows(bad: int, steps: int) -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    fuse(optimizer)
    made, before = 0, torch.zeros(1)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        nonlocal made, before
        made += 1
        before = layer.weight.detach().clone() if made == bad else before
        loss = layer(torch.ones(1, 1)).square().sum()
        run.step(loss * torch.inf if made == bad else loss, optimizer)
        assert made != bad or torch.equal(layer.weight, before)
        return {"number": torch.tensor(float(made))}

    def batches(_: int) -> Batches:
        rows = [torch.tensor([number % 12]) for number in range(1, steps + 1)]
        return Batches(Noise(), torch.zeros(12), rows, size=(4, 2), augmentation="none", name="x", run=run)

    run = Run()
    with pytest.raises(NotFiniteError) as told:
        train(step, batches, epochs=1, parts={"layer": layer}, name="x", run=run)
    assert str(told.value).startswith(f"x: epoch 1, step {bad}: the loss was not finite, and no update was made ")
    before_it = f"the step before number {bad - 1}; " if bad > 1 else ""
    assert f"; it had number {bad}; {before_it}rows [{bad % 12}]; what is saved stays; lower" in str(told.value)
    assert made == (LOOK if bad <= LOOK < steps else steps)


@pytest.mark.parametrize("rollbacks", [0, 1])
def test_what_fails_behind_a_loss_that_is_not_finite_is_that_losses_fault(rollbacks: int) -> None:
    layer, bad, made = nn.Linear(1, 1), Once(2), 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step(_: int) -> Mapping[str, Tensor]:
        nonlocal made
        made += 1
        loss = layer(torch.ones(1, 1)).square().sum() * (torch.nan if bad(None) else 1)
        run.step(loss, optimizer)
        if torch.isnan(loss):
            raise ValueError("no eigenvalues of that")
        return {"loss": loss}

    parts: dict[str, Stateful] = {"layer": layer, "optimizer": optimizer}
    run = Run(rollbacks=rollbacks)
    if not rollbacks:
        with pytest.raises(
            NotFiniteError, match=r"epoch 1, step 2: the loss was not finite, .*; the step before loss "
        ):
            train(step, lambda _: [1, 2, 3], epochs=1, parts=parts, name="x", run=run)
        before = layer.weight.detach().clone()
        run.step(layer(torch.ones(1, 1)).sum(), optimizer)  # nothing of it is left
        assert not torch.equal(layer.weight, before)
        made = 2
    train(step, lambda _: [1, 2, 3], epochs=1, parts=parts, name="x", run=run)
    assert made == 5 and run.updates.halved == rollbacks


def test_nothing_is_kept_of_a_stop_behind_a_loss_that_was_not_finite() -> None:
    spoilt, memory = Work(fused=True), Memory()
    spoilt.bad = Once(1)
    with pytest.raises(NotFiniteError, match="epoch 1, step 1: the loss was not finite"):
        spoilt.train(Run(store=memory, stop=StopAt(2)))
    assert not memory.states


# A batch that is too large


def too_large(
    size: int, fits: int, *, name: str = "daam/epoch/0", error: type[BaseException], side: bool = False
) -> str:
    held: list[weakref.ref[Tensor]] = []
    tried: list[int] = []

    def step(batch: Batch | tuple[Batch, ...]) -> Mapping[str, Tensor]:
        parts = (batch,) if isinstance(batch, Batch) else batch
        tried.append(max(len(part.images) for part in parts))
        assert all(len(part.images) == len(part.labels) == len(part.rows) for part in parts)
        assert not held or held[-1]() is None, "what a batch has filled the memory with is still there"
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        if tried[-1] > fits:
            raise error("CUDA out of memory")
        return {}

    def batches(_: int) -> Iterable[Any]:
        images = torch.zeros(size, 3, 4, 2)
        batch = Batch(images, torch.zeros(size), torch.arange(size))
        return [(batch, batch) if side else batch]

    with pytest.raises(OutOfMemoryError) as told:
        train(step, batches, epochs=1, parts={}, name=name, run=Run())
    assert tried == [size >> times for times in range(len(tried))]
    return str(told.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("side", [False, True])
def test_batch_that_does_not_fit_names_one_that_was_tried(error: type[BaseException], side: bool) -> None:
    told = too_large(32, 5, error=error, side=side)
    assert told == (
        "daam/epoch/0: epoch 1: a batch of 32 images does not fit into memory, 4 fit; use --set adapt.batch=4, "
        "or --precision bf16; what is saved stays"
    )
    assert "--set pretrain.batch=16" in too_large(32, 16, error=error, side=side, name="pretrain")


def test_parts_of_a_batch_that_are_tried_hold_whole_identities() -> None:
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        if len(batch.rows) > 8:
            raise MemoryError
        return {}

    batch = Batch(torch.zeros(36, 3, 4, 2), torch.arange(9).repeat_interleave(4), torch.arange(36))
    with pytest.raises(OutOfMemoryError, match=r"36 images does not fit into memory, 8 fit; use --set adapt.batch=8,"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())
    assert sizes == [36, 16, 8]


@pytest.mark.parametrize(("instances", "group", "fits"), [(4, 0, 12), (4, 6, 12), (1, 8, 8)])
def test_no_part_of_a_batch_is_tried_that_nobody_could_ask_for(instances: int, group: int, fits: int) -> None:
    """Two identities at least, and whole groups of batch norm."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    grouped(net, group)
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        raise MemoryError

    labels = torch.arange(48 // instances).repeat_interleave(instances)
    batch = Batch(torch.zeros(48, 3, 4, 2), labels, torch.arange(48))
    with pytest.raises(OutOfMemoryError, match=f"48 images does not fit .*, and neither do {fits}; use smaller"):
        train(step, lambda _: [batch], epochs=1, parts={"net": net}, name="x", run=Run())
    assert sizes[-1] == fits and all(size % max(group, 1) == 0 for size in sizes)
    small = Batch(torch.zeros(8, 3, 4, 2), torch.arange(2).repeat_interleave(4), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match=r"and no smaller one can be made of it; use smaller images, or"):
        train(step, lambda _: [small], epochs=1, parts={}, name="x", run=Run())


def test_memory_that_is_full_before_a_step_is_told_too() -> None:
    def batches(_: int) -> Iterable[Batch]:
        yield Batch(torch.zeros(8, 3, 4, 2), torch.arange(8), torch.arange(8))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError, match=r"^pretrain: epoch 1: its next batch .* smaller --set pretrain\.batch="):
        train(lambda _: {"loss": torch.zeros(())}, batches, epochs=1, parts={}, name="pretrain", run=Run())


def test_memory_that_is_full_while_images_are_embedded_is_told_too() -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    encoder = build(EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none"))
    encoder.register_forward_pre_hook(full)
    with pytest.raises(OutOfMemoryError, match="features: blocks of 128 images do not fit"):
        extract(encoder, Noise())


def test_a_full_machine_is_told_as_a_full_gpu_is_and_other_errors_as_they_are() -> None:
    def step(batch: Batch) -> Mapping[str, Tensor]:
        torch.empty(len(batch.rows) * 2**50, dtype=torch.uint8)  # what torch's own allocator says of it
        return {}

    batch = Batch(torch.zeros(8, 3, 4, 2), torch.zeros(8), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match="a batch of 8 images does not fit into memory, and neither do 2"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())

    def broken(_: Batch) -> Mapping[str, Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot"):
        train(broken, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())


def test_a_part_of_a_batch_fits_where_its_update_does_too() -> None:
    """Optimizers take memory of their own at their first update, which waits where losses are accumulated."""
    layer = nn.Linear(1, 1)
    sizes: list[int] = []

    class Full(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if sizes[-1] > 4:
                raise MemoryError

    optimizer = Full(layer.parameters())
    run = Run(accumulate=2)

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        if sizes[-1] > 8:
            raise MemoryError
        run.step(layer(torch.ones(1, 1)).sum(), optimizer)
        return {}

    batch = Batch(torch.zeros(16, 3, 4, 2), torch.arange(16), torch.arange(16))
    with pytest.raises(OutOfMemoryError, match="16 images does not fit into memory, 4 fit"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=run)
    assert sizes == [16, 8, 4]


def test_where_nothing_could_be_tried_it_says_so() -> None:
    assert "32 images does not fit into memory, and neither do 2; use" in too_large(32, 0, error=torch.OutOfMemoryError)


def test_a_step_that_takes_no_other_number_is_not_tried_further() -> None:
    sizes: list[int] = []

    def step(batch: Batch) -> Mapping[str, Tensor]:
        sizes.append(len(batch.rows))
        raise (torch.OutOfMemoryError if len(sizes) == 1 else ValueError)("no")

    batch = Batch(torch.zeros(8, 3, 4, 2), torch.zeros(8), torch.arange(8))
    with pytest.raises(OutOfMemoryError, match="4 may fit"):
        train(step, lambda _: [batch], epochs=1, parts={}, name="x", run=Run())
    assert sizes == [8, 4]
