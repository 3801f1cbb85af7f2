"""The sweeper: walks all rows slowly, round and round, and removes those that have expired."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.server.group import Group
from rockbed.server.removal import drop
from rockbed.storage import hot_kernels as k
from rockbed.storage.record import FLAG_FRESH, headers_of
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_SEEN_ROWS = 4096  # rows of memory looked at under a group's lock at a time: some 0.02 ms
_LOCKED_ROWS = 512  # rows removed under it at a time, which means reading and deleting on disk: some 3 ms
_VISIT_ROWS = 100  # what going to a group counts for: opening an iterator takes as long as so many rows of it


class Sweeper:
    """Keeps its place between turns. A turn looks at as many rows as `sweep_rows_s` allows."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._allowance = 0.0
        self._group = -1
        self._after: bytes | None = None
        self._memory_at = 0
        self.was_on_disk = False  # in the last turn, as opposed to what memory left of its allowance

    def turn(self, seconds: float) -> int:
        """Sweep for a turn that stands for so many seconds. Returns how many rows were removed."""
        rate = self._engine.config.sweep_rows_s
        self._allowance = min(self._allowance + rate * seconds, rate)
        self.was_on_disk = False
        removed = 0
        groups = sorted(n for n, g in list(self._engine.groups.items()) if g.ttl_ms)
        if not groups:
            return 0
        for _ in groups:
            if self._allowance < 1:
                break
            if self._group not in groups:
                self._next(groups)
            group = self._engine.groups.get(self._group)
            if group is not None:
                removed += self._sweep(group, groups)
        return removed

    def _next(self, groups: list[int]) -> None:
        later = [n for n in groups if n > self._group]
        self._group, self._after, self._memory_at = (later or groups)[0], None, 0

    def _sweep(self, group: Group, groups: list[int]) -> int:
        removed = self._sweep_memory(group)
        if self._allowance < 1:
            return removed
        for keys, values in self._engine.files.scan(group.number, after=self._after):
            self._after = keys[-1]
            heads = headers_of(self._engine.files.matrix(values, group.record_bytes))
            old = heads["key"][heads["update_time"] <= group.oldest_ms(self._engine.now_ms())]
            removed += drop_expired(self._engine, group, np.ascontiguousarray(old))
            self.was_on_disk = True
            self._allowance -= len(keys)
            if self._allowance < 1:
                return removed
        self.was_on_disk = True
        self._allowance -= _VISIT_ROWS
        self._next(groups)
        return removed

    def _sweep_memory(self, group: Group) -> int:
        removed = 0
        rows = np.empty(_SEEN_ROWS, np.int64)
        while self._allowance >= 1:
            with group.lock:
                found, self._memory_at = k.with_flags(
                    group.table.flags, group.table.high, k.USED, k.USED, self._memory_at, rows
                )
                headers = group.table.header[rows[:found]]
            old = headers[headers[:, 1] <= group.oldest_ms(self._engine.now_ms()), 0]
            removed += drop_expired(self._engine, group, np.ascontiguousarray(old))
            self._allowance -= found
            if found < _SEEN_ROWS:
                break
        return removed


def drop_expired(engine: "Engine", group: Group, keys: I64) -> int:
    """Remove those of the keys int64[n], distinct, whose row has expired by now, wherever it is. Takes the locks.

    Rows with pushes that no flush has written yet are left for a later time.
    """
    pieces = range(0, keys.size, _LOCKED_ROWS)
    return sum(_drop_expired(engine, group, keys[start : start + _LOCKED_ROWS]) for start in pieces)


def _drop_expired(engine: "Engine", group: Group, keys: I64) -> int:
    with engine.write_back.mutex, group.lock:
        if group.dropped:
            return 0
        rows, _ = group.table.find(keys, 0)
        fetched = group.fetch(keys[rows < 0])
        held, read = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)[fetched.found]
        times, settled = np.zeros(keys.size, np.int64), np.zeros(keys.size, np.bool_)
        header, flags = group.table.header[rows[held]], group.table.flags[rows[held]]
        heads = headers_of(fetched.records)
        times[held], times[read] = header[:, 1], heads["update_time"]
        # a push that would be replayed after a crash has to find the row that it was applied to
        settled[held] = (flags & k.FRESH != 0) | (header[:, 3] <= engine.flushed_lsn)
        settled[read] = (heads["flags"] & FLAG_FRESH != 0) | (heads["lsn"] <= engine.flushed_lsn)
        if group.tier is not None:  # what is there is newest
            above, records = group.tier.find(keys)
            heads = headers_of(records)
            times[above] = heads["update_time"]
            settled[above] = (heads["flags"] & FLAG_FRESH != 0) | (heads["lsn"] <= engine.flushed_lsn)
        old = keys[settled & (times <= group.oldest_ms(engine.now_ms()))]
        drop(engine, group, old)
        engine.removals.add(group.number, old, "expired", engine.now_ms())
        group.counters.expired += old.size
        return int(old.size)
