"""Storing rows as they are: weights, slots, counts and times that the caller gives, past optimizer and admission."""

from typing import TYPE_CHECKING

import numpy as np

from rockbed.errors import DimMismatch, InvalidConfig, RowNotFinite, WrongShape
from rockbed.interrupts import Uninterrupted
from rockbed.requests import PUT_MODES, PutRows
from rockbed.server import push
from rockbed.server.group import Group
from rockbed.server.replaying import place_for_replay
from rockbed.server.space import with_space
from rockbed.storage import hot_kernels as k
from rockbed.storage.entries import Kind, Put, put_parts
from rockbed.storage.record import headers_of
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine

_COUNT_MAX = 1 << 62


def put(engine: "Engine", number: int, rows: PutRows, *, mode: str = "replace") -> int:
    """Store rows, all or nothing, durably before it returns. Returns how many: `mode` "keep" leaves those that exist,
    and a row that has expired by its own update time is not stored. A time in the future becomes the present.

    Raises UnknownGroup, InvalidConfig, WrongShape, DimMismatch, RowNotFinite, BatchTooLarge, ReadOnlyStorage,
    StorageFull and the disk's other errors; then nothing was stored.
    """
    engine.check_open()
    engine.must_be_writable("store rows")
    group = engine.group(number)
    if mode not in PUT_MODES:
        raise InvalidConfig(f"mode is {mode!r}, not one of {', '.join(map(repr, PUT_MODES))}")
    whole = _validated(group, rows, engine.now_ms())
    engine.wait_for_journal_room()
    return with_space(engine, lambda: _put(engine, group, whole, keep=mode == "keep"), "storing the rows")


def _validated(group: Group, rows: PutRows, now_ms: int) -> Put:
    """The rows in ascending order of their keys, with what was left out filled in."""
    n, dim, state = rows.keys.size, group.config.dim, group.table.width - group.config.dim
    if rows.weights.shape != (n, dim):
        raise DimMismatch(
            f"group {group.number} stores rows of dim {dim}, the weights have shape {list(rows.weights.shape)} for {n} "
            f"keys: send float32[{n}, {dim}]"
        )
    if rows.slots is not None and rows.slots.shape != (n, state):
        raise DimMismatch(
            f"a row of group {group.number} has {state} slots of {group.config.optimizer['name']!r}, the slots sent "
            f"have shape {list(rows.slots.shape)} for {n} keys: send float32[{n}, {state}], or none for a new row's"
        )
    update_num = np.zeros(n, np.int64) if rows.update_num is None else rows.update_num
    update_time = np.full(n, now_ms) if rows.update_time_ms is None else np.minimum(rows.update_time_ms, now_ms)
    for name, values in (("update_num", update_num), ("update_time_ms", update_time)):
        if values.shape != (n,):
            raise WrongShape(f"{name} has shape {list(values.shape)} for {n} keys: send int64[{n}]")
        if n and not 0 <= values.min() <= values.max() <= _COUNT_MAX:
            raise InvalidConfig(f"{name} holds {values.min()} to {values.max()}: from 0 to 2^62 there can be")
    order = np.argsort(rows.keys)
    keys = rows.keys[order]
    if n and (keys[1:] == keys[:-1]).any():
        twice = keys[1:][keys[1:] == keys[:-1]]
        raise InvalidConfig(f"{twice.size} keys are sent more than once, the first {twice[0]}: a key has one row")
    if group.not_padding(keys, np.arange(n)).size < n:
        raise InvalidConfig(f"key {group.config.padding_key} is the padding key of group {group.number}: it has no row")
    data: F32 = np.empty((n, dim + state), np.float32)
    data[:, :dim] = rows.weights
    data[:, dim:] = group.initial_state if rows.slots is None else rows.slots
    data = data[order]
    bad = push.not_finite_rows(data)
    if bad.size:
        raise RowNotFinite(
            f"group {group.number}: {bad.size} of {n} rows hold NaN or Inf, the first for key {keys[bad[0]]}. Nothing "
            "was stored; leave them out"
        )
    return Put(group.number, keys, update_num[order], update_time[order], data)


def _put(engine: "Engine", group: Group, sent: Put, *, keep: bool) -> int:
    ahead, left = push.read_ahead(group, sent.keys)
    now_ms = engine.now_ms()
    with Uninterrupted(), group.lock:
        group.must_exist()
        if group.tier is not None:  # they are stored in memory
            group.tier.settle(sent.keys)
        wanted = sent.update_time > group.oldest_ms(now_ms)
        if keep:
            wanted &= ~_exist(group, sent.keys, now_ms)
        part = sent.part(wanted)
        if not part.keys.size:
            return 0
        table = group.table
        rows, missing = table.find(part.keys)
        prepared = push.Prepared(group, rows, part.keys, part.data, np.empty(0, np.int64))
        done = False
        try:
            if missing:
                absent = np.flatnonzero(rows < 0)
                keys = part.keys[absent]
                fetched = group.fetched_now(keys, ahead, left)
                with table.pinned(rows.copy()):
                    rows[absent], made = group.place(fetched, np.ones(keys.size, np.bool_), now_ms)
                prepared.created = rows[absent][made]
            lsn = engine.journal.append(Kind.PUT, now_ms, put_parts(part))
            done = True
            with engine.must_succeed(lsn):
                store(group, rows, part, lsn)
        finally:
            prepared.release(undo=not done)
        group.counters.puts += part.keys.size
        return int(part.keys.size)


def _exist(group: Group, keys: I64, now_ms: int) -> Bool:
    """Which keys have a row that has not expired. With the lock held."""
    rows, _ = group.table.find(keys, 0)
    times = np.full(keys.size, -(2**62))
    times[rows >= 0] = group.table.header[rows[rows >= 0], 1]
    absent = np.flatnonzero(rows < 0)
    fetched = group.fetch(keys[absent])
    times[absent[fetched.found]] = headers_of(fetched.records)["update_time"]
    exist: Bool = times > group.oldest_ms(now_ms)
    return exist


def store(group: Group, rows: I64, put: Put, lsn: int) -> None:
    """Overwrite rows in memory, after journal entry `lsn` was written. With the lock held."""
    table = group.table
    data: F32 = table.data
    data[rows] = put.data
    table.header[rows, 1] = put.update_time
    table.header[rows, 2] = put.update_num
    table.header[rows, 3] = lsn
    k.change_flags(table.flags, rows, k.FRESH, k.DIRTY | k.TOUCHED)


def replay(group: Group, put: Put, lsn: int) -> None:
    """Store the rows of a journal entry that have not seen it. Takes the lock. Raises NeedSpace."""
    with group.lock:
        keys, table = np.array(put.keys), group.table  # a copy: kernels are compiled for writable arrays only
        rows, missing = table.find(keys)
        if missing:
            rows = place_for_replay(group, keys, rows, lsn)
        unseen = table.header[rows, 3] < lsn
        store(group, rows[unseen], put.part(unseen), lsn)
