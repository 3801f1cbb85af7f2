"""Walking all rows of a group, as shrink, dump and check do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rockbed.server.group import Group
from rockbed.storage import hot_kernels as k
from rockbed.storage.record import HEADER_BYTES, headers_of
from rockbed.types import F32, I64, U8, Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


@dataclass(slots=True)
class Rows:
    """Some thousand rows. keys, update_time (ms), update_num, lsn: int64[n]; data: float32[n, width] with slots."""

    keys: I64
    update_time: I64
    update_num: I64
    lsn: I64
    data: F32

    def part(self, wanted: Bool) -> "Rows":
        """The rows at which `wanted` is true. bool[n]."""
        numbers = self.keys[wanted], self.update_time[wanted], self.update_num[wanted], self.lsn[wanted]
        return Rows(*numbers, self.data[wanted])


def _from_records(records: U8) -> Rows:
    heads = headers_of(records)
    data = np.ascontiguousarray(records[:, HEADER_BYTES:]).view(np.float32)
    key, update_time, update_num = (np.ascontiguousarray(heads[n]) for n in ("key", "update_time", "update_num"))
    return Rows(key, update_time, update_num, heads["lsn"].astype(np.int64), data)


def _from_memory(group: Group, rows: I64) -> Rows:
    header = group.table.header[rows]
    keys, update_time, update_num, lsn = (header[:, column].copy() for column in range(4))
    return Rows(keys, update_time, update_num, lsn, group.table.data[rows])


def scan(engine: "Engine", group: Group) -> Iterator[Rows]:
    """The group's rows, as of the first step for those on disk; expired ones included.

    A writable store is flushed first, so that rows/ has them all. A read-only one cannot be: there the rows
    that the journal's replay changed come from memory.
    """
    if not engine.config.read_only:
        engine.flush()
    for _, values in engine.files.scan(group.number):
        records = engine.files.matrix(values, group.record_bytes)
        group.check_records(records, headers_of(records)["key"])
        rows = _from_records(records)
        if engine.config.read_only:
            with group.lock:
                keep = ~_is_dirty(group, rows.keys)
            rows = rows.part(keep)
        if rows.keys.size:
            yield rows
    if engine.config.read_only:
        with group.lock:
            dirty = group.table.dirty_rows()
            changed = _from_memory(group, dirty)
        if dirty.size:
            yield changed


def _is_dirty(group: Group, keys: I64) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    rows, _ = group.table.find(keys, 0)
    dirty = np.zeros(keys.size, np.bool_)
    dirty[rows >= 0] = group.table.flags[rows[rows >= 0]] & k.DIRTY != 0
    return dirty


def current(group: Group, keys: I64) -> Rows:
    """The rows of those keys that have one, as they are now. keys: int64[n], distinct. With the lock held."""
    found: list[Rows] = []
    if group.tier is not None:
        at, records = group.tier.find(keys)
        found.append(_from_records(records))
        keys = np.delete(keys, at)
    rows, _ = group.table.find(keys, 0)
    fetched = group.fetch(keys[rows < 0])
    found += [_from_memory(group, rows[rows >= 0]), _from_records(fetched.records)]
    return Rows(
        np.concatenate([each.keys for each in found]),
        np.concatenate([each.update_time for each in found]),
        np.concatenate([each.update_num for each in found]),
        np.concatenate([each.lsn for each in found]),
        np.concatenate([each.data for each in found]),
    )
