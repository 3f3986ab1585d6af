"""From a recipe and two domains to a finished, recorded run: pretrain, adapt, evaluate."""

from __future__ import annotations

from uda_reid.pipeline.folders import ADAPTED, SOURCE_MODEL, Busy, make_folder
from uda_reid.pipeline.runs import one, score_checkpoint
from uda_reid.pipeline.sources import source_model, train_source

__all__ = ["ADAPTED", "SOURCE_MODEL", "Busy", "make_folder", "one", "score_checkpoint", "source_model", "train_source"]
