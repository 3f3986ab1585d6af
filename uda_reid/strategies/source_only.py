"""Direct transfer: the source model as it is. The baseline row of every table."""

from __future__ import annotations

import copy

from pydantic.dataclasses import dataclass

from uda_reid.run import QUIET, Run
from uda_reid.types import AdaptationResult, Source, Target


@dataclass(frozen=True, kw_only=True)
class SourceOnly:
    """Use the source model on the target without touching it: no target image is seen, not even by batch norm."""

    def adapt(self, source: Source, target: Target, *, run: Run = QUIET) -> AdaptationResult:
        """Return a copy of the source's encoder."""
        return AdaptationResult(copy.deepcopy(source.encoder), facts={"target images used": "none"})
