"""The store as a whole: groups, journal, write-back, recovery. No gRPC here: a daemon and the embedded client call it.

Locks, in the order in which they are taken: `WriteBack.mutex`, `groups_lock`, groups' locks by ascending number, the
device's, the journal's own.
"""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rockbed.config import GroupConfig, StoreConfig
from rockbed.errors import (
    GroupConflict,
    ReadOnlyStorage,
    StorageClosed,
    StorageFailed,
    UnknownGroup,
    WrongShape,
)
from rockbed.interrupts import Uninterrupted
from rockbed.parallel import spread
from rockbed.requests import Lookup, Request
from rockbed.server import admission_files, grouping, many_lookups, opening, push, space, tiers
from rockbed.server.clients import Clients
from rockbed.server.device_pushes import DevicePrepared
from rockbed.server.feature_gradients import FeatureGradients
from rockbed.server.fitting import called
from rockbed.server.group import Group
from rockbed.server.kept_batches import KeptBatches
from rockbed.server.removals import Removals
from rockbed.server.stall import Stall
from rockbed.storage.catalog import Catalog
from rockbed.storage.entries import push_kind, push_parts
from rockbed.storage.hot import Budget, NeedSpace
from rockbed.storage.journal import Journal
from rockbed.storage.writeback import WriteBack
from rockbed.types import F32, I64

_Item = push.Share | FeatureGradients
_Part = tuple[Group, _Item, int]  # of a push, with its global step or -1


def _close_at_exit(engine: "weakref.ref[Engine]") -> None:
    found = engine()
    if found is not None:
        found.close()


class Engine:
    """An open store directory. Thread-safe. `clock` gives seconds since 1970; no other clock decides about rows."""

    def __init__(
        self, directory: str | os.PathLike[str], config: StoreConfig, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.directory = Path(directory).absolute()  # whoever changes the working directory means other paths
        self.config = config
        self.groups: dict[int, Group] = {}
        self.clients = Clients()
        self.store_ttl_s = config.ttl_s
        self.budget = Budget(config.memory_budget)
        self.journal_stall, self.memory_stall = Stall(), Stall()
        self.device = tiers.opened(config)  # before anything is made in the directory
        self._clock = clock
        self._latest_ms = 0
        self.opened_here: set[int] = set()  # groups that someone of this process has opened
        self.groups_lock = threading.Lock()  # of creating, changing and dropping; taken after WriteBack.mutex
        self.dropped: set[int] = set()  # groups whose end the catalog does not have yet
        self.removals = Removals()
        self.kept = KeptBatches()  # a server has limits of its own for them
        self._closed = False
        self._failed = ""  # why memory is not what the journal says, if it is not
        self.on_failure: Callable[[], None] = lambda: None  # called when that happens, with locks held: must not wait
        self._close_lock = threading.Lock()
        self._process = os.getpid()
        self._background: Any = None
        self.background_error: Exception | None = None
        self.flushed_lsn = 0
        self.repaired = False  # the journal was damaged, and cut off there
        self.lock = opening.lock(self.directory, config)
        try:
            # RocksDB reckons with the system's clock: under another one its TTL must not drop anything
            rocksdb_ttl_s = int(-(-config.ttl_s // 1)) if clock is time.time else 0
            self.files = opening.open_rows(self.directory, config, rocksdb_ttl_s)
            try:
                self.journal = Journal(
                    self.directory / "journal", fsync=config.fsync, bytes_max=config.journal_bytes_max
                )
                self.write_back = WriteBack(self.files, self.journal.sync, self.check_open)
                try:
                    opening.recover(self)
                except BaseException:
                    self.journal.close()
                    raise
            except BaseException:
                self.files.close()
                raise
            self.hold_compaction(False)
        except BaseException:
            self.lock.release()
            raise
        if not config.read_only:
            from rockbed.server.background import Background

            self._background = Background(self)
        # left open until the interpreter ends, threads of RocksDB's and ours would still run while it is torn down
        self._at_exit = partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)

    # --- what a group asks its host ---

    def now_ms(self) -> int:
        """The clock in milliseconds, held at its latest value where it goes backwards."""
        self._latest_ms = max(self._latest_ms, int(self._clock() * 1000))
        return self._latest_ms

    def seen_time(self, time_ms: int) -> None:
        """Let `now_ms` never be earlier than this."""
        self._latest_ms = max(self._latest_ms, time_ms)

    def last_lsn(self) -> int:
        """The LSN of the newest journal entry."""
        return self.journal.last_lsn

    def make_space(self, need: NeedSpace) -> int:
        """See space.make_space."""
        return space.make_space(self, need)

    # --- groups ---

    def open_group(self, config: GroupConfig, *, by_name: bool = False, used: bool = True) -> Group:
        """See grouping.open_group."""
        return grouping.open_group(self, config, by_name=by_name, used=used)[0]

    def alter_group(self, config: GroupConfig, generation: int = 0) -> Group:
        """See grouping.alter_group."""
        return grouping.alter_group(self, config, generation)

    def group(self, number: int, generation: int = 0) -> Group:
        """The group of this number, which must be of this generation unless that is 0. Raises UnknownGroup."""
        try:
            group = self.groups[number]
        except KeyError:
            self.check_open()  # a closed engine has no groups
            known = ", ".join(map(str, sorted(self.groups))) or "none"
            raise UnknownGroup(
                f"group {number!r} does not exist in {self.directory} (known: {known}): open a PyEmbedding on it"
            ) from None
        if generation not in (0, group.generation):
            raise UnknownGroup(
                f"{called(group.config)} of {self.directory} is another one than was opened: that one was dropped, or "
                "restore_from has put a store without it in the place. Open it anew to use what is there now"
            )
        return group

    # --- rows ---

    def lookup(self, number: int, keys: I64, out: F32, *, train: bool, generation: int = 0) -> None:
        """Fill out float32[n, dim] with the rows of keys int64[n]. See lookups.lookup."""
        self.check_open()
        if train:
            self.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
        tiers.lookup(self, self.group(number, generation), keys, out, train=train)

    def lookup_many(self, lookups: Sequence[Lookup], *, train: bool) -> None:
        """Several of them. See many_lookups.lookup_many."""
        self.check_open()
        if train:
            self.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
        many_lookups.lookup_many(self, lookups, train=train)

    def prefetch(self, number: int, keys: I64, generation: int = 0) -> tuple[int, int]:
        """Bring the rows of keys int64[n] from disk into memory. See lookups.prefetch."""
        self.check_open()
        return tiers.prefetch(self, self.group(number, generation), keys)

    def apply_gradients(self, items: Sequence[_Item], request: Request | None = None) -> bool:
        """Apply gradients to one or several groups, all or nothing, durably before it returns.

        items: a group at most once. Returns whether it was applied: False for a request that had been applied before.
        Raises UnknownGroup, WrongShape, DimMismatch, GradientNotFinite, InvalidConfig (global step), BatchTooLarge,
        StorageFull and the disk's other errors; then nothing was applied.
        """
        self.check_open()
        self.must_be_writable("apply gradients")
        numbers = [item.group for item in items]
        if len(set(numbers)) < len(numbers):
            raise WrongShape(
                f"a group may stand in a push once, the groups sent are {numbers}: concatenate its keys and gradients"
            )
        shares = [
            (self.group(item.group, item.generation), item) for item in sorted(items, key=lambda item: item.group)
        ]
        steps = push.validated(shares)
        parts = [(group, item, step) for (group, item), step in zip(shares, steps, strict=True)]
        self.wait_for_journal_room()
        return tiers.where_rows_are(lambda: space.with_space(self, lambda: self._apply(parts, request), "the push"))

    def wait_for_journal_room(self) -> None:
        """Hold a change back while the journal is at its limit. Raises StorageFull."""
        if self._background is not None:
            self._background.wait_for_journal_room()

    def _apply(self, parts: list[_Part], request: Request | None) -> bool:
        in_memory, above = tiers.split(self, parts)
        seen = [push.seen_of(group, item) for group, item, _ in in_memory]
        ahead = [push.read_ahead(group, item.keys, at) for (group, item, _), at in zip(in_memory, seen, strict=True)]
        if above is not None:
            above.read_ahead()
        now_ms = self.now_ms()
        prepared: list[push.Prepared | DevicePrepared] = []
        given: list[tuple[push.Prepared, push.Share]] = []
        done = False
        with Uninterrupted(), ExitStack() as locks:
            for group, _, _ in parts:
                locks.enter_context(group.lock)
                group.must_exist()
            if request is not None and self.clients.applied(request):
                return False
            try:
                for (group, item, step), at, read in zip(in_memory, seen, ahead, strict=True):
                    mine = push.prepare(group, item, step, at, read, now_ms)
                    prepared.append(mine)
                    given.append((mine, item))
                push.combine_all(given)
                if above is not None:
                    prepared += above.prepare(now_ms)
                touched = [p for p in prepared if p.rows.size]
                sections = [p.section() for p in touched]
                if sections or request is not None:
                    lsn = self.journal.append(push_kind(sections), now_ms, push_parts(request, sections))
                    done = True  # it is durable: from here on nothing may fail
                    with self.must_succeed(lsn):
                        spread([(p.rows.size, partial(p.apply, now_ms, lsn)) for p in touched])
                        if request is not None:
                            self.clients.record(request, now_ms)
                done = True
            finally:
                for p in prepared:
                    p.release(undo=not done)
        return True

    # --- durability ---

    def flush(self) -> int:
        """Write every dirty row to rows/ and trim the journal. Returns the LSN up to which rows/ holds everything."""
        self.must_be_writable("flush")
        with self.quiet():
            began, target = time.monotonic(), self.journal.last_lsn
            self.journal.rotate()
            for group in list(self.groups.values()):
                space.write_group(self, group)
            self.check_open()  # a push that failed while this waited for it has to stay in the journal
            self.files.flush()
            admission_files.save(self.directory / "admission", self.groups.values())
            catalog = self.catalog(target)
            self.journal.sync()  # the requests that the catalog says were applied must be as durable as the catalog
            catalog.write(self.directory)
            self.flushed_lsn, self.write_back.clean_at = target, began
            self.dropped.clear()
            self.journal.trim(target)
            return target

    def compact(self) -> None:
        """Have RocksDB rewrite all of its files. Raises GroupConflict where that would drop rows it should keep."""
        self.check_open()
        self.must_be_writable("compact")
        self.flush()  # so that no replay needs what has expired
        kept = [group.number for group in list(self.groups.values()) if group.lives_longer]
        if kept and self.files.drops_expired:
            raise GroupConflict(
                f"the ttl of group {kept[0]} was raised since the storage was opened, and a compaction would still go "
                "by the old one: close the storage, open it again, and compact then"
            )
        self.files.compact()

    def has_changed(self) -> bool:
        """Whether there is anything that the last flush has not written."""
        if self.journal.last_lsn > self.flushed_lsn:
            return True
        # what lookups change is in no journal entry
        return any(g.counts_changed or g.table.dirty_count() for g in list(self.groups.values()))

    def catalog(self, flushed_lsn: int) -> Catalog:
        """What the store is now, for a journal that is replayed from `flushed_lsn` on."""
        groups = {number: group.snapshot() for number, group in sorted(self.groups.items())}
        return Catalog(flushed_lsn, self._latest_ms, groups, self.clients.snapshot(self._latest_ms))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep write-back, sweeper, eviction by write-back and the end of `close` away: for work on the directory as a
        whole. Raises StorageClosed."""
        with self.write_back.mutex:
            self.check_open()  # here: it may have been closed while this waited
            yield

    @contextmanager
    def must_succeed(self, lsn: int) -> Iterator[None]:
        """For what follows a journal entry: should it fail after all, the store is not used any more.

        Nothing is written back either, where a row could say that it has seen the entry: it is replayed when the store
        is opened again.
        """
        try:
            yield
        except BaseException as error:
            self._failed = (
                f"journal entry {lsn} of {self.directory} is durable, but could not be applied in memory ({error!r}): "
                "close the storage and open it again, which applies it"
            )
            self.on_failure()
            raise StorageFailed(self._failed) from error

    def hold_compaction(self, hold: bool) -> None:
        """Keep RocksDB from dropping records by its TTL, or let it.

        Held while a replay could need a record that has expired since (`background`), and for the rest of a session
        in which rows were given a longer life than RocksDB was opened with.
        """
        self.files.hold_compaction(hold or any(group.lives_longer for group in list(self.groups.values())))

    # --- end ---

    def check_open(self) -> None:
        """Raise StorageClosed."""
        if self._closed:
            raise StorageClosed(f"the storage of {self.directory} is closed: open another PyStorage")
        if self._failed:
            raise StorageFailed(self._failed)
        if os.getpid() != self._process:
            raise StorageClosed(
                f"the storage of {self.directory} belongs to process {self._process}, this is {os.getpid()}: a store "
                "cannot be used across fork(). Open it in the process that uses it (start workers with the 'spawn' "
                "method)"
            )

    def must_be_writable(self, doing: str) -> None:
        """Raise ReadOnlyStorage."""
        if self.config.read_only:
            raise ReadOnlyStorage(f"{self.directory} is open with read_only=True and cannot {doing}")

    def reopened(self) -> "Engine":
        """What is in the directory now, opened as this engine was, which is closed."""
        engine = Engine(self.directory, self.config, clock=self._clock)
        tiers.reopen(engine, self.opened_here)
        engine.on_failure = self.on_failure
        engine.kept = self.kept.renewed()
        return engine

    def close(self) -> None:
        """Flush, stop the background thread, let go of the directory. May be called twice."""
        if os.getpid() != self._process:
            return
        with self._close_lock:
            if self._closed:
                return
            if self._background is not None:
                self._background.stop()
            try:
                if not self.config.read_only and not self._failed and self.has_changed():
                    self.flush()
            finally:
                self._closed = True  # nobody begins any more
                with ExitStack() as last:  # whatever fails, the directory is let go of
                    last.callback(atexit.unregister, self._at_exit)
                    last.callback(self.lock.release)
                    last.callback(self._let_go_of_groups)
                    last.callback(self.kept.clear)
                    last.callback(self.files.close)
                    last.callback(self.journal.close)
                    # once the directory is let go of, it can be another store's
                    last.callback(self.write_back.close)

    def _let_go_of_groups(self) -> None:
        for group in list(self.groups.values()):
            tiers.let_go(group)
        self.groups.clear()
