from __future__ import annotations

from uda_reid.strategies.source_only import SourceOnly
from uda_reid.testing import check_strategy


def test_source_only_keeps_every_promise_of_a_strategy() -> None:
    check_strategy(SourceOnly(), without_training=SourceOnly(), random_draws=False)
