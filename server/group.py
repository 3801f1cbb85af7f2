"""One group at work: its rows in memory and on disk, found, created and expired by one set of rules.

Methods whose name begins with `_` and those that say so expect `lock` to be held. Disk reads happen outside it.
"""

import threading
from dataclasses import asdict
from typing import Any

import numpy as np

from rockbed.config import GroupConfig
from rockbed.errors import FormatTooNew, StorageCorrupt, UnknownGroup
from rockbed.guarded_lock import GuardedLock
from rockbed.parallel import in_parts
from rockbed.server.adaptive_counts import AdaptiveCounts
from rockbed.server.admission import Admission, make_admission
from rockbed.server.counters import Counters
from rockbed.server.fetched import Fetched, find_in
from rockbed.server.host import Host
from rockbed.server.recent import RecentMaximum
from rockbed.server.rules import rules_of
from rockbed.server.seen import LatestLookups
from rockbed.server.step_marks import StepMarks
from rockbed.server.tier import Moved, Tier
from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import HotTable, NeedSpace
from rockbed.storage.record import FLAG_FRESH, RECORD_VERSION, disk_order, encode_keys, headers_of, record_bytes
from rockbed.types import F32, I64, U8, Bool

SPACE_TRIES = 128
"""A call gives up when what `make_space` returned adds up to it: that it made room itself 8 times."""


class Group:
    """A group's rows. `table` is its hot tier; rows/ holds what was written back."""

    def __init__(self, config: GroupConfig, host: Host, *, on_disk: bool) -> None:
        self.number = config.group
        self.lock = GuardedLock()
        self.counters = Counters()
        self._counting = threading.Lock()
        self.latest_lookups = LatestLookups()
        self.is_growing = False  # the last lookup found keys for which rows had to be made at once
        self.gradient_norm = RecentMaximum()
        self.host = host
        self.optimizer, self.schedule, self.initializer = rules_of(config)
        self.config = config
        self.table = HotTable(config.dim, self.optimizer.state_width(config.dim), host.budget)
        self.record_bytes = record_bytes(self.table.width)
        self.initial_state: F32 = self.optimizer.initial_state(config.dim)
        self.admission: Admission | None = self._make_admission(config)
        self.admission_changed = False  # since its counts were saved
        self.adaptive = AdaptiveCounts.of(config)
        self.global_step = 0
        self.step_marks = StepMarks()
        self.lives_longer = False  # than when it was opened: RocksDB would drop its rows by the old TTL
        self._on_disk = on_disk
        self.dropped = False  # for ever: a group of the same number is another
        self.generation = 0  # LSN of its creation, so that no other one of its number has the same
        self.tier: Tier | None = None  # its rows on a device, if it keeps any there: above those in `table`

    def _make_admission(self, config: GroupConfig) -> Admission | None:
        if config.admission is None:
            return None
        return make_admission(config.admission, group=config.group, seed=config.seed)

    def rehearse(self, config: GroupConfig) -> None:
        """Raise what `change` would raise: the journal must not hold a config that no replay can take."""
        rules_of(config)
        AdaptiveCounts.of(config)
        if config.admission != self.config.admission:
            self._make_admission(config)

    def change(self, config: GroupConfig) -> None:
        """Take another config of the same kind (checked by the engine). With the lock held."""
        self.optimizer, self.schedule, self.initializer = rules_of(config)
        self.initial_state = self.optimizer.initial_state(config.dim)
        expired, before_ms = self.expires(), self.ttl_ms
        if config.admission != self.config.admission:
            before, self.admission = self.admission, self._make_admission(config)
            if before is not None and self.admission is not None:
                self.admission.restore(before.state())  # takes over the counts that mean something to the new rule
            self.admission_changed = True
        if self.adaptive is not None and config.variable != self.config.variable:
            self.adaptive = self.adaptive.changed_to(config)
        self.config = config
        self.lives_longer |= expired and not 0 < self.ttl_ms <= before_ms

    @property
    def counts_changed(self) -> bool:
        """Whether lookups were counted since the counts were saved."""
        return self.admission_changed or (self.adaptive is not None and self.adaptive.changed)

    def stepped(self, step: int, lsn: int) -> None:
        """A push at a global step was applied, journal entry `lsn`. With the lock held."""
        self.global_step = step
        self.step_marks.note(step, lsn)

    def must_exist(self) -> None:
        """Raise UnknownGroup for a group that was dropped since the caller found it. With the lock held."""
        if self.dropped:
            raise UnknownGroup(f"group {self.number} was dropped: open a PyEmbedding on it to begin it anew")

    def must_be_in_memory(self) -> None:
        """`must_exist`, and raise Moved for a group whose rows are looked up on a device by now. With the lock held."""
        self.must_exist()
        if self.tier is not None:
            raise Moved

    # --- time ---

    @property
    def ttl_ms(self) -> int:
        """Milliseconds that a row lives after it was last written; 0 = for ever."""
        ttl_s = self.host.store_ttl_s if self.config.ttl_s is None else self.config.ttl_s
        return max(1, round(ttl_s * 1000)) if ttl_s else 0

    def expires(self) -> bool:
        """Whether RocksDB may drop the group's rows by the store's own TTL."""
        # a group that lives longer than the store's TTL is left to the sweeper
        return 0 < self.ttl_ms <= round(self.host.store_ttl_s * 1000)

    def oldest_ms(self, now_ms: int) -> int:
        """A row last written at this time or before is expired: now - update_time >= ttl."""
        return now_ms - self.ttl_ms if self.ttl_ms else -(2**62)

    def expired(self, rows: I64, now_ms: int) -> I64:
        """The positions of found rows that have expired: int64[m]. With the lock held or shared."""
        positions: I64 = np.empty(rows.shape[0] if self.ttl_ms else 0, np.int64)
        if not self.ttl_ms:
            return positions
        return positions[: k.expired(self.table.header, rows, self.oldest_ms(now_ms), positions)]

    def expire(self, keys: I64, rows: I64, now_ms: int, *, restart: bool) -> int:
        """Deal with found rows that have expired: begin their life anew, or treat them as absent (rows[i] = -1).

        Returns how many positions became absent.
        """
        positions = self.expired(rows, now_ms)
        if not positions.size:
            return 0
        if not restart:
            rows[positions] = -1
            return positions.size
        distinct, first = np.unique(rows[positions], return_index=True)
        self._begin(keys[positions][first], distinct, now_ms, self.host.last_lsn())
        self.counters.expired += distinct.size
        return 0

    def _begin(self, keys: I64, rows: I64, now_ms: int, lsn: int) -> None:
        config, table = self.config, self.table

        def begin(part: slice) -> None:
            table.start(keys[part], rows[part], self.initial_state, now_ms, lsn)
            self.initializer.fill(table.data, rows[part], keys[part], config.dim, config.seed, self.number)

        in_parts(rows.size, begin)

    # --- disk ---

    @property
    def may_be_on_disk(self) -> bool:
        """Whether a row that is not in memory can be in rows/: a new group has all in memory until it evicts one."""
        return self._on_disk or self.table.evictions > 0

    def fetch(self, keys: I64) -> Fetched:
        """Read rows from disk, in its order. keys: int64[n], distinct. Needs no lock.

        Raises StorageCorrupt, FormatTooNew where a record is not what the group's config says.
        """
        if not self.may_be_on_disk or keys.size == 0:
            return Fetched(keys, np.empty(0, np.int64), np.empty((0, self.record_bytes), np.uint8))
        order = disk_order(keys)
        found, records = self.host.files.get(encode_keys(self.number, keys[order]), self.record_bytes)
        found = order[found]
        self.check_records(records, keys[found])
        return Fetched(keys, found, records)

    def check_records(self, records: U8, keys: I64) -> None:
        """Raise unless each record is one of this group, with this dim and key. Needs no lock."""
        heads = headers_of(records)
        if (heads["version"] > RECORD_VERSION).any():
            raise FormatTooNew(
                f"group {self.number}: records of format {heads['version'].max()}, this Rockbed reads up to "
                f"{RECORD_VERSION}: open the store with a newer Rockbed"
            )
        wrong = (heads["group"] != self.number) | (heads["dim"] != self.config.dim) | (heads["key"] != keys)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise StorageCorrupt(
                f"group {self.number}, key {keys[i]}: its record says group {heads['group'][i]}, key "
                f"{heads['key'][i]}, dim {heads['dim'][i]} instead of {self.config.dim}. The store is damaged: restore "
                "a checkpoint"
            )

    # --- rows for keys that are not in memory ---

    def place(self, fetched: Fetched, create: Bool, now_ms: int) -> tuple[I64, I64]:
        """The row of each key: as another thread placed it, loaded from disk, created where `create`, or -1.

        fetched.keys: distinct. With the lock held. Raises NeedSpace, with nothing changed.
        Returns the rows, int64[n], and the positions of keys whose row was created, int64[m].
        """
        table, keys = self.table, fetched.keys
        rows, _ = table.find(keys)
        absent = rows < 0
        alive = headers_of(fetched.records)["update_time"] > self.oldest_ms(now_ms)
        load = fetched.found[alive & absent[fetched.found]]
        make = absent & create
        make[load] = False
        made = np.flatnonzero(make)
        with table.pinned(rows):
            table.ensure_room(load.size + made.size)
        self._expire_placed(keys, rows, create, now_ms)
        if load.size:
            records = fetched.records[alive & absent[fetched.found]]
            rows[load] = table.allocate(keys[load])
            table.load(records, rows[load], (headers_of(records)["flags"] & FLAG_FRESH).astype(np.uint8))
            self.counters.disk_hits += load.size
        if made.size:
            rows[made] = table.allocate(keys[made])
            self._begin(keys[made], rows[made], now_ms, self.host.last_lsn())
            stale = np.zeros(keys.size, np.bool_)
            stale[fetched.found[~alive]] = True
            made = made[~stale[made]]
            self.counters.expired += int((stale & make).sum())
            self.counters.inserts += made.size
            self.counters.rows += made.size
        return rows, made

    def _expire_placed(self, keys: I64, rows: I64, create: Bool, now_ms: int) -> None:
        old = np.flatnonzero(rows >= 0) if self.ttl_ms else np.empty(0, np.int64)
        for restart in (True, False):
            part = old[create[old] == restart]
            if part.size:
                found = rows[part]
                self.expire(keys[part], found, now_ms, restart=restart)
                rows[part] = found

    def fetched_now(self, keys: I64, fetched: Fetched, left: int) -> Fetched:
        """What `fetch` would give for keys, as far as they are not in memory. With the lock held.

        keys: int64[n], distinct and ascending, as those of `fetched` are, which was read after `table.left` was `left`.
        What it lacks is read, and what may be stale: a row that came to memory and left it again since may be newer.
        """
        at, good = find_in(fetched.keys, keys)
        if self.table.left != left:
            good &= ~self.table.may_have_left(keys, left)
        if good.all():
            return fetched if keys.size == fetched.keys.size else fetched.part(at)
        older, newer = np.flatnonzero(good), np.flatnonzero(~good)
        return fetched.part(at[older]).joined(older, self.fetch(keys[newer]), newer)

    # --- what lookups and pushes share ---

    def count_lookup(self, keys: int, hits: int) -> None:
        """Count a lookup of so many keys, so many of which had their row in memory. With the lock held or shared."""
        with self._counting:
            self.counters.lookup_keys += keys
            self.counters.memory_hits += hits

    @property
    def inserts_at_once(self) -> bool:
        """Whether there is a short way for new keys: nothing can be on disk, nothing has to be admitted."""
        return not self.may_be_on_disk and self.admission is None and self.config.padding_key is None

    def insert_at_once(self, keys: I64, rows: I64, missing: int, now_ms: int) -> bool:
        """The short way for new keys, where there is one and room in memory. rows: -1 at `missing` positions, filled
        then. With the lock held."""
        if not self.inserts_at_once:
            return False
        try:
            with self.table.pinned(rows):
                new = self.table.insert(keys, rows, missing)
        except NeedSpace:
            return False
        self._begin(keys[new], rows[new], now_ms, self.host.last_lsn())
        self.counters.inserts += new.size
        self.counters.rows += new.size
        return True

    def not_padding(self, keys: I64, positions: I64) -> I64:
        padding = self.config.padding_bits
        if padding is None:
            return positions
        kept: I64 = positions[keys[positions] != padding]
        return kept

    def hide_padding(self, keys: I64, rows: I64) -> int:
        # a key may have a row from the time before it became the padding key. Returns how many positions were hidden
        padding = self.config.padding_bits
        if padding is None:
            return 0
        hidden = (keys == padding) & (rows >= 0)
        rows[hidden] = -1
        return int(hidden.sum())

    # --- what the store keeps of a group ---

    def snapshot(self) -> dict[str, Any]:
        """What the catalog holds of the group."""
        return {
            "config": self.config.to_json(),
            "rows": self.counters.rows,
            "global_step": self.global_step,
            "step_marks": self.step_marks.snapshot(),
            "generation": self.generation,
        }

    def statistics(self) -> dict[str, Any]:
        """Counters and sizes. Takes the lock."""
        table = self.table
        dirty = table.dirty_count()  # looks at every row in memory: calls need not wait for that
        with self.lock:
            device_rows, device_dirty = (0, 0) if self.tier is None else self.tier.statistics()
            return {
                "dim": self.config.dim,
                "optimizer": self.config.optimizer["name"],
                **asdict(self.counters),
                "gradient_norm_max": self.gradient_norm.value(),
                "memory_rows": table.count,
                "memory_bytes": table.memory_bytes(),
                "dirty_rows": dirty,
                "device": self.tier is not None,
                "device_rows": device_rows,
                "device_dirty_rows": device_dirty,
                "evictions": table.evictions,
                "admission_bytes": self.admission.memory_bytes() if self.admission else 0,
                **self._of_adaptive(),
            }

    def _of_adaptive(self) -> dict[str, Any]:
        if self.adaptive is None:
            return {}
        return {"adaptive": {"row_bytes": self.record_bytes, **self.adaptive.statistics()}}
