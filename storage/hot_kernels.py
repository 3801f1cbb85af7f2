"""Loops over rows of the hot tier. Arrays are those of `HotTable`; see there for what each holds."""

from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel, prefetch
from rockbed.storage.index import insert_one, remove_one
from rockbed.storage.record import pack_words, slot_of
from rockbed.types import F32, I32, I64, U8

USED = 1  # the row holds a key
TOUCHED = 2  # found since the clock's hand last passed, and whatever is DIRTY or WRITING
DIRTY = 4  # newer than what rows/ holds
WRITING = 8  # copied for a write-back that has not reached rows/ yet
FRESH = 16  # no push since its initial value
PINNED = 32  # part of the batch for whose rows room is made: not to be evicted

_AHEAD = 64  # rows: what is asked for takes as long as 50 of them to come (`python -m benchmarks.kernels`)
_AHEAD_LEAST = 16
_FLOATS_AHEAD = 1280  # of rows: a core has room for so many lines that are on their way, and its first cache for them
_HEADER_BYTES = 32


@inlined
def prefetch_floats(array: F32, first: int, n: int) -> None:
    """Ask for the cache lines of n values of a C-contiguous array, the first of which is number `first`."""
    for offset in range(4 * first, 4 * (first + n), 64):
        prefetch(array, offset)
    prefetch(array, 4 * (first + n) - 1)  # rows are not aligned to lines, so one more may hold the end


@inlined
def prefetch_weights(data: F32, row: int, dim: int) -> None:
    """Ask for the cache lines of data[row, :dim]."""
    prefetch_floats(data, row * data.shape[1], dim)


@inlined
def rows_ahead(dim: int) -> Any:
    """How many rows of `dim` values are asked for before their turn."""
    return max(_AHEAD_LEAST, min(_AHEAD, _FLOATS_AHEAD // max(dim, 1)))


@kernel
def gather(data: F32, rows: I64, dim: int, out: F32) -> None:
    """out[i] = data[rows[i], :dim], or zeros where rows[i] < 0. out: float32[n, dim]."""
    n = rows.shape[0]
    ahead = rows_ahead(dim)
    for i in range(n):
        if i + ahead < n and rows[i + ahead] >= 0:
            prefetch_weights(data, rows[i + ahead], dim)
        r = rows[i]
        if r < 0:
            for j in range(dim):
                out[i, j] = 0
        else:
            for j in range(dim):
                out[i, j] = data[r, j]


@kernel
def expired(header: I64, rows: I64, oldest_ms: int, out: I64) -> int:
    """Write the distinct positions i whose row was last written at or before `oldest_ms`. Returns how many."""
    n = rows.shape[0]
    found = 0
    for i in range(n):
        if i + _AHEAD < n and rows[i + _AHEAD] >= 0:
            prefetch(header, rows[i + _AHEAD] * _HEADER_BYTES)
        if rows[i] >= 0 and header[rows[i], 1] <= oldest_ms:
            out[found] = i
            found += 1
    return found


@kernel
def touch_time(header: I64, flags: U8, rows: I64, now_ms: int) -> None:
    """Set the update time of rows (those >= 0): for groups whose lookups refresh the TTL."""
    for i in range(rows.shape[0]):
        r = rows[i]
        if r >= 0 and header[r, 1] < now_ms:
            header[r, 1] = now_ms
            flags[r] |= DIRTY


@kernel
def stamp(header: I64, flags: U8, rows: I64, now_ms: int, lsn: int, step: I64) -> None:
    """Mark distinct rows as pushed at `now_ms` by entry `lsn`; step[i] = the row's update count after it."""
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(header, rows[i + _AHEAD] * _HEADER_BYTES)
            prefetch(flags, rows[i + _AHEAD])
        r = rows[i]
        header[r, 1] = now_ms
        header[r, 2] += 1
        header[r, 3] = lsn
        step[i] = header[r, 2]
        flags[r] = (flags[r] | DIRTY | TOUCHED) & ~np.uint8(FRESH)


@kernel
def start_rows(
    header: I64, flags: U8, data: F32, rows: I64, keys: I64, state: F32, dim: int, now_ms: int, lsn: int
) -> None:
    """Begin the life of rows: header, slots at their initial state. The initializer fills the weights."""
    for i in range(rows.shape[0]):
        r = rows[i]
        header[r, 0] = keys[i]
        header[r, 1] = now_ms
        header[r, 2] = 0
        header[r, 3] = lsn
        flags[r] |= USED | TOUCHED | DIRTY | FRESH
        for j in range(state.shape[0]):
            data[r, dim + j] = state[j]


@kernel
def bound_weights(data: F32, rows: I64, dim: int, low: Any, high: Any) -> None:
    """Clamp the weights of rows to [low, high]."""
    for i in range(rows.shape[0]):
        for j in range(dim):
            data[rows[i], j] = min(max(data[rows[i], j], low), high)


@kernel
def evict(index: I64, header: I64, flags: U8, high: int, hand: int, want: int, freed: I64) -> tuple[int, int]:
    """CLOCK: free up to `want` clean, unpinned rows; a touched row gets a second chance. Returns (freed, new hand)."""
    found = 0
    if high == 0:
        return 0, 0
    for _ in range(2 * high):
        if found == want:
            break
        if hand >= high:
            hand = 0
        state = flags[hand]
        if state & USED and not state & (DIRTY | WRITING | PINNED):
            if state & TOUCHED:
                flags[hand] = state & ~np.uint8(TOUCHED)
            else:
                remove_one(index, header[hand, 0])
                flags[hand] = 0
                freed[found] = hand
                found += 1
        hand += 1
    return found, hand


@kernel
def remove_rows(index: I64, header: I64, flags: U8, rows: I64) -> None:
    """Forget distinct rows, whatever their state."""
    for i in range(rows.shape[0]):
        remove_one(index, header[rows[i], 0])
        flags[rows[i]] = 0


@kernel
def with_flags(flags: U8, high: int, mask: int, wanted: int, start: int, out: I64) -> tuple[int, int]:
    """Write rows from `start` on with flags & mask == wanted, until `out` is full. -> (how many, where to go on)."""
    found = 0
    row = start
    while row < high and found < out.shape[0]:
        if flags[row] & mask == wanted:
            out[found] = row
            found += 1
        row += 1
    return found, row


@kernel
def slots_of_rows(flags: U8, header: I64, high: int, wanted: int, rows: Any, slots: Any, counts: I64) -> int:
    """Write the rows that have all the bits of `wanted`, and their slots, to the front of rows and slots.

    rows: int32 or int64[high]; slots: uint16[high]; counts: int64[SLOTS], += rows of each slot. Returns how many.
    """
    found = 0
    for row in range(high):
        if flags[row] & wanted == wanted:
            slot = slot_of(header[row, 0])
            rows[found] = row
            slots[found] = slot
            counts[slot] += 1
            found += 1
    return found


@kernel
def sort_by_slot(rows: Any, slots: Any, at: I64, out: Any) -> None:
    """out: rows in the order of slots, stable. at: int64[SLOTS], where each slot begins in it; used up."""
    for i in range(rows.shape[0]):
        out[at[slots[i]]] = rows[i]
        at[slots[i]] += 1


@kernel
def count_flags(flags: U8, high: int, mask: int) -> int:
    """How many of the first `high` rows have all the bits of `mask`."""
    found = 0
    for row in range(high):
        found += flags[row] & mask == mask
    return found


@kernel
def fresh_rows(flags: U8, rows: I64, fresh: U8) -> None:
    """fresh[i] = 1 if rows[i] has seen no push, else 0. fresh: uint8[n]."""
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(flags, rows[i + _AHEAD])
        fresh[i] = 1 if flags[rows[i]] & FRESH else 0


@kernel
def change_flags(flags: U8, rows: I64, clear: int, put: int) -> None:
    """flags[row] = (flags[row] & ~clear) | put, for rows >= 0."""
    keep = ~np.uint8(clear)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n and rows[i + _AHEAD] >= 0:
            prefetch(flags, rows[i + _AHEAD])
        if rows[i] >= 0:
            flags[rows[i]] = (flags[rows[i]] & keep) | np.uint8(put)


@kernel
def take_dirty(
    flags: U8,
    rows: I64,
    header: I64,
    data: F32,
    group: int,
    dim: int,
    stamp: int,
    taken: I64,
    fresh: U8,
    words: I32,
    floats: F32,
) -> int:
    """Of `rows`, take those still in use and dirty, and `pack` them: DIRTY becomes WRITING. -> how many.

    taken: int64[n], filled with their numbers; fresh: uint8[n], with 1 for rows never pushed; words, floats: as of
    `pack_words`. Lookups may share the group's lock meanwhile: they write to the flags of rows that are not TOUCHED,
    and all that are taken are.
    """
    found = 0
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(flags, rows[i + _AHEAD])
        state = flags[rows[i]]
        if state & (USED | DIRTY) == (USED | DIRTY):
            taken[found] = rows[i]
            fresh[found] = 1 if state & FRESH else 0
            flags[rows[i]] = (state & ~np.uint8(DIRTY)) | np.uint8(WRITING)
            found += 1
    pack_words(taken[:found], header, fresh, data, group, dim, stamp, words, floats)
    return found


@kernel
def move_down(index: I64, header: I64, flags: U8, data: F32, limit: int, high: int, free: I64) -> int:
    """Move rows at or above `limit` into the free rows below it, so that the tail can be given back.

    free: int64[k], rows below limit that are not used, k at least the number of rows to move. Returns how many moved.
    """
    moved = 0
    for row in range(limit, high):
        if flags[row] & USED:
            to = free[moved]
            moved += 1
            key = header[row, 0]
            remove_one(index, key)
            for j in range(4):
                header[to, j] = header[row, j]
            for j in range(data.shape[1]):
                data[to, j] = data[row, j]
            flags[to] = flags[row]
            flags[row] = 0
            insert_one(index, key, to)
    return moved
