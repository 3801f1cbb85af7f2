"""The index of the hot tier: open addressing with linear probing, key -> row, as kernels on an int64[size, 2] array.

An entry is (key, row + 1), (anything, 0) is empty; key and row share a cache line, so a hit costs one miss of
the cache. The home of a key is `high 32 bits of mix64(key) * size >> 32`, which allows any size (not only powers of
two), so memory is what the row count needs. Deleting shifts later entries back: no tombstones, probes stay short.
"""

from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel, mix64, prefetch
from rockbed.types import I64, U8, Bool

ENTRY_BYTES = 16
_AHEAD = 48  # keys between asking for a cache line and using it
_BLOCK = 4096  # keys whose homes are computed at once: what is kept of them stays in the cache


@inlined
def home(key: int, size: int) -> Any:
    """Where the search for a key begins: 0..size-1."""
    return np.int64(((mix64(key) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@inlined
def find_one(index: I64, key: int) -> Any:
    """The row of a key, or -1."""
    return find_from(index, key, home(key, index.shape[0]))


@inlined
def find_from(index: I64, key: int, at: int) -> Any:
    """The same, where the home of the key is known."""
    size = index.shape[0]
    while index[at, 0] != key and index[at, 1] != 0:
        at += 1
        if at == size:
            at = 0
    return index[at, 1] - 1


@inlined
def prefetch_entries(index: I64, at: int) -> None:
    """Ask for the cache lines of entry number `at` and of the one behind it."""
    prefetch(index, at * ENTRY_BYTES)
    prefetch(index, (at + 1) * ENTRY_BYTES)


@inlined
def _find_near(index: I64, key: int, start: int) -> Any:
    """As `find_from`, for keys that are there: four of five are one of the first two entries, which are looked at
    without a branch that the processor would have to guess."""
    at = np.uint64(start)
    behind = at + np.uint64(1)
    behind = behind if behind < np.uint64(index.shape[0]) else np.uint64(0)
    here, there = index[at, 0] == key, index[behind, 0] == key
    row = index[at if here else behind, 1] - 1
    return row if (here | there) & (row >= 0) else find_from(index, key, start)


@kernel
def find(index: I64, keys: I64, flags: U8, touch: int, rows: I64) -> int:
    """rows[i] = row of keys[i] or -1, and flags[row] |= touch. keys, rows: int64[n]. -> how many were not found."""
    missing = 0
    for start in range(0, keys.shape[0], _BLOCK):
        wanted, found = keys[start : start + _BLOCK], rows[start : start + _BLOCK]
        n = wanted.shape[0]
        for i in range(n):  # in a loop of its own, of which the compiler makes vector instructions
            found[i] = home(wanted[i], index.shape[0])
        for i in range(min(_AHEAD, n)):
            prefetch_entries(index, found[i])
        for i in range(n):
            if i + _AHEAD < n:
                prefetch_entries(index, found[i + _AHEAD])
            found[i] = _find_near(index, wanted[i], found[i])
            missing += found[i] < 0
        if touch:
            _touch_all(flags, found, touch)
    return missing


@inlined
def _touch_all(flags: U8, rows: I64, touch: int) -> None:
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n and rows[i + _AHEAD] >= 0:
            prefetch(flags, rows[i + _AHEAD])
        row = rows[i]
        if row >= 0 and flags[row] & touch != touch:  # written only where it changes: other cores read the line, too
            flags[row] |= touch


@inlined
def insert_one(index: I64, key: int, row: int) -> None:
    """Enter a key that is not there."""
    size = index.shape[0]
    at = home(key, size)
    while index[at, 1] != 0:
        at += 1
        if at == size:
            at = 0
    index[at, 0] = key
    index[at, 1] = row + 1


@inlined
def remove_one(index: I64, key: int) -> None:
    """Take out a key that is there, closing the gap (Knuth, TAOCP 3, 6.4, algorithm R)."""
    size = index.shape[0]
    gap = home(key, size)
    while index[gap, 0] != key or index[gap, 1] == 0:
        gap += 1
        if gap == size:
            gap = 0
    at = gap
    while True:
        at += 1
        if at == size:
            at = 0
        if index[at, 1] == 0:
            break
        start = home(index[at, 0], size)
        # the entry may move into the gap unless its home lies cyclically in (gap, at]
        stays = gap < start <= at if gap <= at else (start > gap or start <= at)
        if not stays:
            index[gap, 0] = index[at, 0]
            index[gap, 1] = index[at, 1]
            gap = at
    index[gap, 1] = 0


@kernel
def insert_rows(index: I64, keys: I64, rows: I64) -> None:
    """Enter distinct keys that are not there. keys, rows: int64[n]; the caller keeps size > entries."""
    n = keys.shape[0]
    size = index.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch_entries(index, home(keys[i + _AHEAD], size))
        insert_one(index, keys[i], rows[i])


@kernel
def mark_keys(marks: I64, keys: I64, mark: int) -> None:
    """Put a mark where the hash of each key leads. marks: int64[size]; keys: int64[n]."""
    for i in range(keys.shape[0]):
        marks[home(keys[i], marks.shape[0])] = mark


@kernel
def marked_since(marks: I64, keys: I64, mark: int, found: Bool) -> None:
    """found[i] = whether there is a greater mark than this one where the hash of keys[i] leads."""
    for i in range(keys.shape[0]):
        found[i] = marks[home(keys[i], marks.shape[0])] > mark


@kernel
def expand(slots: I64, old: int, new: int) -> None:
    """Make an index of `old` entries, slots[:old], one of `new`, slots[:new], in place. slots[old:new] are empty.

    A home moves up only, and in the order of the homes. So runs of entries that follow each other are taken out and
    entered again from the last to the first: what was not moved yet lies below all that is entered. Memory is read and
    written in order, and no second array is needed.
    """
    index = slots[:new]
    run = np.empty((64, 2), np.int64)
    last = old - 1
    while last >= 0:
        if slots[last, 1] == 0:
            last -= 1
            continue
        first = last
        while first > 0 and slots[first - 1, 1] != 0:
            first -= 1
        n = last - first + 1
        if n > run.shape[0]:
            run = np.empty((2 * n, 2), np.int64)
        run[:n] = slots[first : last + 1]
        slots[first : last + 1] = 0
        # None passes the new end, but for those of the first run that passed the old one: as many as found a place
        # between a home and the old end find one in more room.
        for i in range(n):
            insert_one(index, run[i, 0], run[i, 1] - 1)
        last = first - 1


@kernel
def insert_absent(index: I64, keys: I64, rows: I64, free: I64, free_count: int, fresh: I64) -> int:
    """Give keys with rows[i] < 0 a row from the end of free[:free_count]; a key that repeats gets one.

    rows is filled; fresh[j] = position of the j-th key that took a row. Returns how many did. The caller has seen to
    it that there are free rows and room in the index for all.
    """
    n = keys.shape[0]
    size = index.shape[0]
    taken = 0
    for i in range(n):
        if i + _AHEAD < n and rows[i + _AHEAD] < 0:
            prefetch_entries(index, home(keys[i + _AHEAD], size))
        if rows[i] >= 0:
            continue
        row = find_one(index, keys[i])
        if row < 0:
            row = free[free_count - 1 - taken]
            insert_one(index, keys[i], row)
            fresh[taken] = i
            taken += 1
        rows[i] = row
    return taken
