"""Which rows make up a batch: shuffled epochs, endless streams, and batches of several rows per identity."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice

import torch
from torch import Tensor

from uda_reid.errors import DataError


def shuffled(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield one epoch of batches in random order.

    The last batch is filled up from the beginning of the permutation, so that no batch is smaller than the
    others (a batch of one row cannot pass batch norm).

    Args:
        rows: (n,) int64.
        batch: rows per batch, at least 1.
        generator: draws the permutation, when this function is called.

    Returns:
        ceil(n / batch) tensors of min(batch, n) rows each, int64; every row occurs.

    Raises:
        DataError: there are no rows, or `batch` is below 1.

    >>> [len(part) for part in shuffled(torch.arange(10), 4, torch.Generator())]
    [4, 4, 4]
    """
    _check(rows, batch)
    order = rows[torch.randperm(len(rows), generator=generator)]
    size = min(batch, len(rows))
    short = -len(rows) % size
    return iter(torch.split(torch.cat([order, order[:short]]), size))


def endless(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches for ever: the stream of rows is one random permutation after the other.

    A batch may reach from one permutation into the next, so every batch is full; with fewer rows than `batch`
    it holds rows more than once.

    Args:
        rows: (n,) int64.
        batch: rows per batch, at least 1.
        generator: draws a permutation whenever the last one is used up.

    Returns:
        Tensors of exactly `batch` rows, int64.

    Raises:
        DataError: there are no rows, or `batch` is below 1.
    """
    _check(rows, batch)
    return _stream(rows, batch, generator)


def _stream(rows: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    left = rows[:0]
    while True:
        while len(left) < batch:
            left = torch.cat([left, rows[torch.randperm(len(rows), generator=generator)]])
        yield left[:batch]
        left = left[batch:]


def identity_balanced(
    labels: Tensor,
    *,
    identities: int,
    instances: int,
    generator: torch.Generator,
    rows: Tensor | None = None,
    batches: int = 0,
) -> Iterator[Tensor]:
    """Yield batches with several rows of each of several identities, one epoch of them or a given number.

    Identities, and the rows within an identity, are dealt like cards: none comes again before all others have
    come, and none twice in a batch while there are enough. An identity with fewer rows than `instances`
    repeats them evenly. With n rows of I identities, P = min(identities, I) and K = instances, an epoch has
    max(round(n / (P * K)), ceil(I / P)) batches: about n rows, and every identity at least once.

    Args:
        labels: (N,) int64 identity of every row of the data set; rows with a negative label are left out.
        identities: distinct identities per batch (P), at least 2; with fewer in the data, all of them.
        instances: rows per identity in a batch (K), at least 1.
        generator: draws everything.
        rows: (n,) int64 the rows to use; default all.
        batches: how many batches, epochs following one another; 0 for one epoch.

    Returns:
        Tensors of P * K rows, int64, the rows of one identity side by side.

    Raises:
        DataError: there are fewer than 2 identities, or fewer than 2 x 1 rows per batch are asked for.

    Source:
        The P x K batches of Hermans et al. 2017, section 2.
    """
    if identities < 2 or instances < 1:
        raise DataError(f"a batch of {identities} identities x {instances} rows is too small; use at least 2 x 1")
    rows = torch.arange(len(labels)) if rows is None else rows
    rows = rows[labels[rows] >= 0]
    known = torch.unique(labels[rows]).tolist()
    if len(known) < 2:
        raise DataError(f"batches need rows of at least 2 identities, and there is {len(known)}; use more images")
    epochs = (_dealt(rows, labels[rows], min(identities, len(known)), instances, generator) for _ in count())
    return islice(chain.from_iterable(epochs), batches) if batches else next(epochs)


def _dealt(
    rows: Tensor, labels: Tensor, identities: int, instances: int, generator: torch.Generator
) -> Iterator[Tensor]:
    order = labels.argsort(stable=True)
    counts = torch.unique(labels, return_counts=True)[1].tolist()
    decks = [_Deck(part.tolist(), generator) for part in torch.split(rows[order], counts)]
    people = _Deck(list(range(len(decks))), generator)
    batches = max(round(len(rows) / (identities * instances)), -(-len(decks) // identities))
    for _ in range(batches):
        yield torch.tensor([row for person in people.deal(identities) for row in decks[person].deal(instances)])


class _Deck:
    """Cards dealt in random order, reshuffled when used up; a hand repeats one only if there are too few."""

    def __init__(self, cards: list[int], generator: torch.Generator) -> None:
        self._cards = cards
        self._generator = generator
        self._left: list[int] = []

    def deal(self, count: int) -> list[int]:
        hand, self._left = self._left[:count], self._left[count:]
        while len(hand) < count:
            held = set(hand)
            order = torch.randperm(len(self._cards), generator=self._generator).tolist()
            # Cards already in the hand go to the bottom of the new deck.
            fresh = sorted((self._cards[place] for place in order), key=held.__contains__)
            wanted = count - len(hand)
            hand, self._left = hand + fresh[:wanted], fresh[wanted:]
        return hand


def _check(rows: Tensor, batch: int) -> None:
    if len(rows) == 0:
        raise DataError("there are no rows to make batches of; the training set is empty")
    if batch < 1:
        raise DataError(f"a batch of {batch} rows is too small; use at least 1")
