from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import rankdata

from uda_reid.data.images import augment, unlabelled
from uda_reid.ops.clustering import kmeans
from uda_reid.ops.distance import normalise
from uda_reid.ops.noise import keys
from uda_reid.ops.quality import silhouette, soft_neighbourhood_density, stability
from uda_reid.pretraining import validate
from uda_reid.run import Run
from uda_reid.selection import SOURCE, Choice, choices, proxies, rank_correlation
from uda_reid.testing import HEIGHT, WIDTH, tiny_domain, tiny_source
from uda_reid.types import Source, Target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tiny_domain(tmp_path_factory.mktemp("source")), epochs=1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return unlabelled(tiny_domain(tmp_path_factory.mktemp("target"), name="target", seed=1))


def test_proxies_are_those_of_the_embeddings(source: Source, target: Target) -> None:
    run = Run(seed=2)
    found = proxies(source.encoder, target, source, run=run)
    pictures = target.images.read(torch.arange(24), HEIGHT, WIDTH)
    encoder = copy.deepcopy(source.encoder).eval()
    with torch.no_grad():
        plain = normalise(encoder(pictures.float() / 255))
        changed = normalise(encoder(augment(pictures, "reid", keys(run.seed_for("features"), torch.arange(24)))))
    one, other = (kmeans(each, 3, generator=run.stream("proxies/kmeans")).labels for each in (plain, changed))
    apart = silhouette(plain, one, generator=run.stream("proxies/silhouette")).value
    assert found["silhouette"] == pytest.approx(apart, abs=1e-5)
    assert found["density"] == pytest.approx(soft_neighbourhood_density(plain), abs=1e-4)
    assert found["agreement"] == pytest.approx(stability(one, other))
    held_out = torch.nonzero(source.pids >= 4).flatten()
    with_people = replace(source, validation=held_out)
    expected = validate(with_people, run=run)["mean_ap"]
    assert proxies(source.encoder, target, with_people, run=run)[SOURCE] == expected
    assert (SOURCE in found) == bool(len(source.validation))


def test_encoder_that_has_diverged_has_no_proxies(source: Source, target: Target) -> None:
    broken = copy.deepcopy(source.encoder)
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    assert all(math.isnan(value) for value in proxies(broken, target, source).values())


CURVE = [
    {"step": 1.0, "mean_ap": 0.3, "silhouette": 0.1, "density": 5.0, "agreement": 0.9, SOURCE: 0.5},
    {"step": 2.0, "mean_ap": 0.5, "silhouette": 0.4, "density": 3.0, "agreement": 0.9, SOURCE: 0.5},
    {"step": 3.0, "mean_ap": 0.4, "silhouette": 0.2, "density": 4.0, "agreement": 0.8, SOURCE: math.nan},
]


def test_choices_are_where_a_rule_is_highest_and_the_later_of_equals() -> None:
    found = choices(CURVE)
    assert list(found) == ["last", "silhouette", "density", "agreement", "oracle"]  # one rule is not known everywhere
    assert found["oracle"] == found["silhouette"] == found["agreement"] == Choice(2.0, 0.5, 0.0)
    assert found["last"][:2] == (3.0, 0.4) and found["last"].regret == pytest.approx(0.1)
    assert found["density"] == Choice(1.0, 0.3, 0.2)
    assert choices([]) == choices([{"step": 1.0, "mean_ap": math.nan}]) == {}
    assert choices([*CURVE, {"step": 4.0, "mean_ap": math.nan}])["last"].step == 3.0


def test_correlation_is_that_of_ranks() -> None:
    ranks = [rankdata([entry[name] for entry in CURVE]) for name in ("silhouette", "mean_ap")]
    by_hand = 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (3 * (9 - 1))
    assert rank_correlation(CURVE, "silhouette") == pytest.approx(by_hand) == 1
    assert rank_correlation(CURVE, "density") == -1
    assert math.isnan(rank_correlation(CURVE, SOURCE))  # two values
    assert math.isnan(rank_correlation([{**entry, "density": 1.0} for entry in CURVE], "density"))
    assert math.isnan(rank_correlation(CURVE[:2], "density"))


def test_oracle_takes_the_first_of_equals_and_nothing_is_lost_by_that() -> None:
    curve = [{"step": step, "mean_ap": 0.5} for step in (1.0, 2.0)]
    assert choices(curve) == {"last": Choice(2.0, 0.5, 0.0), "oracle": Choice(1.0, 0.5, 0.0)}
