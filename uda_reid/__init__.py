"""Unsupervised cross-domain person re-identification: carry a model to cameras that nobody labelled.

The names below are imported on first use, so that `import uda_reid` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AdaBN": "strategies.adabn",
    "AdaptationResult": "types",
    "CheckpointError": "errors",
    "Cluster": "strategies.cluster",
    "DataError": "errors",
    "Domain": "types",
    "Encoder": "types",
    "EncoderSpec": "models.encoder",
    "Evaluator": "evaluation",
    "Job": "job",
    "PUL": "strategies.pul",
    "Pretrain": "pretraining",
    "RecipeError": "errors",
    "Run": "run",
    "Scores": "types",
    "Source": "types",
    "SourceOnly": "strategies.source_only",
    "Strategy": "types",
    "Target": "types",
    "UdaReidError": "errors",
    "check_strategy": "testing",
    "evaluate": "evaluation",
    "load_encoder": "training.encoders",
    "one": "pipeline",
    "open_domain": "job",
    "pretrain": "pretraining",
    "read": "data.layouts",
    "save_encoder": "training.encoders",
    "unlabelled": "data.images",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from uda_reid.data.images import unlabelled as unlabelled
    from uda_reid.data.layouts import read as read
    from uda_reid.errors import CheckpointError as CheckpointError
    from uda_reid.errors import DataError as DataError
    from uda_reid.errors import RecipeError as RecipeError
    from uda_reid.errors import UdaReidError as UdaReidError
    from uda_reid.evaluation import Evaluator as Evaluator
    from uda_reid.evaluation import evaluate as evaluate
    from uda_reid.job import Job as Job
    from uda_reid.job import open_domain as open_domain
    from uda_reid.models.encoder import EncoderSpec as EncoderSpec
    from uda_reid.pipeline import one as one
    from uda_reid.pretraining import Pretrain as Pretrain
    from uda_reid.pretraining import pretrain as pretrain
    from uda_reid.run import Run as Run
    from uda_reid.strategies.adabn import AdaBN as AdaBN
    from uda_reid.strategies.cluster import Cluster as Cluster
    from uda_reid.strategies.pul import PUL as PUL
    from uda_reid.strategies.source_only import SourceOnly as SourceOnly
    from uda_reid.testing import check_strategy as check_strategy
    from uda_reid.training.encoders import load_encoder as load_encoder
    from uda_reid.training.encoders import save_encoder as save_encoder
    from uda_reid.types import AdaptationResult as AdaptationResult
    from uda_reid.types import Domain as Domain
    from uda_reid.types import Encoder as Encoder
    from uda_reid.types import Scores as Scores
    from uda_reid.types import Source as Source
    from uda_reid.types import Strategy as Strategy
    from uda_reid.types import Target as Target


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(f"uda_reid.{_HOME[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'uda_reid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
