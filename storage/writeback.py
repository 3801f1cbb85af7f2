"""Write-back: dirty rows of the hot tier become sorted runs in rows/, in pieces that hold locks and the GIL briefly."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from rockbed.guarded_lock import GuardedLock
from rockbed.interrupts import Uninterrupted
from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import HotTable
from rockbed.storage.memory import reserve
from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys, headers_of, record_bytes
from rockbed.storage.rows import RowFiles
from rockbed.types import I32, I64, U8

_Rows = I32 | I64

RUN_BYTES = 16 << 20  # of records in one run; a write-back takes about twice that in memory
_LOCKED_ROWS = 2048  # rows copied at a time with a group's lock shared, at the least: about 0.14 ms
_BRIEF_BYTES = 512 << 10  # of a piece: about 0.2 ms
_LOCKED_ROWS_MAX = 16_384  # about 1 ms: a push that begins meanwhile waits for it
_LONG_S = 1e-3  # to wait for a group's lock: its callers work on large batches
_GIVE_WAY_S = 5e-3  # to those who wait for it: a thread can take milliseconds to wake up
_LOOK_S = 5e-5  # between looks at whether they do
_IDLE_S = 2e-2  # without a call: nobody is using the group now, or not with small calls


class Part(Protocol):
    """What write-back needs of a group."""

    number: int
    table: HotTable
    lock: GuardedLock

    def expires(self) -> bool:
        """Whether RocksDB may drop the group's rows by the store's own TTL."""


def _runs(rows: _Rows, ends: I64, most: int) -> Iterator[_Rows]:
    """Cut rows, ordered by slot, into pieces of at most `most` that share no slot (one slot is never cut).

    So the runs of one write-back do not overlap, and RocksDB puts them side by side into one level instead of piling
    them up in the first, where every read has to look into each.
    """
    start = 0
    while start < rows.size:
        last = int(np.searchsorted(ends, start + most, side="right")) - 1
        end = int(ends[last]) if last >= 0 else start
        if end <= start:
            end = int(ends[np.searchsorted(ends, start, side="right")])
        yield rows[start:end]
        start = end


class _Room:
    """Where the records of one run after the other are put together. Kept: memory that is given back to the system has
    to be found again, which takes up to 10 ms for a huge page."""

    def __init__(self) -> None:
        self._bytes: U8 = np.empty(0, np.uint8)
        self._touched = 0

    def values(self, rows: int, size: int) -> U8:
        """uint8[rows, size], the same memory each time."""
        if rows * size > self._bytes.size:
            self._bytes, self._touched = reserve((max(rows * size, RUN_BYTES),), np.uint8), 0
        return self._bytes[: rows * size].reshape(rows, size)

    def touch(self, size: int) -> None:
        """Have memory for the first `size` bytes: nobody should wait for that while a group's lock is held."""
        if size > self._touched:
            self._bytes[self._touched : size] = 0
            self._touched = size


class WriteBack:
    """One at a time for a store: whoever removes rows from rows/ holds `mutex` too, so that no run in flight brings
    them back. `mutex` is taken before any group's lock."""

    def __init__(self, files: RowFiles, sync_journal: Callable[[], None], check: Callable[[], None]) -> None:
        """check: raises where rows must not be written any more; called with the lock of their group shared."""
        self.mutex = threading.RLock()
        self._sync_journal = sync_journal
        self._check = check
        self._files = files
        self._room = _Room()
        self.rows_written = 0
        self.clean_at = time.monotonic()  # whatever changed before has been written back

    def write(self, part: Part, enough: int | None = None) -> int:
        """Write the rows of a group that are dirty now. Returns how many; on an error they stay dirty. enough: begin no
        further run once so many are written."""
        with self.mutex:
            with part.lock:
                pass  # pushes that hold it have marked their rows when it is free; the rest needs no lock
            dirty, ends = part.table.dirty_by_slot()
            size = record_bytes(part.table.width) + TTL_STAMP_BYTES
            runs = list(_runs(dirty, ends, RUN_BYTES // size))
            written = 0
            for run in runs:
                written += self._whole_run(part, run, self._room.values(run.size, size))
                if enough is not None and written >= enough:
                    break
            return written

    def _whole_run(self, part: Part, rows: _Rows, values: U8) -> int:
        with Uninterrupted():  # or flags would say that rows are being written which are not
            part.lock.favours_sharing = True  # who waits for it to be free sleeps, and is slow to wake up
            try:
                return self._run(part, rows.astype(np.int64), values)
            finally:
                part.lock.favours_sharing = False

    def _run(self, part: Part, dirty: I64, values: U8) -> int:
        taken = np.empty(dirty.size, np.int64)
        stamp = self._files.stamp(expires=part.expires())
        count = 0
        try:
            start, piece, was_behind = 0, _LOCKED_ROWS, False
            calls, called_at = part.table.calls, time.perf_counter()
            while start < dirty.size:
                self._room.touch((count + piece) * values.shape[1])
                asked = time.perf_counter()
                while part.lock.is_wanted and time.perf_counter() < asked + _GIVE_WAY_S:
                    time.sleep(_LOOK_S)
                with part.lock.shared:
                    got = time.perf_counter()
                    self._check()
                    part.lock.is_brief = piece * values.shape[1] <= _BRIEF_BYTES
                    count += self._copy(part, dirty[start : start + piece], taken[count:], values[count:], stamp)
                    done = time.perf_counter()
                part.lock.is_brief = False  # not before: who looks then finds it free
                start += piece
                # Who pushes large batches only holds the lock for long and may wait as long: with small pieces between
                # them, write-back would fall behind. Small calls are met with small pieces.
                behind = got - asked > max(_LONG_S, 2 * (done - got))
                if part.table.calls != calls:
                    calls, called_at = part.table.calls, done
                idle = done - called_at > _IDLE_S
                piece = min(4 * piece, _LOCKED_ROWS_MAX) if idle or (behind and was_behind) else _LOCKED_ROWS
                was_behind = behind
            if count:
                # Write-ahead: after a power cut a row must not know of an entry that the journal has lost. Its number
                # would be given out again, and a replay of the new entry would skip the row.
                self._sync_journal()
                keys = np.ascontiguousarray(headers_of(values[:count])["key"])
                self._files.put_run(encode_keys(part.number, keys), values[:count], disk_order(keys))
            with part.lock.shared:  # lookups may go on, as in `take_dirty`
                k.change_flags(part.table.flags, taken[:count], k.WRITING, 0)
        except BaseException:
            part.lock.is_brief = False
            with part.lock:  # not `taken`: it may lack those of a piece that failed half-way
                begun = dirty[part.table.flags[dirty] & k.WRITING != 0]
                k.change_flags(part.table.flags, begun, k.WRITING, k.DIRTY)
            raise
        self.rows_written += count
        return count

    def close(self) -> None:
        """Wait for whoever writes, and give the memory for records back."""
        with self.mutex:
            self._room = _Room()

    def _copy(self, part: Part, dirty: I64, taken: I64, values: U8, stamp: int) -> int:
        table = part.table
        fresh = np.empty(dirty.size, np.uint8)
        words, floats = values.view(np.int32), values.view(np.float32)
        to = stamp, taken, fresh, words, floats
        return int(k.take_dirty(table.flags, dirty, table.header, table.data, part.number, table.dim, *to))
