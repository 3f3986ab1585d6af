"""HDBSCAN on a sparse matrix of distances, by scikit-learn, with the labels of the full matrix.

Handing the stored distances to scikit-learn does not do. It drops the edges of length 0 from the spanning tree, so that
copies of a row end in fewer labels than rows or in a crash. And a spanning tree is one of many: mutual reachability
distances are full of ties, because all edges to a row in a sparse place are as long as that row's core distance, and
absent pairs are all at 1. The labels depend on the order in which ties are joined, and for sparse input that is another
order than for the full matrix.

So the tree is found here, as scikit-learn finds it for the full matrix, and handed over instead of the graph: a walk
through all rows, from each to the one that is then nearest to all rows behind it. Once it is found, the ties at 1 can
also be joined in an order that means something.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from uda_reid.errors import RecipeError
from uda_reid.ops.clustering.graph import Distances, check_graph, neighbour_distances, number_by_first_row

Rows = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.float64]
Selection = Literal["eom", "leaf"]
Ties = Literal["scikit-learn", "apart"]

LEAST = 5e-324
"""What stands for a length of 0: the least float64, whose inverse is infinite, too."""


def hdbscan_graph(
    graph: csr_array,
    *,
    min_cluster_size: int = 4,
    min_samples: int | None = None,
    selection: Selection = "eom",
    ties: Ties = "scikit-learn",
) -> Tensor:
    """Cluster a graph by density at every radius at once, with the labels of scikit-learn's HDBSCAN on the full matrix.

    With `ties` of `scikit-learn` the labels are those, up to their numbers, whatever ties there are. But where there
    are ties, those labels depend on the order of the rows, and on how NumPy sorts on this type of CPU. At 1, where all
    is tied that no stored pair connects, this is no trifle: a row near to nothing is joined to the cluster that the
    walk has left, and small groups to one another. On 100 groups of ten among 1,000 rows alone, 8 of 10 of these are
    labelled, and there are 142 clusters. `apart` finds the 100, and calls the other rows noise.

    Args:
        graph: (N, N) float32 as for `check_graph`; a row is at distance 0 from itself whatever is stored.
        min_cluster_size: at least 2; smaller groups are noise, or fall off their cluster.
        min_samples: a row is as dense as this many rows are near, itself among them; at least 1, None for
            `min_cluster_size`.
        selection: `eom`: the clusters that persist longest; `leaf`: the smallest ones.
        ties: how what is at 1 from one another is joined; `scikit-learn`: as it is there; `apart`: first the groups of
            `min_cluster_size` rows and more that are nearer than 1 among themselves, then the smaller ones, one by one,
            so that no cluster reaches beyond such a group.

    Returns:
        (N,) int64 on the CPU: clusters 0..C-1 in the order of their lowest rows, -1 for noise; all are noise where
        there is one row, or fewer than `min_samples`, which scikit-learn refuses.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: an option is unknown or out of range.

    Source:
        Campello, Moulavi and Sander 2013; scikit-learn's HDBSCAN with metric="precomputed".

    >>> pairs = csr_array(np.array([[0, 0.2, 0, 0], [0.2, 0, 0, 0], [0, 0, 0, 0.7], [0, 0, 0.7, 0]], dtype=np.float32))
    >>> hdbscan_graph(pairs, min_cluster_size=2).tolist()
    [0, 0, 1, 1]
    """
    check_graph(graph)
    min_samples = min_cluster_size if min_samples is None else min_samples
    if min_cluster_size < 2 or min_samples < 1:
        given = f"min_cluster_size {min_cluster_size} and min_samples {min_samples}"
        raise RecipeError(f"HDBSCAN with {given} cannot be; use at least 2 and 1")
    if selection not in ("eom", "leaf") or ties not in ("scikit-learn", "apart"):
        given = f"selection {selection!r} and ties {ties!r}"
        raise RecipeError(f"HDBSCAN with {given} is unknown; use eom or leaf, and scikit-learn or apart")
    rows = graph.shape[0]
    if rows == 1 or rows < min_samples:
        return torch.full((rows,), -1)
    cores = np.zeros(rows, dtype=np.float32) if min_samples == 1 else neighbour_distances(graph, min_samples - 1)
    order, lengths = walk(graph, cores)
    if ties == "apart":
        order, lengths = _largest_first(order, lengths, min_cluster_size)
    from sklearn.cluster import HDBSCAN  # takes half a second, and most runs need none

    machine = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=1,  # the walk's lengths know the core distances
        metric="precomputed",
        cluster_selection_method=selection,
        copy=False,
    )
    labels = np.empty(rows, dtype=np.int64)
    labels[order] = machine.fit(_path(lengths)).labels_
    return number_by_first_row(labels)


def walk(graph: csr_array, cores: Distances) -> tuple[Rows, Lengths]:
    """Walk through all rows by Prim's algorithm, from row 0, always on to the row nearest to those behind.

    Rows are as far apart as they can reach each other: by the largest of their two core distances and their own. Of
    rows as near the lowest is next; an absent pair is at 1, so that any row is at most that far.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        cores: (N,) core distances in [0, 1].

    Returns:
        (N,) the rows in their order; (N - 1,) how near each but the first was. Two rows are in one cluster at a radius
        just where no length between them is above it.

    Source:
        Prim 1957; scikit-learn's `mst_from_mutual_reachability`, with whose order this agrees.
    """
    indptr, indices, data = graph.indptr.tolist(), graph.indices, graph.data
    nearest = np.ones(len(cores), dtype=np.float32)  # to the rows behind; -1 for those
    order, lengths = np.zeros(len(cores), dtype=np.int64), np.zeros(len(cores))
    waiting: list[tuple[float, int]] = []
    lowest = row = 0
    length = 0.0
    for place in range(len(cores)):
        order[place], lengths[place], nearest[row] = row, length, -1
        around = slice(indptr[row], indptr[row + 1])
        near = indices[around]
        reach = np.maximum(np.maximum(data[around], cores[near]), cores[row])
        nearer = reach < nearest[near]
        near, reach = near[nearer], reach[nearer]
        nearest[near] = reach
        for pair in zip(reach.tolist(), near.tolist(), strict=True):
            heappush(waiting, pair)
        while waiting and nearest[waiting[0][1]] < 0:
            heappop(waiting)
        while not waiting and lowest < len(cores) - 1 and nearest[lowest] < 0:
            lowest += 1
        length, row = heappop(waiting) if waiting else (1.0, lowest)
    return order, lengths[1:]


def _largest_first(order: Rows, lengths: Lengths, min_cluster_size: int) -> tuple[Rows, Lengths]:
    """Return the walk with its stretches between lengths of 1 in the order of their sizes, and these ties broken.

    By steps of float64: stretches of `min_cluster_size` and more join pairwise, then pairs of these, and so on, which
    keeps the tree low; the smaller ones join after them, one by one, and so are the first to fall off.
    """
    starts = np.flatnonzero(np.append(True, lengths >= 1))
    sizes = np.diff(np.append(starts, len(order)))
    ranked = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[ranked], sizes[ranked]
    ends = np.cumsum(sizes)
    places = np.arange(len(order)) + np.repeat(starts - (ends - sizes), sizes)
    joints = np.arange(1, len(starts))
    groups = int((sizes >= min_cluster_size).sum())
    steps = np.where(joints < groups, np.log2(joints & -joints), groups.bit_length() + joints)
    lengths = np.append(1, lengths)[places]
    lengths[ends[:-1]] = 1 + steps * np.finfo(np.float64).eps
    return order[places], lengths[1:]


def _path(lengths: Lengths) -> csr_array:
    """Return a graph that is its own spanning tree, and is left as it is: row i beside i + 1, at that length.

    Stored zeros on the diagonal make every core distance 0. The way back is one step of float64 longer, within what
    scikit-learn takes as symmetric, so that every edge of the tree points forward, as for a full matrix.
    """
    rows = len(lengths) + 1
    forward = np.append(np.maximum(lengths, LEAST), 0)
    back = np.append(0, np.nextafter(forward[:-1], 2))
    columns = np.arange(rows, dtype=np.int32)[:, None] + np.array([-1, 0, 1], dtype=np.int32)
    distances = np.stack([back, np.zeros(rows), forward], axis=1)
    starts = np.clip(3 * np.arange(rows + 1, dtype=np.int32) - 1, 0, 3 * rows - 2)
    return csr_array((distances.ravel()[1:-1].copy(), columns.ravel()[1:-1], starts), shape=(rows, rows))
