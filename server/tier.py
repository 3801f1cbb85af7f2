"""The rows of a group on a device (a GPU), above those in memory. docs/gpu.md says how the two go together."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.config import GroupConfig
from rockbed.errors import BatchTooLarge, DeviceOutOfMemory
from rockbed.server.adaptive_counts import part_of
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.devices import Device
from rockbed.storage.gpu.rules import has_device_form, limits_of
from rockbed.storage.gpu.table import CHUNK_ROWS, DeviceTable, row_bytes
from rockbed.storage.record import FLAG_FRESH, TTL_STAMP_BYTES, headers_of, pack, record_bytes
from rockbed.types import I64, U8, Bool

if TYPE_CHECKING:
    from rockbed.server.group import Group


class Moved(Exception):
    """Internal: the group was taken to the device, or from it, since the caller looked."""


def stays_in_memory(config: GroupConfig) -> bool:
    """Whether a group's settings ask for what the device cannot do."""
    return (
        part_of(config) is not None  # rows of an adaptive variable are copied from one group to the other
        or config.duplicates == "sequential"
        or config.refresh == "lookup"
        or "initializer" in (config.unadmitted_value, config.miss_value)
        or not has_device_form(config.optimizer["name"])
    )


class Tier:
    """A row that is here is newest here, and has a copy in memory or in rows/, as old as it or older: so it need not be
    looked for below, and a row that has left can be found there.

    All of it with the group's lock held. Methods that hand rows down to memory raise NeedSpace; some may be there then.
    """

    def __init__(self, group: "Group", device: Device, budget_bytes: int) -> None:
        """budget_bytes: of device memory, taken when a row comes."""
        self.device = device
        self.budget_bytes = budget_bytes
        self._group = group
        self._table: DeviceTable | None = None

    @property
    def table(self) -> DeviceTable:
        """The rows. Raises DeviceOutOfMemory where the device has less memory left than the budget says."""
        if self._table is None:
            group = self._group
            self._table = DeviceTable(
                self.device.launcher,
                group=group.number,
                dim=group.config.dim,
                rule=group.optimizer,
                limits=limits_of(group.config),
                recipe=group.initializer.recipe(group.config.dim),
                seed=group.config.seed,
                budget_bytes=self.budget_bytes,
                write_back=self._take,
            )
        self._table.chunk_rows = self._memory_for()
        return self._table

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.budget_bytes // row_bytes(self._group.table.width)

    # --- up ---

    def lift(self, rows: I64) -> None:
        """Copy rows of memory here, whose keys have none here: they are pinned until the table's `unpin`.

        rows: int64[n], distinct. Raises NeedSpace, DeviceOutOfMemory; nothing is pinned then.
        """
        table, size = self._group.table, record_bytes(self._group.table.width)
        fresh = np.empty(rows.size, np.uint8)
        k.fresh_rows(table.flags, rows, fresh)
        records = np.empty((rows.size, size + TTL_STAMP_BYTES), np.uint8)
        pack(rows, table.header, fresh, table.data, self._group.number, table.dim, 0, records)
        try:
            self.table.load(table.header[rows, 0], records[:, :size], pin=True)
        except BatchTooLarge as error:
            raise DeviceOutOfMemory(str(error)) from None

    # --- down ---

    def hand_down(self) -> None:
        """Give memory what is newer here. It stays here as well."""
        if self._table is not None:
            with self.device.queue():
                self.table.write_back()

    def expire(self, now_ms: int) -> None:
        """Leave rows that have expired to memory, which knows what becomes of such."""
        if self._table is not None and self._group.ttl_ms:
            with self.device.queue():
                self.table.expire(self._group.oldest_ms(now_ms))

    def empty(self) -> None:
        """Give memory what is newer here, and hold nothing."""
        self.hand_down()
        self.forget()

    def forget(self) -> None:
        """Hold nothing, also of what memory lacks. The device has its memory back at once."""
        self._table = None  # it knows this object: left to the garbage collector, it would stay for a while

    def settle(self, keys: I64) -> None:
        """Give memory the rows of keys, int64[n], distinct, and do not hold them any more."""
        if self._table is not None:
            _, records = self.find(keys)
            for start in range(0, len(records), self._memory_for()):
                self._take(records[start : start + self._memory_for()])
            self.remove(keys)

    def unpin(self) -> None:
        """Let every pinned row be evicted again."""
        if self._table is not None:
            with self.device.queue():
                self._table.unpin()

    # --- beside ---

    def find(self, keys: I64) -> tuple[I64, U8]:
        """The positions of those keys that have a row here, int64[m], and its record, uint8[m, record_bytes].

        keys: int64[n].
        """
        if self._table is None:
            return np.empty(0, np.int64), np.empty((0, self._group.record_bytes), np.uint8)
        with self.device.queue():
            launcher, table = self.device.launcher, self._table
            rows = launcher.to_host(table.find(launcher.to_device(keys), touch=0)[0])
            found = np.flatnonzero(rows >= 0)
            return found, table.records(launcher.to_device(rows[found]))

    def everything(self) -> tuple[U8, Bool]:
        """The records of all rows here, uint8[n, record_bytes], and which of them are newer than memory's."""
        if self._table is None:
            return np.empty((0, self._group.record_bytes), np.uint8), np.empty(0, np.bool_)
        with self.device.queue():
            rows = self._table.used_rows()
            flags = self.device.launcher.to_host(self._table.flags)
            dirty: Bool = flags[self.device.launcher.to_host(rows)] & k.DIRTY != 0
            return self._table.records(rows), dirty

    def remove(self, keys: I64) -> None:
        """Forget the rows of keys, int64[n], whether memory has them or not."""
        if self._table is not None:
            with self.device.queue():
                self._table.remove(keys)

    def statistics(self) -> tuple[int, int]:
        """How many rows there are here, and how many of them are newer than memory's."""
        if self._table is None:
            return 0, 0
        with self.device.queue():
            return self._table.count, self._table.dirty_count()

    # --- inside ---

    def _memory_for(self) -> int:
        """How many rows memory can surely take at a time, once it has been written back."""
        table = self._group.table
        free = (table.budget.limit_bytes - table.budget.used_bytes) // table.row_bytes
        return min(CHUNK_ROWS, max(32, (table.high + free) // 4))

    def _take(self, records: U8) -> None:
        # a row of memory may be on its way to rows/: it is marked dirty again, so it will be written once more
        heads, table = headers_of(records), self._group.table
        keys = np.ascontiguousarray(heads["key"])
        rows, missing = table.find(keys)
        with table.pinned(rows):
            table.ensure_room(missing)
        absent = np.flatnonzero(rows < 0)
        rows[absent] = table.allocate(keys[absent])
        k.change_flags(table.flags, rows, k.FRESH, k.DIRTY)
        table.load(records, rows, (heads["flags"] & FLAG_FRESH).astype(np.uint8))
