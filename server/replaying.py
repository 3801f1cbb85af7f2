"""Pushes from the journal: their rows are brought, those that have seen the entry are left out, the others updated."""

import numpy as np

from rockbed.server import updates
from rockbed.server.bag_gradients import BagSource, BagSums
from rockbed.server.group import Group
from rockbed.storage.entries import BagSection, Section
from rockbed.types import F32, I64

_BEFORE_ALL = -(2**61)  # a time at which no row has expired


def replay(group: Group, section: Section | BagSection, now_ms: int, lsn: int) -> None:
    """Apply a journal entry's section to the rows that have not seen it. Takes the lock. Raises NeedSpace."""
    with group.lock:
        keys, table = np.array(section.keys), group.table  # a copy: kernels are compiled for writable arrays only
        rows, missing = table.find(keys)
        if missing:
            rows = place_for_replay(group, keys, rows, lsn)
        unseen = table.header[rows, 3] < lsn
        begin = unseen & (section.fresh != 0)
        restart, at = np.unique(rows[begin], return_index=True)
        if restart.size:
            group._begin(keys[begin][at], restart, now_ms, lsn - 1)
        grads = np.ascontiguousarray(_sums_of(section)[unseen])
        sequential = isinstance(section, Section) and section.sequential
        updates.apply(group, rows[unseen], grads, sequential, section.step, now_ms, lsn)
        if section.step >= 0:
            group.stepped(section.step, lsn)


def _sums_of(section: Section | BagSection) -> F32:
    if isinstance(section, Section):
        return section.grads
    # copies: kernels are compiled for writable arrays only
    sums = BagSums.of(
        section.inverse.copy(),
        section.keys.size,
        np.repeat(np.arange(section.sizes.size, dtype=np.int32), section.sizes),
        section.sizes,
        section.weights.copy(),
        BagSource.of(section.grads.copy()),
        np.empty(0, np.float32),
    )
    return sums.all(np.empty((0, sums.dim), np.float32), np.empty(0, np.int64))  # without limits no row is asked for


def place_for_replay(group: Group, keys: I64, rows: I64, lsn: int) -> I64:
    """`rows` with each -1 loaded from disk, or created as older than entry `lsn`. With the lock held."""
    positions = np.flatnonzero(rows < 0)
    distinct, inverse = np.unique(keys[positions], return_inverse=True)
    # expiry was decided when the entry was written (its `fresh` flags): whatever is on disk is taken as it is
    with group.table.pinned(rows):
        placed, made = group.place(group.fetch(distinct), np.ones(distinct.size, np.bool_), _BEFORE_ALL)
    group.table.header[placed[made], 3] = lsn - 1
    rows = rows.copy()
    rows[positions] = placed[inverse]
    return rows
