"""What only a GPU can show: nothing waits for it, its masked updates, and that it trains as the CPU does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.together import STRATEGIES, VARIANTS
from tests.training_loops import Memory, Once, StopAt, Work
from uda_reid.data.images import AUGMENTATIONS, augment, images_of, unlabelled
from uda_reid.errors import NotFiniteError
from uda_reid.launch import Stop
from uda_reid.models.encoder import EncoderSpec
from uda_reid.ops.noise import keys
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.run import Precision, Run
from uda_reid.strategies import find
from uda_reid.testing import tiny_domain
from uda_reid.training.features import extract
from uda_reid.types import Domain, Source

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),  # torch's own, once
]

WARM = 3
"""Steps after which nothing is made for the first time any more (cuDNN's plans, optimizers' states)."""


class NoWaiting(Stop):
    """Makes every wait for the GPU an error, from the first steps of an epoch to its last one."""

    def __init__(self) -> None:
        self.steps = self.watching = 0
        super().__init__()

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.steps = 0
        try:
            with super().watched():
                yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @property
    def asked(self) -> bool:
        """Is read behind every step."""
        self.watching += torch.cuda.get_sync_debug_mode() > 0  # the step before was watched
        self.steps += 1
        if self.noticing and self.steps > WARM:
            torch.cuda.set_sync_debug_mode("error")
        return False

    @asked.setter
    def asked(self, _: bool) -> None:
        pass


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return tiny_domain(tmp_path_factory.mktemp("target"), name="target", identities=8, images=8, seed=1)


def pretrained(folder: Path, run: Run, *, dropout: float = 0.5) -> Source:
    spec = EncoderSpec(backbone="resnet_tiny", height=32, width=16, weights="none")
    options = Pretrain(epochs=2, batch=8, instances=2, warmup=0, validation=0.25, dropout=dropout)
    return pretrain(tiny_domain(folder, name="source", identities=8, images=8), options, encoder=spec, run=run)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return pretrained(tmp_path_factory.mktemp("source"), Run())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pretraining_never_waits_in_a_step(tmp_path: Path, precision: Precision) -> None:
    stop = NoWaiting()
    pretrained(tmp_path, Run(device="cuda", precision=precision, stop=stop))
    assert stop.watching


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "adabn"])
def test_no_strategy_waits_in_a_step(variant: str, precision: Precision, source: Source, domain: Domain) -> None:
    name, options = VARIANTS[variant]
    stop = NoWaiting()
    small = {"batch": 8} if name == "pul" else {}  # of few images: an epoch of some steps
    strategy = find(name)(**{**STRATEGIES[name], **options, **small})
    result = strategy.adapt(
        copy.deepcopy(source), unlabelled(domain), run=Run(device="cuda", precision=precision, stop=stop)
    )
    assert stop.watching
    assert all(bool(torch.isfinite(value).all()) for value in result.encoder.state_dict().values())


def on_gpu(work: Work) -> Work:
    """The same work with its weights on the GPU."""
    work.model.to("cuda")
    return work


@pytest.mark.parametrize("bad", [1, 2, 5])
def test_a_loss_that_is_not_finite_moves_no_weight_and_is_told_with_its_rows(bad: int) -> None:
    work, run = on_gpu(Work(fused=True)), Run(device="cuda")
    before: list[dict[str, torch.Tensor]] = []
    once = Once(bad)

    def noted(batch: object) -> bool:
        before.append(copy.deepcopy(work.model.state_dict()))
        return once(batch)

    work.bad = noted
    with pytest.raises(NotFiniteError, match=f"epoch {(bad - 1) // 3 + 1}, step {(bad - 1) % 3 + 1}: the loss was not"):
        work.train(run)
    weights = [name for name, _ in work.model.named_parameters()]
    assert all(torch.equal(before[bad - 1][name], before[bad][name]) for name in weights)
    assert bad != 1 or not all(torch.equal(before[1][name], before[2][name]) for name in weights)  # the next goes on


def test_a_training_that_was_stopped_goes_on_to_the_same_losses() -> None:
    """To rounding: a GPU adds in an order of its own."""
    whole, memory = on_gpu(Work(fused=True)), Memory()
    expected = whole.train(Run(device="cuda"))
    first, second = on_gpu(Work(fused=True)), on_gpu(Work(fused=True))
    with pytest.raises(KeyboardInterrupt):
        first.train(Run(device="cuda", store=memory, stop=StopAt(5)))
    found = second.train(Run(device="cuda", store=memory))
    for mean, other in zip(found, expected, strict=True):
        assert mean["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for mine, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_half_the_rate_after_a_rollback_is_that_of_the_cpu() -> None:
    """Without dropout, whose masks a GPU draws otherwise."""

    def spoilt(work: Work, run: Run) -> Work:
        work.bad = Once(2)
        work.train(replace(run, rollbacks=1), epochs=1)
        return work

    gpu = on_gpu(Work(fused=True, dropout=0.0))
    theirs, ours = spoilt(Work(dropout=0.0), Run()), spoilt(gpu, Run(device="cuda"))
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one.detach().cpu(), other.detach(), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_a_gpu_changes_images_as_the_cpu_does(kind: str) -> None:
    images = torch.randint(0, 256, (40, 3, 64, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    here, there = (augment(each, kind, keys(1, torch.arange(40))) for each in (images, images.cuda()))
    torch.testing.assert_close(there.cpu(), here, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0.01), ("bf16", 0.1), ("fp16", 0.02)])
def test_a_gpu_embeds_as_the_cpu_does(precision: Precision, allowed: float, source: Source, domain: Domain) -> None:
    images, both = images_of(domain.train), copy.deepcopy(source.encoder)
    here = extract(both, images)
    there = extract(both, images, run=Run(device="cuda", precision=precision))
    assert float((there - here).norm() / here.norm()) < allowed


def test_a_gpu_trains_as_the_cpu_does_for_an_epoch(tmp_path: Path) -> None:
    stores = {"cpu": Memory(), "cuda": Memory()}
    for device, store in stores.items():
        pretrained(tmp_path, Run(device=device, store=store), dropout=0.0)
    here, there = (store.states["pretrain"]["history"][0] for store in stores.values())
    for loss in ("identification", "triplet"):
        assert there[loss] == pytest.approx(here[loss], rel=0.02)
