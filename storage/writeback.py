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
from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys, pack, record_bytes
from rockbed.storage.rows import RowFiles
from rockbed.types import I32, I64, U8

_Rows = I32 | I64

RUN_BYTES = 16 << 20  # of records in one run; a write-back takes about twice that in memory
_LOCKED_ROWS = 256  # rows copied under a group's lock at a time, at the least: about 0.03 ms
_LOCKED_ROWS_MAX = 16_384  # about 1 ms: a call that begins meanwhile waits for it
_LONG_S = 1e-3  # to wait for a group's lock: its callers work on large batches
_PAUSE_S = 5e-5  # between two pieces: who waits for the lock should have it
_GIVE_WAY_S = 5e-3  # to those who wait for it: a thread can take milliseconds to wake up
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
    """Where the records of one run after the other are put together; given back to the system with the object.

    values: uint8[rows, size].
    """

    def __init__(self, rows: int, size: int) -> None:
        self.values: U8 = reserve((rows, size), np.uint8)
        self._touched = 0

    def touch(self, rows: int) -> None:
        """Have memory for the first `rows`: while a group's lock is held nobody should wait for the system to find it,
        which takes up to 10 ms for a huge page."""
        if rows > self._touched:
            self.values[self._touched : rows] = 0
            self._touched = rows


class WriteBack:
    """One at a time for a store: whoever removes rows from rows/ holds `mutex` too, so that no run in flight brings
    them back. `mutex` is taken before any group's lock."""

    def __init__(self, files: RowFiles, sync_journal: Callable[[], None], check: Callable[[], None]) -> None:
        """check: raises where rows must not be written any more; called with the lock of their group."""
        self.mutex = threading.RLock()
        self._sync_journal = sync_journal
        self._check = check
        self._files = files
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
            room = _Room(max((run.size for run in runs), default=0), size)
            written = 0
            for run in runs:
                written += self._whole_run(part, run, room)
                if enough is not None and written >= enough:
                    break
            return written

    def _whole_run(self, part: Part, rows: _Rows, room: "_Room") -> int:
        with Uninterrupted():  # or flags would say that rows are being written which are not
            return self._run(part, rows.astype(np.int64), room)

    def _run(self, part: Part, dirty: I64, room: "_Room") -> int:
        values = room.values
        keys: I64 = np.empty(dirty.size, np.int64)
        taken = np.empty(dirty.size, np.int64)
        stamp = self._files.stamp(expires=part.expires())
        count = 0
        try:
            start, piece, was_behind = 0, _LOCKED_ROWS, False
            calls, called_at = part.table.calls, time.perf_counter()
            while start < dirty.size:
                room.touch(count + piece)
                asked = time.perf_counter()
                while part.lock.is_wanted and time.perf_counter() < asked + _GIVE_WAY_S:
                    time.sleep(_PAUSE_S)
                with part.lock:
                    got = time.perf_counter()
                    self._check()
                    part.lock.is_brief = piece == _LOCKED_ROWS
                    count += self._copy(part, dirty[start : start + piece], taken, keys, values, count, stamp)
                    done = time.perf_counter()
                part.lock.is_brief = False  # not before: who looks then finds it free
                start += piece
                # Who calls with large batches only holds the lock for long and may wait as long: taking small pieces
                # between them, write-back would fall behind. Small calls are met with small pieces.
                behind = got - asked > max(_LONG_S, 2 * (done - got))
                if part.table.calls != calls:
                    calls, called_at = part.table.calls, done
                idle = done - called_at > _IDLE_S
                piece = min(4 * piece, _LOCKED_ROWS_MAX) if idle or (behind and was_behind) else _LOCKED_ROWS
                was_behind = behind
                time.sleep(_PAUSE_S)
            if count:
                # Write-ahead: after a power cut a row must not know of an entry that the journal has lost. Its number
                # would be given out again, and a replay of the new entry would skip the row.
                self._sync_journal()
                keys = keys[:count]
                self._files.put_run(encode_keys(part.number, keys), values[:count], disk_order(keys))
        except BaseException:
            part.lock.is_brief = False
            with part.lock:  # not `taken`: it may lack those of a piece that failed half-way
                begun = dirty[part.table.flags[dirty] & k.WRITING != 0]
                k.change_flags(part.table.flags, begun, k.WRITING, k.DIRTY)
            raise
        with part.lock:
            k.change_flags(part.table.flags, taken[:count], k.WRITING, 0)
        self.rows_written += count
        return count

    def _copy(self, part: Part, dirty: I64, taken: I64, keys: I64, values: U8, at: int, stamp: int) -> int:
        table = part.table
        fresh = np.empty(dirty.size, np.uint8)
        n = k.take_dirty(table.flags, dirty, taken[at:], fresh)
        rows = taken[at : at + n]
        pack(rows, table.header, fresh, table.data, part.number, table.dim, stamp, values[at : at + n])
        keys[at : at + n] = table.header[rows, 0]
        return int(n)
