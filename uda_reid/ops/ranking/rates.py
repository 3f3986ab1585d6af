"""True-positive rates at small false-positive rates, over all pairs of a search, from few of their distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from uda_reid.errors import RecipeError

Distances = npt.NDArray[Any]


def check_rates(rates: Sequence[float]) -> None:
    """Refuse false-positive rates outside (0, 1].

    Raises:
        RecipeError: a rate is out of range.
    """
    for rate in rates:
        if not 0 < rate <= 1:
            raise RecipeError(f"a false-positive rate of {rate} is out of range; use more than 0 and at most 1")


class Nearest:
    """Of a stream of wrong pairs keeps the nearest, and the matches that are nearer than the last of these.

    Threads may add at the same time: what is found does not depend on the order.
    """

    def __init__(self, rates: Sequence[float], pairs: int) -> None:
        """Make room for the decisive distances.

        Args:
            rates: false-positive rates that will be asked for; none to keep nothing.
            pairs: at least the number of wrong pairs to come.
        """
        self.rates = tuple(rates)
        self.wanted = min(int(max(rates, default=0) * pairs) + 2, pairs)
        self.cutoff = math.inf if rates else -math.inf
        self._wrong = np.empty(0)
        self._filled = 0
        self._matches: list[Distances] = []
        self._lock = Lock()

    def add(self, wrong: Distances, matches: Distances) -> None:
        """Take distances of wrong pairs and of matches; those not below `cutoff` may be left out."""
        with self._lock:
            self._matches.append(matches[matches < self.cutoff])
            if not len(self._wrong):
                self._wrong = np.empty(2 * self.wanted, wrong.dtype)
            while len(wrong):
                room = wrong[: len(self._wrong) - self._filled]
                self._wrong[self._filled : self._filled + len(room)] = room
                self._filled += len(room)
                if self._filled == len(self._wrong):
                    self._wrong.partition(self.wanted - 1)
                    self._filled, self.cutoff = self.wanted, float(self._wrong[self.wanted - 1])
                wrong = wrong[len(room) :]
                wrong = wrong[wrong < self.cutoff] if math.isfinite(self.cutoff) else wrong

    def accepted(self, matches: int, wrong: int) -> Mapping[float, float]:
        """Return, for each false-positive rate, the share of matches nearer than the first wrong pair too many.

        Args:
            matches: how many matches there were in all.
            wrong: how many wrong pairs there were in all.
        """
        nearest = np.sort(self._wrong[: self._filled])
        found = np.sort(np.concatenate(self._matches)) if self._matches else np.empty(0)
        shares = {}
        for rate in self.rates:
            allowed = math.floor(rate * wrong)
            if wrong:  # the product is rounded: 0.29 * 100 is less than 29, and 29 / 100 is 0.29
                allowed += ((allowed + 1) / wrong <= rate) - (allowed / wrong > rate)
            accepted = matches if allowed >= wrong else int(np.searchsorted(found, nearest[allowed]))
            shares[rate] = accepted / matches if matches else math.nan
        return shares
