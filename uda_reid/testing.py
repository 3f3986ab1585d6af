"""The conformance kit: what every strategy promises, built-in or from another package."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from uda_reid.data.images import unlabelled
from uda_reid.errors import UdaReidError
from uda_reid.launch import Stop
from uda_reid.models.encoder import EncoderSpec
from uda_reid.pretraining import Pretrain, pretrain
from uda_reid.run import Run, State
from uda_reid.training.features import extract
from uda_reid.training.loop import Stopped
from uda_reid.types import AdaptationResult, Domain, Source, Split, Strategy, Target

HEIGHT, WIDTH = 32, 16


class ConformanceError(UdaReidError):
    """A strategy broke a promise; the message names it."""


def tiny_domain(folder: Path, *, name: str = "tiny", identities: int = 6, images: int = 4, seed: int = 0) -> Domain:
    """Draw a domain of coloured noise into `folder`: identities differ by colour, two cameras by light."""
    numbers = np.random.default_rng([seed, *name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, first in (("train", 1), ("query", identities + 1), ("gallery", identities + 1)):
        paths: list[Path] = []
        pids, cams = [], []
        for pid in range(first, first + identities):
            colour = np.random.default_rng([seed, pid]).integers(40, 216, (2, 3))
            for number in range(1 if split == "query" else images):
                cam = number % 2 + 1
                picture = numbers.normal(0, 25, (HEIGHT, WIDTH, 3)) + 30 * cam
                picture[: HEIGHT // 2] += colour[0]
                picture[HEIGHT // 2 :] += colour[1]
                path = folder / f"{split}_{len(paths):03d}.png"  # a name that tells nothing
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
                paths.append(path)
                pids.append(pid)
                cams.append(cam)
        splits[split] = Split(tuple(paths), np.array(pids), np.array(cams))
    return Domain(name, folder, splits["train"], splits["query"], splits["gallery"])


def tiny_source(domain: Domain, *, epochs: int = 1) -> Source:
    """Train a very small encoder on `domain` for a moment."""
    options = Pretrain(epochs=epochs, batch=8, instances=2, warmup=0, augmentation="none", validation=0.0)
    spec = EncoderSpec(backbone="resnet_tiny", height=HEIGHT, width=WIDTH, weights="none", neck="none")
    return pretrain(domain, options, encoder=spec)


def fingerprint(module: nn.Module) -> str:
    """Return a digest of every parameter and buffer, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_strategy(
    strategy: Strategy,
    *,
    without_training: Strategy | None = None,
    cameras: bool = False,
    random_draws: bool = True,
) -> None:
    """Check that a strategy keeps its promises, on tiny images, in seconds.

    The promises: the same seed gives bit-identical weights and another seed others; the caller's encoder and classifier
    and the global random states are untouched; permuting the target's hidden labels changes nothing; interrupted after
    any save, or stopped after a step of its training, and resumed, it ends with the same weights; the result's encoder
    embeds images into finite features, its history and facts are plain values; and, where `without_training` is given,
    that one returns an encoder whose evaluation features equal the source's.

    Args:
        strategy: the strategy, with few epochs or rounds.
        without_training: the same strategy with zero epochs or rounds.
        cameras: whether the strategy declares that it needs camera ids.
        random_draws: False for a strategy that draws no random number (another seed then gives the same weights).

    Raises:
        ConformanceError: a promise is broken; the message says which.
    """
    with TemporaryDirectory() as folder:
        source = tiny_source(tiny_domain(Path(folder) / "source", name="source"))
        domain = tiny_domain(Path(folder) / "target", name="target", seed=1)
        adapt = _adapter(source, cameras)
        before = fingerprint(source.encoder), fingerprint(source.classifier), _global_states()
        first = adapt(strategy, domain, 0)
        after = fingerprint(source.encoder), fingerprint(source.classifier), _global_states()
        for was, now, what in zip(before, after, ("encoder", "classifier", "global random states"), strict=True):
            _promise(was == now, f"the caller's {what} changed during adapt")
        _promise(first.encoder is not source.encoder, "the result's encoder is the caller's own module")
        _check_result(first)
        weights = fingerprint(first.encoder)
        _promise(fingerprint(adapt(strategy, domain, 0).encoder) == weights, "the same seed gave other weights")
        if random_draws:
            _promise(
                fingerprint(adapt(strategy, domain, 1).encoder) != weights,
                "another seed gave the same weights",
            )
        pids = np.random.default_rng(0).permutation(domain.train.pids)
        permuted = replace(domain, train=replace(domain.train, pids=pids))
        _promise(
            fingerprint(adapt(strategy, permuted, 0).encoder) == weights,
            "permuting the target's hidden labels changed the weights",
        )
        _check_resume(strategy, source, unlabelled(domain, cameras=cameras), weights)
        _check_stop(strategy, source, unlabelled(domain, cameras=cameras), weights)
        if without_training is not None:
            images = unlabelled(domain).images
            same = torch.equal(
                extract(adapt(without_training, domain, 0).encoder, images), extract(source.encoder, images)
            )
            _promise(same, "without training the features differ from the source's")


def _adapter(source: Source, cameras: bool) -> Callable[[Strategy, Domain, int], AdaptationResult]:
    def adapt(strategy: Strategy, domain: Domain, seed: int) -> AdaptationResult:
        return strategy.adapt(source, unlabelled(domain, cameras=cameras), run=Run(seed=seed))

    return adapt


class _Cut(Exception):
    """The power went off."""


class _Fragile:
    """A store in memory that fails after a number of saves."""

    def __init__(self, saves: int) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.left = saves

    def save(self, name: str, state: State) -> None:
        if not self.left:
            raise _Cut
        self.left -= 1
        self.states[name] = copy.deepcopy(dict(state))

    def restore(self, name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.states.get(name))


def _check_resume(strategy: Strategy, source: Source, target: Target, weights: str) -> None:
    for saves in (1, 2, 3):
        store = _Fragile(saves)
        try:
            strategy.adapt(source, target, run=Run(store=store))
        except _Cut:
            store.left = -1  # from now on without an end
            resumed = strategy.adapt(source, target, run=Run(store=store))
            same = fingerprint(resumed.encoder) == weights
            _promise(same, f"interrupted after {saves} saves and resumed, the weights differ")


class _StopAfter(Stop):
    """Asks to stop when somebody has looked often enough; then no more."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks == 0

    @asked.setter
    def asked(self, _: bool) -> None:
        pass


def _check_stop(strategy: Strategy, source: Source, target: Target, weights: str) -> None:
    for steps in (1, 2, 4):
        store = _Fragile(-1)
        try:
            strategy.adapt(source, target, run=Run(store=store, stop=_StopAfter(steps)))
        except Stopped:
            resumed = strategy.adapt(source, target, run=Run(store=store))
            same = fingerprint(resumed.encoder) == weights
            _promise(same, f"stopped after {steps} steps and resumed, the weights differ")


def _check_result(result: AdaptationResult) -> None:
    with torch.inference_mode():
        features: Tensor = result.encoder.eval()(torch.rand(2, 3, HEIGHT, WIDTH))
    _promise(features.shape == (2, result.encoder.dim), f"the encoder gave shape {tuple(features.shape)}")
    _promise(bool(torch.isfinite(features).all()), "the adapted features are not finite")
    for entry in result.history:
        plain = all(isinstance(key, str) and isinstance(value, int | float) for key, value in entry.items())
        _promise(plain, f"history holds something else than named numbers: {entry}")
    for key, value in result.facts.items():
        _promise(isinstance(value, str | int | float | bool), f"fact {key!r} is a {type(value).__name__}")


def _global_states() -> tuple[bytes, str, str]:
    numpy_state = repr(np.random.get_state())  # noqa: NPY002 - the global state is what is being watched
    return torch.get_rng_state().numpy().tobytes(), numpy_state, repr(random.getstate())


def _promise(kept: bool, broken: str) -> None:
    if not kept:
        raise ConformanceError(broken)
