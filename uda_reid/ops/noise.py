"""Random numbers that an item has by itself: whatever else is drawn, in whatever order, by however many workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15
"""By which the state of a splitmix64 generator grows: 2^64 over the golden ratio, made odd."""


def splitmix(state: Words, place: npt.NDArray[np.int64]) -> Words:
    """Return number `place` (from 0) of the splitmix64 generator that starts at `state`; the two are broadcast.

    Args:
        state: uint64, one dimension at least.
        place: int64, not negative.

    Source:
        Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 13, with the constants of
        its reference implementation in Java.
    """
    z = state + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(STEP)  # modulo 2^64, as all that follows
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words: Words = z ^ (z >> np.uint64(31))
    return words


def keys(seed: int, rows: Tensor, times: Tensor | None = None) -> Tensor:
    """Return a key for every row, for `uniform`.

    Args:
        seed: of the whole stream, not negative and below 2^64.
        rows: (B,) int64.
        times: (B,) int64, how often each row has come before (default: never).

    Returns:
        (B,) int64, of all 64 bits.
    """
    of_rows = splitmix(np.array([seed], np.uint64), rows.numpy())
    times = torch.zeros_like(rows) if times is None else times
    return torch.from_numpy(splitmix(of_rows, times.numpy()).view(np.int64))


def keys_of(seed: int, plan: Sequence[Tensor]) -> list[Tensor]:
    """Return the keys of all batches of a plan: a row that comes again has another key each time.

    How the rows are dealt into batches changes no key.

    Args:
        seed: of the whole stream.
        plan: the rows of every batch, (B,) int64.

    Returns:
        (B,) int64 keys per batch.
    """
    if not plan:
        return []
    rows = torch.cat(list(plan))
    ordered, order = rows.sort(stable=True)
    times = torch.empty_like(rows)
    times[order] = torch.arange(len(rows)) - torch.searchsorted(ordered, ordered)
    return list(torch.split(keys(seed, rows, times), [len(part) for part in plan]))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return `count` random numbers for every key, uniform in [0, 1) in steps of 2^-24.

    Args:
        keys: (B,) int64, on the CPU.
        count: numbers per key; a larger count begins with the numbers of a smaller one.

    Returns:
        (B, count) float32.
    """
    words = splitmix(keys.numpy().view(np.uint64)[:, None], np.arange(count))
    return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))
