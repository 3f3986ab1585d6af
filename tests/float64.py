"""Strategies at double precision: two computations of one method then differ by what rounds at 1e-16 alone.

In float32 they cannot be told apart from a fault: another kernel sums in another order, Adam takes a whole step where a
gradient is nothing but rounding, and ten updates later a weight is off by a hundredth. In float64 Adam's 1e-8 below the
fraction swallows such gradients, and a tolerance can be tight on every processor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import nn

from uda_reid.strategies import BUILT_IN
from uda_reid.types import Source

ADAPTING = ("training.units", *(f"strategies.{name}" for name in BUILT_IN))
"""The modules of `uda_reid` in which strategies embed and train."""

NEAR = 1e-11
"""How near two computations of a few updates at double precision come, on every processor."""


@contextmanager
def doubled() -> Iterator[None]:
    """Inside, everything that would be float32 is float64: the same mathematics with nothing lost in rounding."""
    before, usual = torch.Tensor.float, torch.get_default_dtype()
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = before  # type: ignore[method-assign]
        torch.set_default_dtype(usual)


def in_double(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does its work in float64, with the modules in its `parts` as well."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with doubled():
            for part in (kwargs.get("parts") or {}).values():
                if isinstance(part, nn.Module):
                    part.double()
            return function(*args, **kwargs)

    return wrapped


def rounded(extract: Callable[..., Any]) -> Callable[..., Any]:
    """Features as float32, which clustering takes, and so coarse that the last bits of a float64 cannot matter."""

    @wraps(extract)
    def wrapped(encoder: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with doubled():
            return ((extract(encoder.double(), *args, **kwargs) * 1e4).round() / 1e4).to(torch.float32)

    return wrapped


def use_float64(names: Iterable[str], put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let modules of `uda_reid` embed and train at double precision; `put` sets their names."""
    for name in names:
        module: Any = import_module(f"uda_reid.{name}")
        for function in ("train", "with_statistics", "_measure"):
            if hasattr(module, function):
                put(module, function, in_double(getattr(module, function)))
        if hasattr(module, "extract"):
            put(module, "extract", rounded(module.extract))


def at_double(source: Source) -> Source:
    """Return a source whose model is a copy at double precision."""
    encoder, classifier = copy.deepcopy(source.encoder).double(), copy.deepcopy(source.classifier).double()
    return replace(source, encoder=encoder, classifier=classifier)


def assert_same(made: nn.Module, by_hand: nn.Module, *, start: nn.Module) -> None:
    """Check that two modules of one kind, at double precision, have the same weights, and learned others than `start`.

    Rounding leaves 1e-16 to 1e-14 of `NEAR`. A wrong rate, sign, order of rows or statistic moves weights by 1e-7 and
    more, as training itself does.
    """
    ours, expected, before = (module.state_dict() for module in (made, by_hand, start))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):  # how often, not what
            continue
        assert value.dtype == torch.float64, f"{name} was computed in {value.dtype}"
        off = float((ours[name] - value).abs().max())
        assert torch.allclose(ours[name], value, rtol=NEAR, atol=NEAR), f"{name} is off by {off:.1e}"
    learned = [name for name, weight in by_hand.named_parameters() if weight.requires_grad and name in before]
    still = [name for name in learned if float((expected[name] - before[name]).abs().max()) < 1e4 * NEAR]
    assert learned and len(still) < 0.1 * len(learned), f"hardly trained: {still}"
