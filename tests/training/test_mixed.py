from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.threads import all_of
from uda_reid.data.images import unlabelled
from uda_reid.errors import DataError, RecipeError
from uda_reid.models.batch_norm import batch_norms, grouped, shared
from uda_reid.run import Run
from uda_reid.sharing import ALONE, Processes
from uda_reid.testing import HEIGHT, WIDTH, tiny_domain, tiny_source
from uda_reid.training.batches import SideBySide
from uda_reid.training.mixed import embed, mixed
from uda_reid.types import Batch, Source, Target


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Target]:
    folder: Path = tmp_path_factory.mktemp("mixed")
    source = tiny_source(tiny_domain(folder / "source"), epochs=0)
    return source, unlabelled(tiny_domain(folder / "target", name="target", seed=1))


CLUSTERS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, -1] * 2)


def made(source: Source, target: Target, clusters: Tensor, *, batches: int = 0, seed: int = 0) -> SideBySide:
    return mixed(
        source, target, clusters, source.encoder, batch=6, instances=2, batches=batches, augmentation="reid",
        name="here", run=Run(seed=seed),
    )  # fmt: skip


@pytest.mark.parametrize("batches", [0, 9])
def test_every_batch_has_three_people_and_three_clusters(pair: tuple[Source, Target], batches: int) -> None:
    source, target = pair
    found = list(made(source, target, CLUSTERS, batches=batches))
    assert len(found) == (batches or round(22 / 6))
    for mine, theirs in found:
        for batch in (mine, theirs):
            assert batch.images.shape == (6, 3, HEIGHT, WIDTH)
            assert torch.unique(batch.labels, return_counts=True)[1].tolist() == [2, 2, 2]
        assert torch.equal(mine.labels, source.pids[mine.rows])
        assert torch.equal(theirs.labels, CLUSTERS[theirs.rows])


def test_rows_of_no_cluster_and_people_held_out_are_left_out(pair: tuple[Source, Target]) -> None:
    source, target = pair
    held_out = torch.nonzero(source.pids == 5).flatten()
    found = list(made(replace(source, validation=held_out), target, CLUSTERS, batches=20))
    mine = torch.cat([batch.rows for batch, _ in found])
    theirs = torch.cat([batch.rows for _, batch in found])
    assert set(mine.tolist()) == set(range(24)) - set(held_out.tolist())
    assert set(theirs.tolist()) == set(torch.nonzero(CLUSTERS >= 0).flatten().tolist())


@pytest.mark.parametrize("clusters", [torch.full((24,), -1), torch.tensor([0] * 5 + [-1] * 19)])
def test_without_two_clusters_all_target_images_come_at_random(pair: tuple[Source, Target], clusters: Tensor) -> None:
    source, target = pair
    found = list(made(source, target, clusters))
    assert len(found) == 4
    assert sorted(torch.cat([theirs.rows for _, theirs in found]).tolist()) == list(range(24))
    assert len(list(made(source, target, clusters, batches=7))) == 7


def test_source_of_one_person_is_refused_and_held_out_rows_are_never_taken(pair: tuple[Source, Target]) -> None:
    source, target = pair
    held_out = torch.nonzero(source.pids > 0).flatten()
    with pytest.raises(DataError, match="at least 2 identities, and there is 1"):
        list(made(replace(source, validation=held_out), target, CLUSTERS))


def test_two_clusters_make_smaller_batches_of_the_target(pair: tuple[Source, Target]) -> None:
    source, target = pair
    for mine, theirs in made(source, target, torch.arange(24) % 2):
        assert (len(mine.rows), len(theirs.rows)) == (6, 4)


def test_streams_depend_on_the_seed_and_differ_by_domain(pair: tuple[Source, Target]) -> None:
    source, target = pair
    one, again, other = (list(made(source, target, CLUSTERS, seed=seed)) for seed in (0, 0, 1))
    assert all(
        torch.equal(first.images, second.images)
        for first, second in zip(chain.from_iterable(one), chain.from_iterable(again), strict=True)
    )
    assert not torch.equal(one[0][0].rows, other[0][0].rows)


# How the domains are embedded


class Two(nn.Module):
    """Images to a tensor, or to two."""

    def __init__(self, *, pair: bool) -> None:
        super().__init__()
        self.pair = pair
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps: Tensor = self.layers(images)
        return (maps.mean((2, 3)), maps.square()) if self.pair else maps.mean((2, 3))


def net(*, pair: bool) -> Two:
    made = Two(pair=pair).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator))
    grouped(made)
    return made


SIZES = [5, 4, 7]


def domains() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = [number + torch.rand((size, 3, 4, 2), generator=generator).double() for number, size in enumerate(SIZES)]
    return [Batch(part, torch.zeros(len(part)), torch.arange(len(part))) for part in images]


def plain(module: nn.Module, *, apart: bool) -> list[Tensor]:
    """Every domain by its own call in training, the statistics those of the target alone; or one call."""
    images = [batch.images for batch in domains()]
    if not apart:
        found = [module(torch.cat(images))]
    else:
        [layer] = batch_norms(module)
        before = {name: value.clone() for name, value in layer.named_buffers()}
        found = [module(part) for part in images[:-1]]
        for name, value in before.items():
            setattr(layer, name, value)
        found.append(module(images[-1]))
    tuples = [each if isinstance(each, tuple) else (each,) for each in found]
    return [torch.cat(column) for column in zip(*tuples, strict=True)]


def running(module: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in module.state_dict().items() if "running" in name]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_domains_are_embedded_apart_or_together_on_any_number_of_processes(count: int, apart: bool, pair: bool) -> None:
    whole = net(pair=pair)
    expected = plain(whole, apart=apart)
    torch.stack([each.square().sum() for each in expected]).sum().backward()  # type: ignore[no-untyped-call]

    def work(processes: Processes) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        own, run = net(pair=pair), Run(processes=processes)
        shared(own, processes, trained=True)
        batches = [batch._replace(images=batch.images[run.share(len(batch.rows))]) for batch in domains()]
        found = embed(own, batches, apart=apart, run=run)
        torch.stack([each.square().sum() for each in found]).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in own.parameters() if weight.grad is not None]
        processes.average(gradients)
        return tuple(each.detach() for each in found), gradients, running(own)

    for found, gradients, statistics in [work(ALONE)] if count == 1 else all_of(count, work):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-10, atol=1e-10)
        for one, other in zip(
            gradients, [weight.grad for weight in whole.parameters() if weight.grad is not None], strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        for one, other in zip(statistics, running(whole), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_together_and_apart_differ() -> None:
    [one], [other] = plain(net(pair=False), apart=True), plain(net(pair=False), apart=False)
    assert not torch.allclose(one, other, atol=0.1)


def test_a_group_of_batch_norm_that_would_reach_over_two_domains_is_refused() -> None:
    module = net(pair=False)
    grouped(module, 5)
    odd = [domain._replace(images=domain.images[:4], rows=domain.rows[:4]) for domain in domains()[:2]]
    with pytest.raises(RecipeError, match=r"encoder\.bn_group 5 does not divide the 4 and 4 images of the domains"):
        embed(module, odd, apart=False, run=Run())
    grouped(module, 2)
    assert len(embed(module, odd, apart=False, run=Run())[0]) == 8
