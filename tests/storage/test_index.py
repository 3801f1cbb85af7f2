"""The index against a dict: entered, taken out, and grown in place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.storage import index as ix
from rockbed.types import I64
from tests.splitmix import mix64

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60, unique=True)


def _index(size: int, room: int) -> tuple[I64, I64]:
    slots = np.zeros((room, 2), np.int64)
    return slots, slots[:size]


def _rows(index: I64, keys: list[int]) -> list[int]:
    asked = np.array(keys, np.int64)
    rows = np.empty(asked.size, np.int64)
    flags = np.zeros(4096, np.uint8)
    missing = ix.find(index, asked, flags, 0, rows)
    assert missing == (rows < 0).sum()
    found: list[int] = rows.tolist()
    return found


def _enter(index: I64, keys: list[int], first_row: int = 0) -> None:
    ix.insert_rows(index, np.array(keys, np.int64), np.arange(first_row, first_row + len(keys)))


@given(keys=KEYS, spare=st.integers(1, 4), more=st.integers(1, 90), gone=st.integers(0, 60))
def test_an_index_that_grew_finds_what_it_held_and_nothing_else(
    keys: list[int], spare: int, more: int, gone: int
) -> None:
    size = len(keys) + spare  # nearly full, so that runs are long and pass the end
    slots, index = _index(size, size + more)
    _enter(index, keys)
    for key in keys[:gone]:
        ix.remove_one(index, key)
    left, rows = keys[gone:], list(range(gone, len(keys)))
    ix.expand(slots, size, size + more)
    assert _rows(slots, left) == rows if left else True
    assert (slots[:, 1] != 0).sum() == len(left)
    assert _rows(slots, [*keys[:gone], 17]) == [-1] * (len(keys[:gone]) + 1) or 17 in left
    for key in left:  # no gap in any run: each can be taken out, and the others are still found
        ix.remove_one(slots, key)
    assert not slots[:, 1].any()


def _keys_with_home(first: int, last: int, size: int, count: int) -> list[int]:
    """Keys whose homes in an index of `size` lie in first..last."""
    found: list[int] = []
    key = 0
    while len(found) < count:
        if first <= (mix64(key) >> 32) * size >> 32 <= last:
            found.append(key)
        key += 1
    return found


@pytest.mark.parametrize("new", [65, 80, 128, 1000])
@pytest.mark.parametrize("count", [1, 5, 40, 63])
def test_runs_that_pass_the_end_of_the_index_grow_with_it(count: int, new: int) -> None:
    keys = _keys_with_home(62, 63, 64, count)
    slots, index = _index(64, new)
    _enter(index, keys)
    ix.expand(slots, 64, new)
    assert _rows(slots, keys) == list(range(count))
    assert (slots[:, 1] != 0).sum() == count


def test_an_index_grows_again_and_again() -> None:
    keys = np.random.default_rng(3).permutation(30_000).tolist()
    slots, _ = _index(16, 90_000)
    size = 16
    for start in range(0, len(keys), 1_000):
        while size < 1.5 * (start + 1_000):
            grown = int(1.4 * size) + 1
            ix.expand(slots, size, grown)
            size = grown
        _enter(slots[:size], keys[start : start + 1_000], start)
    flags = np.zeros(30_000, np.uint8)
    rows = np.empty(30_000, np.int64)
    assert ix.find(slots[:size], np.array(keys), flags, 0, rows) == 0
    np.testing.assert_array_equal(rows, np.arange(30_000))
    assert not slots[size:].any()


_EDGES = [edge + more for edge in (ix._AHEAD, ix._BLOCK, ix._BLOCK + ix._AHEAD) for more in (-1, 0, 1)]


@pytest.mark.parametrize("n", [0, 1, *_EDGES, 9_000])
def test_what_is_found_is_marked_and_nothing_else(n: int) -> None:
    random = np.random.default_rng(n)
    _, index = _index(400, 400)
    known, before = np.arange(1_000, 1_300), random.integers(0, 256, 300).astype(np.uint8)
    ix.insert_rows(index, known, np.arange(300))
    keys = random.integers(900, 1_400, n)  # many twice, some that are not there
    flags, rows = before.copy(), np.empty(n, np.int64)
    missing = ix.find(index, keys, flags, 6, rows)
    wanted = np.where((keys >= 1_000) & (keys < 1_300), keys - 1_000, -1)
    np.testing.assert_array_equal(rows, wanted)
    assert missing == (wanted < 0).sum()
    marked = before.copy()
    marked[wanted[wanted >= 0]] |= 6
    np.testing.assert_array_equal(flags, marked)
