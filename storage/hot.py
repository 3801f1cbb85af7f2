"""The hot tier of one group: rows in memory, an index over them, and CLOCK eviction within a memory budget.

No locking and no I/O here: the group's lock is held by the caller, dirty rows are written back by `writeback`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rockbed.addresses import address_of
from rockbed.parallel import in_parts
from rockbed.storage import hot_kernels as k
from rockbed.storage import index as ix
from rockbed.storage.memory import release_tail, reserve
from rockbed.storage.record import SLOTS, unpack
from rockbed.types import F32, I32, I64, U8, Bool

_FIRST_INDEX = 1024
_LOAD = 1.5  # index entries a row at the least; it grows by as much, so 24 to 36 bytes a row
_LEFT_MARKS = 1 << 16  # kept of keys whose row has left memory
_MIN_ROWS = 64  # a table may always hold this many, so that every group can work whatever the budget


def _index_size(entries: int) -> int:
    return int(entries * _LOAD * 1.5) + 16


class NeedSpace(Exception):
    """Internal: `rows` more rows do not fit before dirty rows are written back or another group gives way."""

    def __init__(self, table: "HotTable", rows: int) -> None:
        super().__init__(rows)
        self.table = table
        self.rows = rows


class Budget:
    """Bytes of hot rows that all tables of a store may hold together. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def grant(self, rows: int, row_bytes: int, at_least: int) -> int:
        """Take the bytes of as many of `rows` as are free, but always of `at_least`. Returns how many rows."""
        with self._lock:
            granted = max(min(rows, (self.limit_bytes - self.used_bytes) // row_bytes), at_least, 0)
            self.used_bytes += granted * row_bytes
            return granted

    def give_back(self, rows: int, row_bytes: int) -> None:
        """Return the bytes of rows that `grant` gave."""
        with self._lock:
            self.used_bytes -= rows * row_bytes


class HotTable:
    """Rows of one group in memory.

    data: float32[capacity, width], weights then slots; header: int64[capacity, 4] = key, update time (ms), update
    count, LSN; flags: uint8[capacity], bits of `hot_kernels`.
    `capacity` is what the whole budget could hold: address space, not memory. Rows 0..high-1 were used at some time.
    """

    def __init__(self, dim: int, state_width: int, budget: Budget) -> None:
        self.dim = dim
        self.width = dim + state_width
        self.row_bytes = 4 * self.width + 32 + 1 + int(_LOAD * 1.5 * ix.ENTRY_BYTES)
        self.capacity = max(_MIN_ROWS, budget.limit_bytes // self.row_bytes)
        self.budget = budget
        self.data: F32 = reserve((self.capacity, self.width), np.float32)
        self.header: I64 = reserve((self.capacity, 4), np.int64)
        self.flags: U8 = reserve((self.capacity,), np.uint8)
        self._free: I64 = reserve((self.capacity,), np.int64)
        self._free_count = 0
        self._index_slots: I64 = reserve((max(_FIRST_INDEX, _index_size(self.capacity)), 2), np.int64)
        self.index: I64 = self._index_slots[:_FIRST_INDEX]
        self.high = 0
        self.count = 0
        self._hand = 0
        self.left = 0  # grows whenever a row leaves its place in memory
        self._left_marks: I64 = reserve((_LEFT_MARKS,), np.int64)  # `left` when a key of that hash left last
        self.evictions = 0
        self.flags_address = address_of(self.flags)
        self.data_addresses = address_of(self.data), self.capacity, self.width, self.dim
        self._addresses = address_of(self.header), self.flags_address, *self.data_addresses
        self._index_address = address_of(self._index_slots)
        self.touching = 0  # what lookups mark rows with: nothing until eviction takes the mark, which all begin with
        self.calls = 0  # of `find`: write-back sees by it whether anybody is using the group

    # --- find ---

    def find(self, keys: I64, touch: int = k.TOUCHED) -> tuple[I64, int]:
        """The row of each key, -1 where it is not in memory, and how many are not. keys: int64[n] -> int64[n].

        touch: whether the rows are being used, TOUCHED, or only looked at, 0.
        """
        self.calls += 1
        touch &= self.touching
        rows = np.empty(keys.shape[0], np.int64)
        missing: list[int] = []
        # parts may mark the same row, each with the same bits
        in_parts(
            keys.shape[0],
            lambda part: missing.append(ix.find(self.index, keys[part], self.flags, touch, rows[part])),
        )
        return rows, sum(missing)

    @property
    def addresses(self) -> tuple[int, ...]:
        """What kernels that work on several tables take for this one: batch_kernels.TABLE. True until rows come."""
        return self._index_address, self.index.shape[0], *self._addresses

    def gather(self, rows: I64, out: F32) -> None:
        """out[i] = the weights of rows[i], zeros where it is -1. out: float32[n, dim], C-contiguous."""
        in_parts(rows.shape[0], lambda part: k.gather(self.data, rows[part], self.dim, out[part]))

    # --- rows come ---

    @contextmanager
    def pinned(self, rows: I64) -> Iterator[None]:
        """With rows that must not be evicted where the block makes room. rows: int64[n], those below 0 are none."""
        k.change_flags(self.flags, rows, 0, k.PINNED)
        try:
            yield
        finally:
            k.change_flags(self.flags, rows, k.PINNED, 0)

    def ensure_room(self, rows: int) -> None:
        """Have `rows` free rows, by growing or by evicting clean ones. Raises NeedSpace where that is not enough."""
        if self._free_count < rows:
            self._make_room(rows)

    def allocate(self, keys: I64) -> I64:
        """Rows for distinct keys that are not in memory, entered in the index and marked used.

        `ensure_room` has been called for as many.
        """
        wanted = keys.shape[0]
        assert self._free_count >= wanted
        rows = self._free[self._free_count - wanted : self._free_count].copy()
        self._free_count -= wanted
        self._grow_index(wanted)
        ix.insert_rows(self.index, keys, rows)
        self.header[rows, 0] = keys
        self.flags[rows] = k.USED | k.TOUCHED
        self.count += wanted
        return rows

    def insert(self, keys: I64, rows: I64, missing: int) -> I64:
        """Give every key with rows[i] = -1 a row, repeats the same; rows is filled. missing: how many such positions.

        Returns the positions of the keys whose row is new, int64[m]. Raises NeedSpace, with nothing changed.
        """
        self.ensure_room(missing)
        self._grow_index(missing)
        fresh = np.empty(missing, np.int64)
        taken = int(ix.insert_absent(self.index, keys, rows, self._free, self._free_count, fresh))
        self._free_count -= taken
        self.count += taken
        return fresh[:taken]

    def start(self, keys: I64, rows: I64, state: F32, now_ms: int, lsn: int) -> None:
        """Begin the life of rows: header and slots; the initializer fills the weights after."""
        k.start_rows(self.header, self.flags, self.data, rows, keys, state, self.dim, now_ms, lsn)

    def load(self, records: U8, rows: I64, fresh: U8) -> None:
        """Fill rows from records of rows/. fresh: uint8[n], the records' FRESH flag."""
        unpack(records, rows, self.header, self.data)
        k.change_flags(self.flags, rows[fresh != 0], 0, k.FRESH)

    # --- rows go ---

    def remove(self, rows: I64) -> None:
        """Forget distinct rows, dirty or not."""
        k.remove_rows(self.index, self.header, self.flags, rows)
        self._freed(rows)

    def evict(self, wanted: int) -> int:
        """Free up to `wanted` clean rows that were not used lately. Returns how many it could."""
        self.touching = k.TOUCHED
        freed = np.empty(wanted, np.int64)
        found, self._hand = k.evict(self.index, self.header, self.flags, self.high, self._hand, wanted, freed)
        self._freed(freed[:found])
        self.evictions += found
        return found

    def note_left(self, keys: I64) -> None:
        """Remember that what rows/ holds of these keys may be another thing than before. keys: int64[n]."""
        self.left += 1
        ix.mark_keys(self._left_marks, keys, self.left)

    def may_have_left(self, keys: I64, left: int) -> Bool:
        """For which keys, bool[n], what was read from rows/ when `left` was that may be stale: they were in memory
        since, or a key of the same hash was."""
        found = np.empty(keys.shape[0], np.bool_)
        ix.marked_since(self._left_marks, keys, left, found)
        return found

    def give_way(self, rows: int) -> int:
        """Evict, close the gaps and return memory to the budget. Returns how many rows' worth it could give.

        For the background thread, while no write-back is under way: rows move.
        """
        rows = min(rows, self.high - _MIN_ROWS)
        if rows <= 0:
            return 0
        self.evict(max(0, rows - self._free_count))
        limit = self.high - min(rows, self._free_count)
        unused = np.flatnonzero(self.flags[:limit] & k.USED == 0)
        k.move_down(self.index, self.header, self.flags, self.data, limit, self.high, unused)
        given = self.high - limit
        self.high = limit
        unused = np.flatnonzero(self.flags[:limit] & k.USED == 0)
        self._free[: unused.size] = unused
        self._free_count = unused.size
        for array in (self.data, self.header, self.flags):
            release_tail(array, limit)
        self.left += 1
        self.budget.give_back(given, self.row_bytes)
        return given

    def give_all_back(self) -> None:
        """Return the budget's bytes; the table is not used any more."""
        self.budget.give_back(self.high, self.row_bytes)
        self.high = self.count = self._free_count = 0

    # --- dirty rows ---

    def dirty_rows(self) -> I64:
        """The rows that are newer than what rows/ holds: int64[n]. Without the lock, of some moment during the call."""
        return self._rows_with(k.USED | k.DIRTY)

    def dirty_by_slot(self) -> tuple[I32 | I64, I64]:
        """The rows of `dirty_rows` in the order of their slots, int32[n] or int64[n], and where each slot ends,
        int64[SLOTS].

        Takes 10 bytes a row, twice that above 2^31 rows. Without the lock: each row that is dirty from before the call
        to its end is named; others may be, and may be something else by now.
        """
        number: Any = np.int32 if self.capacity < 1 << 31 else np.int64
        high = self.high
        # seen once and then sorted apart from the table, which changes meanwhile
        seen = reserve((high,), number)
        slots = reserve((high,), np.uint16)
        ends = np.zeros(SLOTS, np.int64)
        found = k.slots_of_rows(self.flags, self.header, high, k.USED | k.DIRTY, seen, slots, ends)
        np.cumsum(ends, out=ends)
        rows = np.empty(found, number)
        k.sort_by_slot(seen[:found], slots[:found], np.concatenate([[0], ends[:-1]]), rows)
        return rows, ends

    def used_rows(self) -> I64:
        """All rows in memory: int64[n]."""
        return self._rows_with(k.USED)

    def dirty_count(self) -> int:
        """How many rows `dirty_rows` would give."""
        return int(k.count_flags(self.flags, self.high, k.USED | k.DIRTY))

    def clean_count(self) -> int:
        """How many rows could be evicted, at the least; of some moment during the call."""
        return self.count - self.dirty_count() - int(k.count_flags(self.flags, self.high, k.USED | k.WRITING))

    def _rows_with(self, flags: int) -> I64:
        high = self.high
        rows = np.empty(high, np.int64)
        found, _ = k.with_flags(self.flags, high, flags, flags, 0, rows)
        return rows[:found]

    def memory_bytes(self) -> int:
        """Bytes of the budget that the table's rows and index take now."""
        return self.high * (self.row_bytes - int(_LOAD * 1.5 * ix.ENTRY_BYTES)) + self.index.nbytes

    # --- inside ---

    def _freed(self, rows: I64) -> None:
        self._free[self._free_count : self._free_count + rows.shape[0]] = rows
        self._free_count += rows.shape[0]
        self.count -= rows.shape[0]
        if rows.shape[0]:
            self.note_left(self.header[rows, 0])

    def _make_room(self, wanted: int) -> None:
        more = min(wanted - self._free_count, self.capacity - self.high)
        # grow by more than asked for: an eighth, so that a growing table does not ask at every batch
        room = min(max(more, self.high // 8), self.capacity - self.high)
        granted = self.budget.grant(room, self.row_bytes, at_least=min(room, max(0, _MIN_ROWS - self.high)))
        # pushed in descending order, so that rows are taken in ascending order and the memory touched stays compact
        self._free[granted : granted + self._free_count] = self._free[: self._free_count].copy()
        self._free[:granted] = np.arange(self.high + granted - 1, self.high - 1, -1)
        self._free_count += granted
        self.high += granted
        short = wanted - self._free_count
        if short > 0 and self.evict(max(short, self.high // 64)) < short:
            raise NeedSpace(self, wanted - self._free_count)

    def _grow_index(self, more: int) -> None:
        entries = self.count + more
        if entries * _LOAD < self.index.shape[0]:
            return
        size = _index_size(entries)
        ix.expand(self._index_slots, self.index.shape[0], size)
        self.index = self._index_slots[:size]
