"""Opening a store: the lock, the directories, the catalog, and the replay of what the journal holds beyond it."""

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rockbed.config import GroupConfig, StoreConfig
from rockbed.errors import JournalCorrupt, StorageCorrupt, StoreNotFound, StorePathInvalid
from rockbed.server import admission_files, dropping, putting, removal, replaying
from rockbed.server.group import Group
from rockbed.server.space import with_space
from rockbed.server.step_marks import StepMarks
from rockbed.storage.catalog import Catalog
from rockbed.storage.checkpoint import PARTS, is_store
from rockbed.storage.entries import Kind, read_delete, read_drop, read_group, read_push, read_put
from rockbed.storage.files import DirectoryLock, os_errors
from rockbed.storage.rows import RowFiles
from rockbed.storage.segment import Entry, cut_off, read_segment, segment_files, set_aside, truncate

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_log = logging.getLogger("rockbed")

HOLD_COMPACTION_S = 1800  # after the last flush: then RocksDB's TTL has to wait for the next one
_LOST_ENTRIES = 1 << 32  # LSNs left out after a repair: more than a journal within its limit can hold
_OWN = {"LOCK", *PARTS}


def lock(directory: Path, config: StoreConfig) -> DirectoryLock:
    """Lock the directory, creating it where it is new.

    Raises StorePathInvalid, StoreNotFound, StoreLocked, StorePermission.
    """
    with os_errors(f"opening {directory}"):
        if directory.exists() and not directory.is_dir():
            raise StorePathInvalid(f"{directory} is a file: give PyStorage the path of a directory")
        new = not directory.exists() or not any(directory.iterdir())
        if config.read_only and new:
            raise StoreNotFound(f"{directory} holds no store and read_only=True does not make one: check the path")
        if not new and not is_store(directory):
            strange = sorted(p.name for p in directory.iterdir() if p.name not in _OWN and p.name != "catalog.json.new")
            if strange:
                raise StorePathInvalid(
                    f"{directory} is no store and not empty (it holds {', '.join(strange[:3])}): give PyStorage a new "
                    "directory"
                )
            if any((directory / part).is_dir() and any((directory / part).iterdir()) for part in PARTS):
                raise StorageCorrupt(
                    f"{directory} has rows or a journal, but its catalog.json is missing: restore a checkpoint"
                )
        if not config.read_only:
            directory.mkdir(parents=True, exist_ok=True)
    held = DirectoryLock(directory, shared=config.read_only)
    try:
        if not config.read_only:
            with os_errors(f"preparing {directory}"):
                for part in PARTS:
                    (directory / part).mkdir(exist_ok=True)
            if not is_store(directory):
                Catalog().write(directory)
        return held
    except BaseException:
        held.release()
        raise


def open_rows(directory: Path, config: StoreConfig, rocksdb_ttl_s: int) -> RowFiles:
    """Open rows/. Raises StorageCorrupt, StoreLocked and the disk's errors."""
    # read first: the catalog of a newer format says so more clearly than RocksDB could
    catalog = Catalog.read(directory)
    if catalog.flushed_lsn > 0 and not (directory / "rows" / "CURRENT").is_file():
        # RocksDB would make an empty database there, and delete the table files as obsolete
        raise StorageCorrupt(
            f"{directory} has lost rows/ or its CURRENT file. Nothing was changed; restore a checkpoint"
        )
    if rocksdb_ttl_s:
        # rows of a group that has come to live longer than the store were stamped when they did not
        own = [stored["config"]["ttl_s"] for stored in catalog.groups.values()]
        rocksdb_ttl_s = 0 if 0 in own else max(rocksdb_ttl_s, *(math.ceil(ttl_s or 0) for ttl_s in [0, *own]))
    if rocksdb_ttl_s:
        # A push that is not flushed yet may have found a row alive that has expired since; a replay must find it too.
        # See Background, which flushes or holds compaction long before this is over.
        rocksdb_ttl_s = 2 * rocksdb_ttl_s + 2 * HOLD_COMPACTION_S
    return RowFiles(
        directory / "rows", ttl_s=rocksdb_ttl_s, cache_bytes=config.block_cache_bytes, read_only=config.read_only
    )


def recover(engine: "Engine") -> None:
    """Bring groups, clients and rows to the state of the last acknowledged change. Raises JournalCorrupt."""
    catalog = Catalog.read(engine.directory)
    engine.flushed_lsn = catalog.flushed_lsn
    engine.seen_time(catalog.clock_ms)
    engine.clients.load(catalog.clients)
    for number, stored in catalog.groups.items():
        group = Group(GroupConfig.from_json(stored["config"]), engine, on_disk=engine.files.has_any(number))
        group.counters.rows = stored["rows"]
        group.global_step = stored["global_step"]
        group.step_marks = StepMarks(stored.get("step_marks", ()))
        group.generation = stored.get("generation", 0)
        engine.groups[number] = group
    admission_files.load(engine.directory / "admission", engine.groups.values())
    if not engine.config.read_only:
        engine.journal.sync_files()
    last_lsn = _replay(engine, catalog.flushed_lsn)
    for group in engine.groups.values():
        group.generation = group.generation or 1  # made before generations were kept: no later one is the first entry
    if engine.config.read_only:
        engine.journal.last_lsn = last_lsn
    else:
        engine.journal.open_for_append(last_lsn)
        engine.journal.trim(catalog.flushed_lsn)  # a kill, or a power cut, may have come before that
        if engine.repaired:
            engine.flush()  # from here on nothing needs the entries between


def _replay(engine: "Engine", flushed_lsn: int) -> int:
    """Apply the entries after `flushed_lsn`; returns the last one's LSN, or where to go on after some were lost."""
    segments = segment_files(engine.directory / "journal")
    used = _in_use(segments)
    last = flushed_lsn
    for i, (first, path) in enumerate(segments):
        until = segments[i + 1][0] if i + 1 < used else None
        if until is not None and until <= flushed_lsn + 1:
            continue
        end, lsn = 0, first  # of the entries read
        try:
            if first > last + 1:
                raise JournalCorrupt(
                    f"the journal of {engine.directory} lacks the entries {last + 1} to {first - 1} (before "
                    f"{path.name}). Nothing was changed; restore a checkpoint with PyStorage.restore, or open with "
                    "repair=True to go without them (what follows them is set aside in journal/damaged)"
                )
            for end, entry in read_segment(first, path, until):  # noqa: B007 - used after the loop
                lsn = entry.lsn + 1
                if entry.lsn > last:
                    apply_entry(engine, entry)
                    last = entry.lsn
        except JournalCorrupt as error:
            lost = first <= last + 1 and cut_off(segments[i:], lsn)
            if not lost and not engine.config.repair:
                raise
            if lost:
                _log.warning(
                    "rockbed: %s: the machine stopped before entry %d of the journal was on the disk (fsync=%r), and "
                    "the store goes on without it and those after it: %s",
                    engine.directory,
                    lsn,
                    engine.config.fsync,
                    error,
                )
            if engine.config.read_only:
                return last
            set_aside(engine.directory / "journal", path, end, [p for _, p in segments[i + 1 :]])
            engine.repaired = True
            # rows/ may hold rows that have seen entries which are lost now: new entries must be younger than those
            return last + _LOST_ENTRIES
        if i + 1 == used and end < path.stat().st_size:
            # cut short, by a crash or a power cut: what follows was begun after it and holds nothing
            if not engine.config.read_only:
                truncate(path, end)
                for _, empty in segments[used:]:
                    empty.unlink()
            break
    return last


def _in_use(segments: list[tuple[int, Path]]) -> int:
    """How many segments there are up to the last that holds a whole entry; at least one."""
    for i in range(len(segments), 1, -1):
        try:
            if next(read_segment(*segments[i - 1], until=None), None) is not None:
                return i
        except JournalCorrupt:
            return i
    return 1


def apply_entry(engine: "Engine", entry: Entry) -> None:
    """Apply one journal entry to the rows that have not seen it."""
    engine.seen_time(entry.time_ms)
    engine.journal.last_lsn = entry.lsn
    if entry.kind in (Kind.PUSH, Kind.BAG_PUSH):
        request, sections = read_push(entry.payload)
        for section in sections:
            replay = partial(replaying.replay, engine.group(section.group), section, entry.time_ms, entry.lsn)
            with_space(engine, replay, f"replaying the journal of {engine.directory}")
        if request is not None:
            engine.clients.record(request, entry.time_ms)
    elif entry.kind == Kind.DELETE:
        number, keys, _ = read_delete(entry.payload)
        removal.replay(engine, engine.group(number), np.array(keys), entry.lsn)
    elif entry.kind in (Kind.PUT, Kind.COPY):
        stored = read_put(entry.payload)
        group = engine.group(stored.group)
        with_space(
            engine, partial(putting.replay, group, stored, entry.lsn), f"replaying the journal of {engine.directory}"
        )
        if entry.kind == Kind.COPY and group.adaptive is not None:
            group.adaptive.copied(stored.keys.size, entry.lsn)
    elif entry.kind == Kind.DROP:
        dropping.erase(engine, engine.group(read_drop(entry.payload)))
    elif entry.kind == Kind.GROUP:
        config = GroupConfig.from_json(json.loads(read_group(entry.payload)))
        known = engine.groups.get(config.group)
        if known is not None:
            known.change(config)
        else:
            known = engine.groups[config.group] = Group(config, engine, on_disk=engine.files.has_any(config.group))
        # a catalog may know a group that was just being created, and not its entry
        known.generation = known.generation or entry.lsn
    else:
        raise StorageCorrupt(
            f"journal entry {entry.lsn} is of kind {entry.kind}, which this Rockbed does not know: open it with a "
            "newer one"
        )
