"""Write-back: dirty rows of the hot tier become sorted runs in rows/, in pieces that hold locks and the GIL briefly."""

import threading
import time
from typing import Protocol

import numpy as np

from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import HotTable
from rockbed.storage.record import TTL_STAMP_BYTES, disk_order, encode_keys, pack, record_bytes
from rockbed.storage.rows import RowFiles
from rockbed.types import I64, U8

RUN_BYTES = 24 << 20  # of records in one run; a write-back takes about twice that in memory
_LOCKED_ROWS = 2048  # rows copied under a group's lock at a time: about 0.1 ms


class Part(Protocol):
    """What write-back needs of a group."""

    number: int
    table: HotTable
    lock: threading.RLock

    def expires(self) -> bool:
        """Whether the group's rows have a TTL."""


class WriteBack:
    """One at a time for a store: whoever removes rows from rows/ holds `mutex` too, so that no run in flight brings
    them back. `mutex` is taken before any group's lock."""

    def __init__(self, files: RowFiles) -> None:
        self.mutex = threading.RLock()
        self._files = files
        self.rows_written = 0

    def write(self, part: Part) -> int:
        """Write the rows of a group that are dirty now. Returns how many; on an error they stay dirty."""
        with self.mutex:
            with part.lock:
                pass  # pushes that hold it have marked their rows when it is free; the rest needs no lock
            dirty = part.table.dirty_rows()
            # In key order, so that the runs of one write-back do not overlap: RocksDB then puts them side by side
            # into one level instead of piling them up in the first, where every read has to look into each. Rows may
            # change hands meanwhile; `_run` sorts what it really took.
            dirty = dirty[disk_order(part.table.header[dirty, 0])]
            size = record_bytes(part.table.width) + TTL_STAMP_BYTES
            rows_a_run = max(1, RUN_BYTES // size)
            return sum(self._run(part, dirty[i : i + rows_a_run], size) for i in range(0, dirty.size, rows_a_run))

    def _run(self, part: Part, dirty: I64, size: int) -> int:
        values = np.empty((dirty.size, size), np.uint8)
        keys = np.empty(dirty.size, np.int64)
        taken = np.empty(dirty.size, np.int64)
        stamp = self._files.stamp(expires=part.expires())
        count = 0
        try:
            for start in range(0, dirty.size, _LOCKED_ROWS):
                with part.lock:
                    count += self._copy(part, dirty[start : start + _LOCKED_ROWS], taken, keys, values, count, stamp)
                time.sleep(5e-5)  # long enough for a thread that waits for the lock to wake up and have it
            if count:
                keys = keys[:count]
                self._files.put_run(encode_keys(part.number, keys), values[:count], disk_order(keys))
        except BaseException:
            with part.lock:
                k.change_flags(part.table.flags, taken[:count], k.WRITING, k.DIRTY)
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
