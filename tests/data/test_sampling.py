from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uda_reid.data.sampling import endless, identity_balanced, shuffled
from uda_reid.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_lists(batches: list[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


# ---- shuffled ------------------------------------------------------------


@given(count=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_shuffled_gives_full_batches_and_every_row(count: int, batch: int, seed: int) -> None:
    rows = torch.arange(count) * 3 + 5
    batches = list(shuffled(rows, batch, generator(seed)))
    assert len(batches) == -(-count // batch)
    assert {len(part) for part in batches} == {min(batch, count)}
    stream = torch.cat(batches).tolist()
    assert sorted(stream[:count]) == rows.tolist()
    assert stream[count:] == stream[: len(stream) - count]  # filled up from the beginning
    assert all(part.dtype == torch.int64 for part in batches)


def test_shuffled_depends_on_the_generator_alone() -> None:
    rows = torch.arange(50)
    state = torch.get_rng_state()
    first = as_lists(list(shuffled(rows, 8, generator(1))))
    assert first == as_lists(list(shuffled(rows, 8, generator(1))))
    assert first != as_lists(list(shuffled(rows, 8, generator(2))))
    shared = generator(1)
    assert as_lists(list(shuffled(rows, 8, shared))) != as_lists(list(shuffled(rows, 8, shared)))
    assert torch.equal(state, torch.get_rng_state())
    assert rows.tolist() == list(range(50))


def test_shuffled_refuses_no_rows_and_no_batch() -> None:
    with pytest.raises(DataError, match="there are no rows to make batches of"):
        shuffled(torch.empty(0, dtype=torch.int64), 4, generator())
    with pytest.raises(DataError, match="a batch of 0 rows is too small"):
        shuffled(torch.arange(3), 0, generator())


# ---- endless -------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_endless_strings_permutations_together(count: int, batch: int) -> None:
    rows = torch.arange(count) + 7
    batches = list(islice(endless(rows, batch, generator()), 12 * count))
    assert {len(part) for part in batches} == {batch}
    stream = torch.cat(batches)
    passes = [part.tolist() for part in torch.split(stream, count) if len(part) == count]
    assert len(passes) >= 12
    assert all(sorted(part) == rows.tolist() for part in passes)
    assert count < 3 or len({tuple(part) for part in passes}) > 3  # shuffled anew


def test_endless_depends_on_the_generator_alone() -> None:
    rows = torch.arange(20)
    first, second, other = (as_lists(list(islice(endless(rows, 6, generator(s)), 9))) for s in (1, 1, 2))
    assert first == second
    assert first != other


def test_endless_refuses_no_rows_at_once() -> None:
    with pytest.raises(DataError, match="there are no rows"):
        endless(torch.empty(0, dtype=torch.int64), 4, generator())


# ---- identity_balanced ---------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    identities=st.integers(2, 6),
    instances=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_identity_balanced_batches_hold_p_identities_with_k_rows_each(
    counts: list[int], identities: int, instances: int, seed: int
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)) * 2, torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(seed))]
    batches = list(identity_balanced(labels, identities=identities, instances=instances, generator=generator(seed)))
    expected = min(identities, len(counts))
    assert len(batches) == max(round(len(labels) / (expected * instances)), -(-len(counts) // expected))
    for batch in batches:
        assert Counter(labels[batch].tolist()) == dict.fromkeys(set(labels[batch].tolist()), instances)
        assert len(batch) == expected * instances
        for hand in torch.split(batch, instances):
            assert len(set(labels[hand].tolist())) == 1  # side by side
            have = counts[int(labels[hand[0]]) // 2]
            repeats = Counter(hand.tolist())
            assert len(repeats) == min(have, instances)  # no row twice while there are enough
            assert max(repeats.values()) <= -(-instances // have) + (have < instances)
    assert set(labels[torch.cat(batches)].tolist()) == set(labels.tolist())


def test_identity_balanced_takes_other_rows_of_an_identity_before_it_repeats() -> None:
    labels = torch.tensor([0] * 12 + [1] * 12)
    batches = list(identity_balanced(labels, identities=2, instances=4, generator=generator()))
    assert len(batches) == 3
    assert sorted(torch.cat(batches).tolist()) == list(range(24))


def test_identity_balanced_uses_the_given_rows_and_leaves_negative_labels_out() -> None:
    labels = torch.tensor([5, 5, -1, 8, 8, 9, 9, -1, 5])
    everything = torch.cat(list(identity_balanced(labels, identities=3, instances=3, generator=generator())))
    assert set(everything.tolist()) == {0, 1, 3, 4, 5, 6, 8}
    rows = torch.tensor([8, 2, 3, 0])
    some = torch.cat(list(identity_balanced(labels, identities=3, instances=2, generator=generator(), rows=rows)))
    assert set(some.tolist()) == {0, 3, 8}


def test_identity_balanced_depends_on_the_generator_alone() -> None:
    labels = torch.arange(40) // 4
    first, second, other = (
        as_lists(list(identity_balanced(labels, identities=4, instances=2, generator=generator(seed))))
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_identity_balanced_mixes_the_identities() -> None:
    labels = torch.arange(60) // 2
    batches = list(identity_balanced(labels, identities=3, instances=2, generator=generator()))
    assert len({frozenset(labels[batch].tolist()) for batch in batches}) == 10
    assert any(max(labels[batch].tolist()) - min(labels[batch].tolist()) > 5 for batch in batches)


@pytest.mark.parametrize("labels", [[4, 4, 4], [-1, -1], []])
def test_identity_balanced_refuses_fewer_than_two_identities(labels: list[int]) -> None:
    with pytest.raises(DataError, match="rows of at least 2 identities, and there is"):
        identity_balanced(torch.tensor(labels, dtype=torch.int64), identities=4, instances=2, generator=generator())


@pytest.mark.parametrize(("identities", "instances"), [(1, 4), (4, 0)])
def test_identity_balanced_refuses_too_small_batches(identities: int, instances: int) -> None:
    with pytest.raises(DataError, match=f"a batch of {identities} identities x {instances} rows is too small"):
        identity_balanced(torch.arange(8), identities=identities, instances=instances, generator=generator())


def test_identity_balanced_goes_on_for_as_many_batches_as_are_asked_for() -> None:
    labels = torch.arange(12) // 3
    epoch = as_lists(list(identity_balanced(labels, identities=2, instances=3, generator=generator())))
    many = as_lists(list(identity_balanced(labels, identities=2, instances=3, generator=generator(), batches=5)))
    assert len(epoch) == 2 and len(many) == 5
    assert many[:2] == epoch
    for start in (0, 2):  # each epoch shows every row once
        assert sorted(row for batch in many[start : start + 2] for row in batch) == list(range(12))
