"""Sparse distances as the tests of graphs need them: drawn with all kinds of ties, or written down pair by pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy.sparse import csr_array

Matrix = npt.NDArray[np.float32]

# As float32, 0.6 and 0.9 are not the Python floats of that name, one above and one below.
LEVELS = (0.0, 0.25, 0.6, 0.75, 0.9)


def graph_of(rows: int, pairs: Mapping[tuple[int, int], float]) -> csr_array:
    """A graph of these pairs, both ways, and of nothing else."""
    both = {**pairs, **{(other, one): distance for (one, other), distance in pairs.items()}}
    places = sorted(both)
    counts = np.bincount([row for row, _ in places], minlength=rows) if places else np.zeros(rows)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    columns = np.array([column for _, column in places], dtype=np.int32)
    return csr_array((np.array([both[place] for place in places], dtype=np.float32), columns, starts), (rows, rows))


def full(graph: csr_array) -> Matrix:
    """The full matrix that a graph stands for."""
    matrix = np.ones(graph.shape, dtype=np.float32)
    for row in range(len(matrix)):
        entries = slice(graph.indptr[row], graph.indptr[row + 1])
        matrix[row, graph.indices[entries]] = graph.data[entries]
        matrix[row, row] = 0
    return matrix


def random_graph(rows: int, *, density: float, tied: bool = False, seed: int = 0) -> csr_array:
    """A graph of about this share of all pairs; some rows are also stored beside themselves, at any distance."""
    numbers = np.random.default_rng(seed)
    pairs = {
        (one, other): float(numbers.choice(LEVELS) if tied else 0.999 * numbers.random())
        for one in range(rows)
        for other in range(one, rows)
        if numbers.random() < density
    }
    return graph_of(rows, pairs)


GRAPHS = st.builds(
    random_graph,
    st.integers(1, 30),
    density=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]),
    tied=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
