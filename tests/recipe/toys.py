"""A strategy with an option of every kind, for recipes that tests write."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

import uda_reid.recipe
from uda_reid.errors import RecipeError
from uda_reid.run import QUIET, Run
from uda_reid.types import AdaptationResult, Source, Target


@dataclass(frozen=True, kw_only=True)
class Toy:
    clusters: Annotated[int, Field(gt=0)] = 700
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.85
    lr: Annotated[float, Field(gt=0)] = 1e-3
    rounds: int = 25
    flip: bool = True
    select: Literal["any", "own"] = "any"
    milestones: tuple[int, ...] = (30, 50)
    title: str = "toy"
    limit: int | None = None

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the source's encoder."""
        return AdaptationResult(source.encoder)


class NoDataclass:
    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return the source's encoder."""
        return AdaptationResult(source.encoder)


Written = Callable[[str], Path]
load = partial(uda_reid.recipe.load, allow_code=True)
"""The toy strategy belongs to no installed package."""
HEAD = "strategy: toys.methods:Toy\n"


def refused(message: str) -> Any:
    return pytest.raises(RecipeError, match=f"^{re.escape(message)}$")
