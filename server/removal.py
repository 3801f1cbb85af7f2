"""Taking rows out of memory and disk: what shrink, the sweeper and a replayed deletion share."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.server.group import Group
from rockbed.storage.entries import Kind, delete_parts
from rockbed.storage.record import encode_keys, headers_of
from rockbed.types import I64

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


def drop(engine: "Engine", group: Group, keys: I64) -> None:
    """Remove rows without a journal entry: for expired ones, which nobody can see. keys: int64[n], distinct.

    With WriteBack.mutex and the group's lock held: a run in flight could bring a row back.
    """
    rows, _ = group.table.find(keys, 0)
    group.table.remove(rows[rows >= 0])
    if group.tier is not None:
        group.tier.remove(keys)
    engine.files.delete(encode_keys(group.number, keys))
    group.table.note_left(keys)  # also where they were on disk only: who has read them there must not bring them back
    group.counters.rows -= keys.size


def remove(engine: "Engine", group: Group, keys: I64, reason: str) -> None:
    """Remove rows for good: journal, then memory and disk. Locks as for `drop`.

    keys: int64[n], distinct, each with a row.
    """
    if keys.size:
        lsn = engine.journal.append(Kind.DELETE, engine.now_ms(), delete_parts(group.number, keys, reason))
        with engine.must_succeed(lsn):
            # RocksDB may put deletions on the disk at any time: there, too, the journal goes first
            engine.journal.sync()
            drop(engine, group, keys)
        group.counters.removed += keys.size
        engine.removals.add(group.number, keys, reason, engine.now_ms())


def replay(engine: "Engine", group: Group, keys: I64, lsn: int) -> None:
    """Remove the rows that are older than journal entry `lsn`."""
    with group.lock:
        rows, _ = group.table.find(keys, 0)
        newer = np.zeros(keys.size, np.bool_)
        newer[rows >= 0] = group.table.header[rows[rows >= 0], 3] >= lsn
        absent = np.flatnonzero(rows < 0)
        fetched = group.fetch(keys[absent])
        newer[absent[fetched.found]] = headers_of(fetched.records)["lsn"] >= lsn
        there = rows >= 0
        there[absent[fetched.found]] = True
        drop(engine, group, keys[there & ~newer])
