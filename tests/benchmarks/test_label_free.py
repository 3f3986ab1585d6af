from __future__ import annotations

import doctest

from benchmarks import label_free


def test_ranks_are_those_of_the_docstring() -> None:
    assert doctest.testmod(label_free).failed == 0
    assert doctest.testmod(label_free).attempted > 0
