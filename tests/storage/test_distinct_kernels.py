"""The numbers of distinct rows, against a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage.distinct_kernels import distinct, slots_for
from rockbed.types import I32, I64


def numbered(rows: I64) -> tuple[list[int], list[int], list[int]]:
    """The distinct rows, where each appears first, and the number of each position."""
    found, first = np.empty(rows.size, np.int64), np.empty(rows.size, np.int64)
    inverse: I32 = np.empty(rows.size, np.int32)
    slots: I32 = np.full(slots_for(rows.size), -9, np.int32)  # what they hold is of no account
    count = distinct(rows, slots, found, first, inverse)
    return found[:count].tolist(), first[:count].tolist(), inverse.tolist()


def expected(rows: I64) -> tuple[list[int], list[int], list[int]]:
    first: dict[int, int] = {}
    for i, row in enumerate(rows.tolist()):
        if row >= 0:
            first.setdefault(row, i)
    numbers = {row: number for number, row in enumerate(first)}
    return list(first), list(first.values()), [numbers.get(row, -1) for row in rows.tolist()]


@given(st.lists(st.integers(-1, 2**40), max_size=70))
def test_rows_are_numbered_in_order_of_appearance(rows: list[int]) -> None:
    array = np.array(rows + rows[::-2], np.int64)
    assert numbered(array) == expected(array)


@pytest.mark.parametrize("step", [1, 64, 4096, 2**20 + 1])
def test_rows_that_lie_evenly_find_their_slots(step: int) -> None:
    rows = np.random.default_rng(step).permutation(np.repeat(np.arange(3000) * step, 2))
    assert numbered(rows) == expected(rows)


def test_there_are_twice_as_many_slots_as_positions_at_the_least() -> None:
    assert [slots_for(n) for n in (0, 1, 2, 3, 4, 5, 65_536, 65_537)] == [2, 2, 4, 8, 8, 16, 131_072, 262_144]
