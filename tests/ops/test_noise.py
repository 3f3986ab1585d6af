from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from uda_reid.ops.noise import keys, keys_of, splitmix, uniform

MASK = 2**64 - 1


def plainly(state: int, place: int) -> int:
    """The same in Python's own numbers, after the C of Vigna's splitmix64.c."""
    state = (state + (place + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_splitmix_gives_the_published_numbers() -> None:
    found = splitmix(np.array([1234567], np.uint64), np.arange(5)).tolist()
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert int(splitmix(np.array([0], np.uint64), np.array([0]))[0]) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("state", [0, 1, 2**63 - 1, 2**63, MASK])
def test_splitmix_is_that_of_pythons_own_numbers(state: int) -> None:
    places = [0, 1, 2, 1000, 2**40]
    found = splitmix(np.array([state], np.uint64), np.array(places)).tolist()
    assert found == [plainly(state, place) for place in places]


def test_numbers_are_the_upper_bits_of_words_of_seed_row_and_time() -> None:
    rows, times = [0, 7, 7, 123456], [0, 0, 3, 1]
    found = uniform(keys(2**63 - 1, torch.tensor(rows), torch.tensor(times)), 4)
    assert found.dtype == torch.float32
    expected = [
        [(plainly(plainly(plainly(2**63 - 1, row), time), place) >> 40) / 2**24 for place in range(4)]
        for row, time in zip(rows, times, strict=True)
    ]
    assert found.tolist() == expected
    assert torch.equal(keys(5, torch.tensor(rows)), keys(5, torch.tensor(rows), torch.zeros(4, dtype=torch.int64)))


def test_a_larger_count_begins_with_the_numbers_of_a_smaller_one() -> None:
    some = keys(1, torch.arange(6))
    assert torch.equal(uniform(some, 9)[:, :4], uniform(some, 4))
    assert uniform(some[:0], 4).shape == (0, 4)


def test_keys_of_a_plan_count_how_often_a_row_has_come() -> None:
    plan = [torch.tensor([3, 5, 3]), torch.tensor([5]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 9])]
    found = keys_of(4, plan)
    assert [len(part) for part in found] == [3, 1, 0, 2]
    rows, times = torch.cat(plan), torch.tensor([0, 0, 1, 1, 2, 0])
    assert torch.equal(torch.cat(found), keys(4, rows, times))
    assert torch.equal(torch.cat(found), torch.cat(keys_of(4, [rows])))  # however it is dealt
    assert keys_of(4, []) == []


def test_keys_of_other_seeds_rows_and_times_are_others() -> None:
    rows, times = torch.arange(1000).repeat(10), torch.arange(10).repeat_interleave(1000)
    everything = torch.cat([keys(seed, rows, times) for seed in range(20)])
    assert len(set(everything.tolist())) == len(everything)


@pytest.mark.parametrize("which", ["rows", "times", "seeds"])
def test_numbers_are_uniform_and_independent_of_their_neighbours(which: str) -> None:
    """Neighbouring rows, times and seeds are what is used: each looks like a generator of its own."""
    many = torch.arange(20_000)
    some = {
        "rows": lambda: keys(1, many),
        "times": lambda: keys(1, torch.zeros_like(many), many),
        "seeds": lambda: torch.cat([keys(seed, torch.zeros(1, dtype=torch.int64)) for seed in range(20_000)]),
    }[which]()
    found = uniform(some, 29).double()
    assert found.min() >= 0 and found.max() < 1
    for column in found.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    ends = torch.cat([found[:-1], found[1:]], 1)  # with those of the next row, time or seed
    off = torch.corrcoef(ends.T) - torch.eye(58)
    assert float(off.abs().max()) < 6 / 20_000**0.5
