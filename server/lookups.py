"""Lookups in one group. Its lock is held while rows in memory are read, and shared where that is all there is to do; it
is not held while the disk is read, but for the rows whose records may have gone stale since (`Group.fetched_now`)."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from rockbed.errors import BatchTooLarge
from rockbed.server.fetched import Fetched
from rockbed.server.fitting import must_take
from rockbed.server.group import SPACE_TRIES, Group
from rockbed.server.seen import Seen
from rockbed.storage import hot_kernels as k
from rockbed.storage.hot import NeedSpace
from rockbed.storage.record import headers_of
from rockbed.types import F32, I64, Bool

_T = TypeVar("_T")
# Fewer are found in the time that it takes to hand the interpreter's lock to another thread and to have it back:
# lookups that wait for each other do that less often than lookups side by side. They share the lock with write-back.
_SHARED_KEYS = 1_500
_PIECE_ROWS = 16_384  # absent keys that a lookup deals with at a time


def lookup(group: Group, keys: I64, out: F32, *, train: bool) -> None:
    """Fill out[i] with the weights of keys[i]. keys: int64[n]; out: float32[n, dim], C-contiguous. Takes the lock.

    train: absent keys get a row (if admitted), occurrences count, the TTL is renewed if the group says so.
    """
    must_take(group.config, keys.size, out)
    now_ms = group.host.now_ms()

    def gather(rows: I64, missing: int) -> tuple[I64, int]:
        group.table.gather(rows, out)
        if train and not missing:
            group.latest_lookups.note(keys, Seen(group.table, group.table.left, rows))
        return rows, missing

    rows, missing = with_rows(group, keys, now_ms, gather, train=train)
    if missing:
        positions, distinct, inverse, counts = absent_keys(group, keys, rows)
        out[positions] = look_up_absent(group, distinct, counts, now_ms, train=train)[inverse]


def prefetch(group: Group, keys: I64) -> tuple[int, int]:
    """Bring rows from disk into memory; none is created, nothing counts as a lookup. Takes the lock.

    keys: int64[n]. Returns how many of the distinct keys have their row in memory now, and how many have none.
    """
    now_ms = group.host.now_ms()
    distinct = np.unique(keys)
    with group.lock:
        group.must_be_in_memory()
        rows, missing = group.table.find(distinct)
        missing += group.hide_padding(distinct, rows)
        missing += group.expire(distinct, rows, now_ms, restart=False)
    absent = distinct[group.not_padding(distinct, np.flatnonzero(rows < 0))]
    nowhere = missing - absent.size  # the padding key
    for piece in pieces(group, absent.size):
        part = absent[piece]
        scratch = np.empty((part.size, group.config.dim), np.float32)
        none = np.zeros(part.size, np.int64)
        nowhere += _look_up_piece(group, part, none, scratch, now_ms, train=False)
    return distinct.size - nowhere, nowhere


def with_rows(group: Group, keys: I64, now_ms: int, use: Callable[[I64, int], _T], *, train: bool) -> _T:
    """What use(rows, missing) gives, called with the lock and with what `find_rows` gives. The lock is shared where no
    row has to be changed."""
    may_share = keys.size >= _SHARED_KEYS or group.lock.favours_sharing
    if may_share and may_only_read(group, train=train):
        with group.lock.shared:
            found = _found(group, keys, now_ms, train=train)
            if found is not None:
                return use(*found)
    with group.lock:
        return use(*find_rows(group, keys, now_ms, train=train))


def may_only_read(group: Group, *, train: bool) -> bool:
    """Whether a lookup is likely to find that it need not change rows. Without the lock."""
    return not (train and (group.config.refresh == "lookup" or group.is_growing))


def must_change(group: Group, missing: int, expired: int, *, train: bool) -> bool:
    """Whether a lookup that found no row for so many keys, or expired ones, has to change rows at once. With the lock
    held or shared."""
    return train and (expired > 0 or (missing > 0 and group.inserts_at_once))


def _found(group: Group, keys: I64, now_ms: int, *, train: bool) -> tuple[I64, int] | None:
    """As `find_rows`, with the lock shared: None where it would change rows."""
    group.must_be_in_memory()
    rows, missing = group.table.find(keys)
    missing += group.hide_padding(keys, rows)
    expired = group.expired(rows, now_ms)
    if must_change(group, missing, expired.size, train=train):
        return None
    missing += expired.size
    rows[expired] = -1
    group.count_lookup(keys.size, keys.size - missing)
    return rows, missing


def find_rows(group: Group, keys: I64, now_ms: int, *, train: bool) -> tuple[I64, int]:
    """The row of each key, int64[n], and how many have none in memory (-1): what can get one at once has got it. With
    the lock held."""
    group.must_be_in_memory()
    rows, missing = group.table.find(keys)
    missing += group.hide_padding(keys, rows)
    missing += group.expire(keys, rows, now_ms, restart=train)
    if train and group.config.refresh == "lookup":
        k.touch_time(group.table.header, group.table.flags, rows, now_ms)
    group.count_lookup(keys.size, keys.size - missing)
    if train:
        group.is_growing = missing > 0 and group.insert_at_once(keys, rows, missing, now_ms)
        missing = 0 if group.is_growing else missing
    return rows, missing


# --- keys that are not in memory ---


def absent_keys(group: Group, keys: I64, rows: I64) -> tuple[I64, I64, I64, I64]:
    """The positions whose row is -1, the distinct keys there, which of them each position has, and how often each
    occurs. The padding key counts as none."""
    positions = group.not_padding(keys, np.flatnonzero(rows < 0))
    distinct, inverse, counts = np.unique(keys[positions], return_inverse=True, return_counts=True)
    return positions, distinct, inverse, counts


def look_up_absent(group: Group, keys: I64, counts: I64, now_ms: int, *, train: bool) -> F32:
    """The weights of distinct, ascending keys that were not in memory a moment ago: float32[n, dim]."""
    weights = np.empty((keys.size, group.config.dim), np.float32)
    for piece in pieces(group, keys.size):
        _look_up_piece(group, keys[piece], counts[piece], weights[piece], now_ms, train=train)
    return weights


def pieces(group: Group, n: int) -> Iterator[slice]:
    """Parts of n absent keys that are dealt with at a time."""
    # rows of a piece all fit in memory together, and what is read from disk for it stays small
    step = min(max(32, group.table.capacity // 4), _PIECE_ROWS)
    return (slice(start, start + step) for start in range(0, n, step))


def _look_up_piece(group: Group, keys: I64, counts: I64, out: F32, now_ms: int, *, train: bool) -> int:
    # Returns how many have no row. Takes the lock.
    with group.lock:
        left = group.table.left  # of now: the pieces before have made rows leave
    fetched = group.fetch(keys)
    create: Bool | None = None
    tries = 0
    while True:
        try:
            with group.lock:
                group.must_be_in_memory()
                fetched, left = group.fetched_now(keys, fetched, left), group.table.left
                if create is None:
                    create = admitted(group, fetched, counts, now_ms) if train else np.zeros(keys.size, np.bool_)
                rows, _ = group.place(fetched, create, now_ms)
                if train and group.config.refresh == "lookup":
                    k.touch_time(group.table.header, group.table.flags, rows, now_ms)
                group.table.gather(rows, out)
                break
        except NeedSpace as need:
            if tries >= SPACE_TRIES:
                raise BatchTooLarge(
                    f"group {group.number}: {need.rows} rows more do not fit into the memory budget"
                ) from None
            tries += group.host.make_space(need)
    nothing = np.flatnonzero(rows < 0)
    if nothing.size:
        value = group.config.unadmitted_value if train else group.config.miss_value
        _fill_absent(group, keys[nothing], out, nothing, value)
        with group.lock:
            if train:
                group.counters.not_admitted += int(counts[nothing].sum())
            else:
                group.counters.misses += int(counts[nothing].sum())
    return nothing.size


def admitted(group: Group, fetched: Fetched, counts: I64, now_ms: int) -> Bool:
    """Which of the keys, distinct, may get a row; counts the occurrences of those that have none. Needs the lock."""
    create = np.ones(fetched.keys.size, np.bool_)
    if group.admission is None:
        return create
    has_row = group.table.find(fetched.keys)[0] >= 0
    alive = headers_of(fetched.records)["update_time"] > group.oldest_ms(now_ms)
    has_row[fetched.found[alive]] = True
    new = np.flatnonzero(~has_row)
    create[new] = group.admission.admit(fetched.keys[new], counts[new])
    group.admission_changed |= new.size > 0
    return create


def _fill_absent(group: Group, keys: I64, out: F32, positions: I64, value: float | str) -> None:
    config = group.config
    if value == "initializer":
        rows = np.empty((keys.size, config.dim), np.float32)
        group.initializer.fill(rows, np.arange(keys.size), keys, config.dim, config.seed, group.number)
        out[positions] = rows
    else:
        out[positions] = np.float32(value)
