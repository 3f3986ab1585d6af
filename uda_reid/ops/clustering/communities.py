"""Infomap on a sparse matrix of distances: groups of rows that a walker from row to near row seldom leaves."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from uda_reid.errors import RecipeError
from uda_reid.ops.clustering.graph import check_eps, check_graph, close_pairs, number_by_first_row


def infomap_graph(graph: csr_array, *, eps: float, seed: int, min_cluster_size: int = 2) -> Tensor:
    """Cluster a graph by Infomap: its pairs within `eps` are links, of weight 1 less their distance.

    Two levels, undirected, one trial; equal seeds give equal labels.

    Args:
        graph: (N, N) float32 as for `check_graph`.
        eps: the largest distance of a link, in [0, 1); as for `dbscan_graph`.
        seed: of the order in which Infomap tries to move rows, at least 1.
        min_cluster_size: at least 2; smaller modules are noise, and rows without a link are.

    Returns:
        (N,) int64 on the CPU: clusters 0..C-1 in the order of their lowest rows, -1 for noise.

    Raises:
        DataError: `graph` is no such graph.
        RecipeError: an option is out of range, or infomap is not installed.

    Source:
        Rosvall and Bergstrom 2008; infomap_cluster.py of Dai et al. 2022, "Cluster Contrast for Unsupervised Person
        Re-identification", github.com/alibaba/cluster-contrast-reid: there on the directed links to the 15 nearest of
        every row by cosine distances, eps 0.5, and modules of up to 4 rows are noise.
    """
    check_graph(graph)
    check_eps(eps)
    if seed < 1 or min_cluster_size < 2:
        given = f"seed {seed} and min_cluster_size {min_cluster_size}"
        raise RecipeError(f"Infomap with {given} cannot be; use at least 1 and 2")
    machine = _infomap().Infomap(two_level=True, num_trials=1, seed=seed, silent=True)
    labels = np.full(graph.shape[0], -1, dtype=np.int64)
    links = 0
    for one, other, distances in close_pairs(graph, eps):
        machine.add_links(np.stack([one, other, 1 - distances.astype(np.float64)], axis=1))
        links += len(one)
    if not links:  # Infomap refuses a network without any
        return torch.from_numpy(labels)
    machine.run()
    with TemporaryDirectory() as folder:
        # Through a file: beside faiss in one process, infomap's own way of handing modules over ends in a crash, since
        # both wrap their iterators by SWIG under one name.
        file = Path(folder) / "modules.clu"
        machine.write_clu(str(file))
        rows, modules = np.loadtxt(file, dtype=np.int64, usecols=(0, 1), ndmin=2).T
    labels[rows] = modules
    linked = labels >= 0
    small = np.bincount(labels[linked]) < min_cluster_size
    labels[linked & small[labels]] = -1
    return number_by_first_row(labels)


def _infomap() -> Any:
    try:
        import infomap
    except ImportError as error:
        raise RecipeError("Infomap is not installed; pip install infomap, or cluster by DBSCAN or HDBSCAN") from error
    return infomap
