"""Dropping a group: its settings, its rows and everything counted about it."""

import logging
from typing import TYPE_CHECKING

from rockbed.errors import RockbedError
from rockbed.server import admission_files, tiers
from rockbed.server.group import Group
from rockbed.storage.entries import Kind, drop_parts
from rockbed.storage.files import os_errors

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_log = logging.getLogger("rockbed")


def drop_group(engine: "Engine", number: int, generation: int = 0) -> int:
    """Drop a group for good, durably before it returns. Returns how many rows it had, as counted.

    generation: as of Engine.group.

    Whoever has the group open gets UnknownGroup from then on; the number may be used for a new group at once.
    Raises UnknownGroup, ReadOnlyStorage, StorageFull and the disk's other errors; then the group is as it was.
    """
    engine.must_be_writable("drop a group")
    # All of it under both locks: a replay that finds the entry erases what rows/ has of this number, so nothing of a
    # new group may get there before the catalog is beyond the entry.
    with engine.quiet(), engine.groups_lock:
        group = engine.group(number, generation)
        rows = group.counters.rows
        with group.lock:
            lsn = engine.journal.append(Kind.DROP, engine.now_ms(), drop_parts(number))
            with engine.must_succeed(lsn):
                engine.journal.sync()  # RocksDB may put deletions on the disk at any time: the journal goes first
                erase(engine, group)
        try:
            engine.flush()
        except RockbedError as error:
            # it is dropped all the same, and whoever makes a new group of this number flushes first
            _log.warning("rockbed: group %d of %s is dropped, but not yet flushed: %s", number, engine.directory, error)
        return rows


def erase(engine: "Engine", group: Group) -> None:
    """Take a group out of memory and rows/. With WriteBack.mutex, `groups_lock` and the group's lock held, or while the
    journal is replayed."""
    number = group.number
    group.dropped = True
    engine.dropped.add(number)
    del engine.groups[number]
    engine.opened_here.discard(number)
    engine.removals.forget(number)
    engine.files.delete_group(number)
    group.table.give_all_back()
    tiers.let_go(group)
    if not engine.config.read_only:
        with os_errors(f"removing the counts of group {number}"):
            admission_files.remove(engine.directory / "admission", number)
