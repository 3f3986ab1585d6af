"""Re-ranking: distances between queries and gallery, mixed with their Jaccard distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import uda_reid.ops.kernels as kernels
from uda_reid.errors import DataError, RecipeError
from uda_reid.ops.distance import MEMORY, Directions, blur, check_features, directions, exact_cosines, product_strips
from uda_reid.ops.jaccard.encoding import Reading, check_options, encode_features, power
from uda_reid.ops.jaccard.overlaps import Sides, distances_between
from uda_reid.ops.neighbours import Progress, quiet


def rerank(
    query: Tensor,
    gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    share: float = 0.3,
    reading: Reading = "zhong",
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Iterator[Tensor]:
    """Yield re-ranked distances between queries and gallery, for `ops.ranking.rank_distances`.

    They are share * d + (1 - share) * Jaccard distance among all images of both, d being the distance of the reading:
    over that of the farthest image for `zhong` and `zhong-squared`, plain for `spcl`.

    Args:
        query: (Q, D) float32, finite, of any length.
        gallery: (G, D) float32, finite, of any length.
        k1: size of the k-reciprocal sets; Zhong et al.: 20.
        k2: rows averaged over; Zhong et al.: 6.
        share: of the original distance, in [0, 1]; lambda of Zhong et al.: 0.3.
        reading: as for `encode`.
        memory: bytes of distances computed at once.
        progress: shows the search for neighbours.

    Yields:
        (B, G) float32 for the queries in order.

    Raises:
        DataError: the features are not finite, not float32, empty, or do not fit each other.
        RecipeError: an option is out of range.

    Source:
        Zhong et al. 2017, equations 4 to 12.
    """
    check_features(query, "query features")
    check_features(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise DataError(f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}")
    if not 0 <= share <= 1:
        raise RecipeError(f"a share of {share} of the original distance is out of range; use 0 to 1")
    check_options(k1, k2, reading)
    return _reranked(query, gallery, k1, k2, share, reading, memory, progress)


def _reranked(
    query: Tensor,
    gallery: Tensor,
    k1: int,
    k2: int,
    share: float,
    reading: Reading,
    memory: int,
    progress: Progress,
) -> Iterator[Tensor]:
    both = torch.cat([query.to(gallery.device), gallery])
    encoding = encode_features(both, k1=k1, k2=k2, reading=reading, memory=memory, progress=progress)
    sides = Sides.of(encoding, len(query))
    factor = torch.ones(len(query))
    if reading != "spcl":
        factor = 1 / power(2 * encoding.found.farthest[: len(query)], reading).cpu()
        factor[~torch.isfinite(factor)] = 0
    del both, encoding
    towards, first = directions(gallery.detach()), 0
    mixture = _Mixture(query, towards, factor, sides, share, reading)
    mix = _mix if gallery.device.type == "cpu" else _mix_on_device
    for strip in product_strips(query, towards, memory=memory):
        block = strip.clone()  # the caller may keep it
        mix(block, first, mixture)
        yield block
        first += len(block)


class _Mixture(NamedTuple):
    """What products become re-ranked distances by.

    Args:
        query: (Q, D) float32.
        towards: the gallery as the products were made with.
        factor: (Q,) float32, what each query's squared distances are multiplied by.
        sides: encodings of the queries and of the gallery.
        share: of the original distance.
        reading: of that distance.
    """

    query: Tensor
    towards: Directions
    factor: Tensor
    sides: Sides
    share: float
    reading: Reading


def _mix(strip: Tensor, first: int, mixture: _Mixture) -> None:
    """Turn a strip of products into re-ranked distances, in place; `first` is its first query."""
    query, towards, factor, sides, share, reading = mixture
    lines, scales, factors = strip.numpy(), towards.scale.numpy(), factor.numpy()
    rows = query.detach().contiguous().numpy(), towards.rows.detach().contiguous().numpy()
    doubt, squared = blur(rows[0].shape[1]), reading == "zhong-squared"

    def work(start: int, stop: int) -> None:
        kernels.mix_rows(
            lines, scales, factors, squared, share, rows, doubt, sides.totals, first, sides.mine, sides.theirs,
            start, stop,
        )  # fmt: skip

    kernels.share(work, len(lines))


@torch.no_grad()
def _mix_on_device(strip: Tensor, first: int, mixture: _Mixture) -> None:
    """Do the same by torch; the overlaps come from the CPU."""
    query, towards, factor, sides, share, reading = mixture
    plain = (2 - 2 * (strip * towards.scale)).clamp_min_(0)
    low = (plain < 2 * blur(query.shape[1])).nonzero()
    for some in torch.split(low, 1024):
        mine = query[(first + some[:, 0]).to(query.device)].to(strip.device)
        plain[some[:, 0], some[:, 1]] = 2 * exact_cosines(mine, towards.rows[some[:, 1]])
    stop = first + len(strip)
    strip.copy_(share * power(plain, reading) * factor[first:stop, None].to(strip.device) + (1 - share))
    counts, others, distances = distances_between(sides.rows(first, stop), 0)
    row = torch.repeat_interleave(torch.from_numpy(counts)).to(strip.device)
    column, distance = (torch.from_numpy(part).to(strip.device) for part in (others.astype(np.int64), distances))
    strip[row, column] -= (1 - share) * (1 - distance)  # no pair occurs twice
    strip.clamp_min_(0)
