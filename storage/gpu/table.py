"""The device tier of one group: hot rows in device memory, an index over them, CLOCK eviction within a byte budget.

As the host's HotTable (storage/hot.py) it does no locking; the caller holds the group's lock. The work is done by the
kernels of table.cu and update.cu; this file decides what is launched. Where the host has to know a count it waits for
the device, and the method says so; everything else is queued.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rockbed.errors import BatchTooLarge, InvalidConfig
from rockbed.storage import hot_kernels as k
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.storage.gpu.rules import UpdateRule, update_kernel
from rockbed.storage.gpu.sources import TABLE, Module
from rockbed.storage.record import HEADER_BYTES, RECORD_VERSION, record_bytes
from rockbed.types import I64, U8, AnyArray

MIN_ROWS = 64
CHUNK_ROWS = 65_536  # rows copied out at a time: the host's buffer for them stays small
_NEVER = 2**63 - 1
_HEADER_WORDS = HEADER_BYTES // 4
_KINDS = {"constant": 0, "uniform": 1, "normal": 2}
_RECIPE = np.dtype(
    [("seed", "u8"), ("first", "f8"), ("second", "f8"), ("below", "f8"), ("kind", "i4"), ("group", "i4")]
)  # `Recipe` of initializers.cuh

Recipe = tuple[str, float, float, float]
"""How rows start: `Initializer.recipe` of rockbed.optimizers."""


def row_bytes(width: int) -> int:
    """Bytes of device memory for a row of `width` floats: data padded to 16 bytes, header, flag, two index entries, its
    number in the free list, and 8 bytes of scratch for choosing rows."""
    return 4 * _stride(width) + 32 + 1 + 2 * 16 + 4 + 8


def _stride(width: int) -> int:
    return -(-width // 4) * 4


class DeviceTable:
    """Rows of one group in device memory.

    data: float32[capacity, stride], weights, then slots, then up to 3 floats so that each row begins at 16 bytes;
    header: int64[capacity, 4] = key, update time (ms), update count, LSN; flags: uint8[capacity], bits of hot_kernels;
    index: the entries of index.cuh, twice as many as rows. All is allocated at once: capacity = budget / row_bytes.

    rule, limits: how rows are updated, limits as `rules.limits_of` gives them; `configure` changes both. recipe, seed:
    how they start. write_back: called with the records of dirty rows that have to leave (storage/record.py's, uint8[n,
    record_bytes(width)]); when it returns they are somebody else's. When it raises, they stay. It gets
    `chunk_rows` at a time, at the most.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        group: int,
        dim: int,
        rule: UpdateRule,
        limits: AnyArray,
        recipe: Recipe,
        seed: int,
        budget_bytes: int,
        write_back: Callable[[U8], None],
    ) -> None:
        self.launcher = launcher
        self.group = group
        self.dim = dim
        self.width = dim + rule.state_width(dim)
        self.stride = _stride(self.width)
        self.capacity = min(budget_bytes // row_bytes(self.width), 2**31 - 2)
        if self.capacity < MIN_ROWS:
            raise InvalidConfig(
                f"group {group}: {budget_bytes} bytes of device memory hold {self.capacity} rows of {self.width} "
                f"floats, {MIN_ROWS} are the least: give it {MIN_ROWS * row_bytes(self.width)} bytes"
            )
        self._write_back = write_back
        self.chunk_rows = CHUNK_ROWS
        self.index_size = 2 * self.capacity
        self.index: DeviceArray = launcher.empty((self.index_size + 2, 2), np.int64)
        self.header: DeviceArray = launcher.empty((self.capacity, 4), np.int64)
        self.flags: DeviceArray = launcher.zeros(self.capacity, np.uint8)
        self.data: DeviceArray = launcher.empty((self.capacity, self.stride), np.float32)
        # taken from the end, so that rows are used in ascending order
        self._free: DeviceArray = launcher.to_device(np.arange(self.capacity - 1, -1, -1, dtype=np.int32))
        self.free_count = self.capacity
        self.high = 0  # rows 0..high-1 were used at some time
        self.count = 0
        self._gone = 0  # entries of the index given up
        self._hand = 0
        self.evictions = 0
        self._state: DeviceArray = launcher.to_device(rule.initial_state(dim))
        kind, first, second, below = recipe
        self._recipe: DeviceArray = launcher.to_device(
            np.array([(seed % 2**64, first, second, below, _KINDS[kind], group)], _RECIPE).view(np.uint8)
        )
        self.configure(rule, limits)
        self._run("clear_index", self.index_size + 2, self.index, self.index_size)

    def configure(self, rule: UpdateRule, limits: AnyArray) -> None:
        """Take other parameters of the same kind of rule, and other limits. limits: LIMITS[1]."""
        self._update, hyper = update_kernel(rule, self.dim)
        self._hyper: DeviceArray = self.launcher.to_device(hyper)
        self._limits: DeviceArray = self.launcher.to_device(limits.view(np.uint8))
        self.launcher.compile(self._update)  # now: an update comes after the journal, when nothing may fail

    @property
    def lanes(self) -> int:
        """The lanes that work on a row: a quarter of dim, a power of two, a warp at most (lanes_for of lanes.cuh)."""
        return min(32, 1 << (-(-self.dim // 4) - 1).bit_length())

    # --- find ---

    def find(self, keys: DeviceArray, touch: int = k.TOUCHED) -> tuple[DeviceArray, int]:
        """The row of each key, int32[n], -1 where it is not here, and how many are not. keys: int64[n] on the device.

        Waits for the device, to know how many.
        """
        rows = self.launcher.empty(keys.size, np.int32)
        missing = self.launcher.zeros(1, np.int32)
        self._run("find", keys.size, self.index, self.index_size, keys, keys.size, self.flags, touch, rows, missing)
        return rows, int(self.launcher.to_host(missing)[0])

    def gather(self, rows: DeviceArray) -> DeviceArray:
        """float32[n, dim]: the weights of rows, zeros where a row is -1."""
        out = self.launcher.empty((rows.size, self.dim), np.float32)
        self._run("gather", rows.size * self.dim, self.data, self.stride, rows, rows.size, self.dim, out)
        return out

    def headers(self, rows: DeviceArray) -> tuple[I64, I64, U8]:
        """On the host: the keys of rows, int64[n]; how often each was updated, int64[n]; 1 for those that have seen no
        push, uint8[n]. Waits for the device."""
        keys, counts = self.launcher.empty(rows.size, np.int64), self.launcher.empty(rows.size, np.int64)
        fresh = self.launcher.empty(rows.size, np.uint8)
        self._run("copy_headers", rows.size, self.header, self.flags, rows, rows.size, keys, counts, fresh)
        return self.launcher.to_host(keys), self.launcher.to_host(counts), self.launcher.to_host(fresh)

    # --- rows come ---

    def insert(self, keys: DeviceArray, now_ms: int, lsn: int, *, pin: bool = False) -> tuple[DeviceArray, int]:
        """The row of each key, int32[n], and how many are new: those start as the initializer says, as of entry `lsn`.

        keys: int64[n] on the device; one that repeats gets one row. pin: the rows stay until `unpin`; without, until
        other keys need the room. Waits for the device once for every capacity / 4 keys. Raises BatchTooLarge, and what
        write_back raises; then some of the keys may have their row already.
        """
        rows, created = self.launcher.empty(keys.size, np.int32), 0
        for piece in self._pieces(keys.size):
            _, fresh = self._enter(keys[piece], rows[piece])
            with self._filling(fresh):
                self._start(fresh, now_ms, lsn)
            created += fresh.size
        if not pin:
            self.unpin()
        return rows, created

    def load(self, keys: I64, records: U8, *, pin: bool = False) -> DeviceArray:
        """Rows int32[n] filled from records, clean. keys: int64[n], distinct, on the host; records: uint8[n, bytes].

        Of a key that has a row already the record is left aside. pin, waits and raises: as `insert`.
        """
        rows = self.launcher.empty(keys.size, np.int32)
        for piece in self._pieces(keys.size):
            # copied first: what has its entry must be filled, so nothing may fail between
            words = self.launcher.to_device(np.ascontiguousarray(records[piece]).view(np.int32))
            positions, fresh = self._enter(self.launcher.to_device(keys[piece]), rows[piece])
            per_row = _HEADER_WORDS + self.width
            arguments = (fresh, fresh.size, per_row, self.header, self.flags, self.data, self.stride)
            with self._filling(fresh):
                self._run("load_rows", fresh.size * per_row, words, positions, *arguments)
        if not pin:
            self.unpin()
        return rows

    def unpin(self) -> None:
        """Let every pinned row be evicted again."""
        self._run("clear_bits", self.high, self.flags, self.high, k.PINNED)

    # --- rows change ---

    def update(
        self,
        rows: DeviceArray,
        grads: DeviceArray,
        rates: float | DeviceArray,
        *,
        step: int,
        now_ms: int,
        lsn: int,
    ) -> None:
        """One step of the group's rule on distinct rows, stamped with `now_ms` and `lsn`.

        rows: int32[n]; grads: float32[n, dim]; rates: one rate, or float32[n] on the device; step: the global
        one, or -1 for each row's own count.
        """
        same = isinstance(rates, float)
        self._launch(
            self._update,
            "update",
            rows.size * self.lanes,
            rows,
            rows.size,
            grads,
            None if same else rates,
            rates if same else 0.0,
            step,
            now_ms,
            lsn,
            self._hyper,
            self._limits,
            self.header,
            self.flags,
            self.data,
            self.stride,
        )

    # --- rows go ---

    def ensure_room(self, rows: int) -> None:
        """Have `rows` free rows: evict clean ones, then write dirty ones back. Waits for the device unless there are.

        Raises BatchTooLarge where pinned rows leave no room, and what write_back raises.
        """
        if self.free_count >= rows:
            return
        more = max(rows - self.free_count, self.capacity // 64)
        self.evict(more)
        if self.free_count < rows:
            self.write_back(max(rows - self.free_count, self.capacity // 8))
            self.evict(more)
        if self.free_count < rows:
            raise BatchTooLarge(
                f"group {self.group}: {rows} rows more do not fit into the device memory of {self.capacity} rows, "
                f"{self.capacity - self.free_count} of which are in use by the batch in hand: send smaller batches, or "
                "give the device a larger budget"
            )

    def evict(self, wanted: int) -> int:
        """Free up to `wanted` clean rows that were not used lately (CLOCK). Returns how many. Waits for the device."""
        victims = self.launcher.empty(wanted, np.int32)
        found = 0
        for _ in range(2):  # the first lap takes rows their second chance, the second lap takes them
            if found == wanted or self.high == 0:
                break
            marks = self.launcher.empty(self.high, np.int32)
            self._run("clock_marks", self.high, self.flags, self.high, self._hand, marks)
            rank = self.launcher.running_sum(marks)
            result = self.launcher.zeros(2, np.int32)
            arguments = (self.flags, self.high, self._hand, marks, rank, wanted - found, victims, result)
            self._run("clock_turn", self.high, *arguments)
            marked, steps = map(int, self.launcher.to_host(result))
            taken = min(marked, wanted - found)
            self._remove(victims[:taken])
            found += taken
            self._hand = (self._hand + steps) % self.high
        self.evictions += found
        return found

    def write_back(self, rows_max: int | None = None) -> int:
        """Hand dirty rows to write_back, in ascending order, and keep them as clean ones. Returns how many.

        rows_max: of those that are not pinned, no more than so many; None: all. Waits for the device.
        """
        mask = k.USED | k.DIRTY if rows_max is None else k.USED | k.DIRTY | k.PINNED
        rows = self._chosen(mask, k.USED | k.DIRTY, _NEVER, self.capacity if rows_max is None else rows_max)
        self._hand_down(rows)
        return int(rows.size)

    def dirty_count(self) -> int:
        """How many rows `write_back` would hand down. Waits for the device."""
        return int(self._chosen(k.USED | k.DIRTY, k.USED | k.DIRTY, _NEVER, self.capacity).size)

    def expire(self, oldest_ms: int) -> int:
        """Let go of the rows last written at `oldest_ms` or before, through write_back. Returns how many. Waits."""
        rows = self._chosen(k.USED, k.USED, oldest_ms, self.capacity)
        if rows.size:
            self._hand_down(self._chosen(k.USED | k.DIRTY, k.USED | k.DIRTY, oldest_ms, self.capacity))
            self._remove(rows)
        return int(rows.size)

    def remove(self, keys: I64) -> int:
        """Forget the rows of keys (int64[n], on the host), dirty or not. Returns how many. Waits for the device."""
        rows = self.launcher.to_host(self.find(self.launcher.to_device(keys), touch=0)[0])
        rows = np.unique(rows[rows >= 0])
        self._remove(self.launcher.to_device(rows))
        return int(rows.size)

    def records(self, rows: DeviceArray) -> U8:
        """uint8[n, record_bytes(width)] on the host: the records of rows. Waits for the device."""
        per_row = _HEADER_WORDS + self.width
        out = self.launcher.empty((rows.size, per_row), np.int32)
        first_word = RECORD_VERSION | self.group << 16
        self._run(
            *("copy_records", rows.size * per_row, rows, rows.size, per_row, self.header, self.flags, self.data),
            *(self.stride, np.uint32(first_word).astype(np.int32), self.dim, out),
        )
        host: U8 = self.launcher.to_host(out).view(np.uint8).reshape(-1, record_bytes(self.width))
        return host

    def used_rows(self) -> DeviceArray:
        """int32[n]: the rows that hold a key, ascending. Waits for the device."""
        return self._chosen(k.USED, k.USED, _NEVER, self.capacity)

    # --- inside ---

    def _pieces(self, n: int) -> list[slice]:
        # entries for the keys of a piece are claimed before it is known how many are new: there is to be room for all
        step = max(1, self.capacity // 4)
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def _hand_down(self, rows: DeviceArray) -> None:
        for start in range(0, rows.size, self.chunk_rows):
            part = rows[start : start + self.chunk_rows]
            self._write_back(self.records(part))
            self._run("change_flags", part.size, self.flags, part, part.size, k.DIRTY, 0)

    def _enter(self, keys: DeviceArray, rows: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Fill `rows`, int32[n], and pin them; those that are new are marked used, no more. Waits for the device.

        Returns the positions and the rows of the new ones.
        """
        n = keys.size
        if self.count + self._gone + n > 3 * self.index_size // 4:
            self._rebuild_index()
        at = self.launcher.empty(n, np.int64)
        won = self.launcher.empty(n, np.int32)
        self._run("claim_entries", n, self.index, self.index_size, keys, n, self.flags, at)
        self._run("find_winners", n, self.index, at, n, won)
        try:  # whatever fails, for want of memory say: no entry may stay that leads to no row
            rank = self.launcher.running_sum(won)
            taken = int(self.launcher.to_host(rank[n - 1 :])[0])
            self.ensure_room(taken)
            positions, fresh = self.launcher.empty(taken, np.int64), self.launcher.empty(taken, np.int32)
        except BaseException:
            self._run("disclaim", n, self.index, self.index_size, at, n, won)
            self._gone += n
            self.unpin()
            raise
        self._run(
            *("settle", n, self.index, keys, at, n, won, rank, self._free, self.free_count, self.header, self.flags),
            *(positions, fresh),
        )
        self._run("resolve", n, self.index, at, n, rows)
        self.free_count -= taken
        self.count += taken
        self.high = max(self.high, self.capacity - self.free_count)
        return positions, fresh

    @contextmanager
    def _filling(self, rows: DeviceArray) -> Iterator[None]:
        try:
            yield
        except BaseException:  # no entry may lead to a row with anything in it
            self._remove(rows)
            self.unpin()
            raise

    def _start(self, rows: DeviceArray, now_ms: int, lsn: int) -> None:
        threads = rows.size * ((self.width + 1) // 2)
        shape = (self.stride, self.dim, self.width)
        self._run(
            *("start_rows", threads, rows, rows.size, self.header, self.flags, self.data, *shape),
            *(self._state, now_ms, lsn, self._recipe),
        )

    def _remove(self, rows: DeviceArray) -> None:
        arguments = (self.index, self.index_size, self.header, self.flags, rows, rows.size, self._free, self.free_count)
        self._run("remove_rows", rows.size, *arguments)
        self.free_count += rows.size
        self.count -= rows.size
        self._gone += rows.size

    def _chosen(self, mask: int, wanted: int, oldest_ms: int, limit: int) -> DeviceArray:
        """int32[n]: the first `limit` rows with flags & mask == wanted, written at `oldest_ms` or before. Waits."""
        if self.high == 0:
            return self.launcher.empty(0, np.int32)
        marks = self.launcher.empty(self.high, np.int32)
        self._run("mark_rows", self.high, self.flags, self.header, self.high, mask, wanted, oldest_ms, marks)
        rank = self.launcher.running_sum(marks)
        found = min(limit, int(self.launcher.to_host(rank[self.high - 1 :])[0]))
        rows = self.launcher.empty(found, np.int32)
        self._run("collect_rows", self.high, marks, rank, self.high, limit, rows)
        return rows

    def _rebuild_index(self) -> None:
        self._run("clear_index", self.index_size + 2, self.index, self.index_size)
        self._run("enter_rows", self.high, self.index, self.index_size, self.header, self.flags, self.high)
        self._gone = 0

    def _run(self, kernel: str, threads: int, *arguments: Any) -> None:
        self._launch(TABLE, kernel, threads, *arguments)

    def _launch(self, module: Module, kernel: str, threads: int, *arguments: Any) -> None:
        self.launcher.launch(module, kernel, threads, *arguments)
