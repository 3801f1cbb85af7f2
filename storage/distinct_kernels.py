"""The distinct rows of a batch, found through a hash table of the batch's own size: that stays in a core's cache, where
a mark for each row of a group would not."""

from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel
from rockbed.types import I32, I64

_SPREAD: Any = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: Knuth's multiplicative hashing


def slots_for(n: int) -> int:
    """How many slots n positions want: a power of two, twice as many at the least."""
    return 1 << max(1, (2 * n - 1).bit_length())


@inlined
def cleared(slots: I32) -> Any:
    """Empty the slots. Returns by how many bits a product is shifted to be the number of a slot."""
    for i in range(slots.shape[0]):
        slots[i] = 0
    size, shift = slots.shape[0], np.uint64(64)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    return shift


@inlined
def find_slot(slots: I32, shift: Any, rows: I64, row: int) -> Any:
    """The slot with the number of a row, counted from 1; with 0 where it has none yet. rows: by number, from 0."""
    last = np.uint64(slots.shape[0] - 1)
    at = (np.uint64(row) * _SPREAD) >> shift
    while slots[at] != 0 and rows[np.uint64(slots[at] - 1)] != row:
        at = (at + np.uint64(1)) & last
    return at


@kernel
def distinct(given: I64, slots: I32, rows: I64, first: I64, inverse: I32 | I64) -> int:
    """Number the distinct rows in order of appearance.

    given: int64[n]. slots: int32[slots_for(n)], anything. rows[u] = the u-th distinct row; first[u] = the position
    where it appears first; inverse[i] = the number of position i, -1 where given[i] < 0. Returns how many there are.
    """
    shift = cleared(slots)
    count = 0
    for i in range(given.shape[0]):
        row = given[i]
        if row < 0:
            inverse[i] = -1
            continue
        at = find_slot(slots, shift, rows, row)
        if slots[at] == 0:
            rows[count] = row
            first[count] = i
            count += 1
            slots[at] = count
        inverse[i] = slots[at] - 1
    return count
