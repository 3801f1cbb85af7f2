"""Lookups of an adaptive variable: ids share the static rows of their buckets, frequent ones have exact rows.

The exact row of an id begins as a copy of its static row at the first training lookup that wants it, once and durably:
the static row is read, and the exact row written to the journal and stored, under the locks of both groups.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rockbed.errors import InvalidConfig, WrongShape
from rockbed.interrupts import Uninterrupted
from rockbed.requests import AdaptiveKeys
from rockbed.server import lookups, push, putting
from rockbed.server.adaptive_counts import EXACT, STATIC, AdaptiveCounts, part_of
from rockbed.server.fetched import Fetched
from rockbed.server.fitting import must_take
from rockbed.server.group import Group
from rockbed.server.space import with_space
from rockbed.storage import hot_kernels as k
from rockbed.storage.entries import Kind, Put, put_parts
from rockbed.storage.record import HEADER_BYTES, headers_of
from rockbed.types import F32, I64, Bool

if TYPE_CHECKING:
    from rockbed.server.engine import Engine


@dataclass(frozen=True, slots=True)
class _Variable:
    static: Group
    exact: Group
    with_slots: bool

    @property
    def counts(self) -> AdaptiveCounts:
        """With the lock of the exact part held: a change of the threshold makes others."""
        counts = self.exact.adaptive
        assert counts is not None
        return counts


def lookup(engine: "Engine", asked: AdaptiveKeys, out: F32, *, train: bool) -> tuple[Bool, int]:
    """Fill out[i] with the row of keys[i]: where the mask says so the exact row, else the static one of buckets[i].

    out: float32[n, dim], C-contiguous. train: exact rows that are wanted and not there are copied from the static ones,
    static rows that are not there are made, ids are counted. Otherwise nothing changes, and an id without an exact row
    gives its static one.
    Returns the mask by which the rows were chosen, bool[n], false also where the exact part's admission rule has not
    admitted an id yet; and how many exact rows were made.
    Raises UnknownGroup, InvalidConfig, WrongShape, DimMismatch, ReadOnlyStorage, BatchTooLarge, StorageFull.
    """
    engine.check_open()
    if train:
        engine.must_be_writable("look up with train=True (absent keys would get rows); pass train=False")
    variable = _variable(engine, asked)
    must_take(variable.static.config, asked.keys.size, out)
    mask = _mask(variable, asked, train=train)
    at, made = np.flatnonzero(mask), 0
    if at.size:
        rows = np.empty((at.size, out.shape[1]), np.float32)
        exact, made = _exact(engine, variable, asked.keys[at], asked.buckets[at], rows, train=train)
        out[at] = rows
        mask[at[~exact]] = False
    rest = np.flatnonzero(~mask)
    if rest.size == mask.size:
        lookups.lookup(variable.static, asked.buckets, out, train=train)
    elif rest.size:
        rows = np.empty((rest.size, out.shape[1]), np.float32)
        lookups.lookup(variable.static, asked.buckets[rest], rows, train=train)
        out[rest] = rows
    return mask, made


def _variable(engine: "Engine", asked: AdaptiveKeys) -> _Variable:
    static = engine.group(asked.static, asked.static_generation)
    exact = engine.group(asked.exact, asked.exact_generation)
    of = [(group.config.name or "").rpartition("/")[0] for group in (static, exact)]
    if part_of(static.config) != STATIC or part_of(exact.config) != EXACT or of[0] != of[1]:
        raise InvalidConfig(
            f"groups {asked.static} and {asked.exact} are not the static and the exact part of an adaptive variable: "
            "open it with rockbed.AdaptiveEmbedding, which makes both"
        )
    if static.table.width != exact.table.width or static.config.dim != exact.config.dim:
        raise InvalidConfig(
            f"groups {asked.static} and {asked.exact} are of dims {static.config.dim} and {exact.config.dim}, with "
            f"rows of {static.table.width} and {exact.table.width} floats: parts of one variable are alike"
        )
    n, settings = asked.keys.size, exact.config.variable or {}
    if asked.buckets.size != n or (asked.mask is not None and asked.mask.size != n):
        mask = "" if asked.mask is None else f" and {asked.mask.size} values of the mask"
        raise WrongShape(f"{asked.buckets.size} buckets{mask} for {n} keys: each key has one")
    if n and not 0 <= asked.buckets.min() <= asked.buckets.max() < settings["buckets"]:
        raise InvalidConfig(
            f"buckets from {asked.buckets.min()} to {asked.buckets.max()}: this variable has {settings['buckets']}, "
            f"0 to {settings['buckets'] - 1}"
        )
    return _Variable(static, exact, settings["slots"] == "copy")


def _mask(variable: _Variable, asked: AdaptiveKeys, *, train: bool) -> Bool:
    with variable.exact.lock:
        variable.exact.must_exist()
        counts = variable.counts
        if asked.mask is None and counts.frequencies is None:
            raise InvalidConfig(
                f"group {asked.exact} has no threshold, so each lookup says by a mask which ids are exact: send one, "
                "or open the variable with threshold=Frequency(enter=...)"
            )
        if train:
            counts.saw(asked.keys)
        return counts.frequent(asked.keys, count=train) if asked.mask is None else asked.mask.copy()


# --- exact rows ---


def _exact(
    engine: "Engine", variable: _Variable, keys: I64, buckets: I64, out: F32, *, train: bool
) -> tuple[Bool, int]:
    """Fill out with the exact rows of keys. Returns which have one (the rest of `out` means nothing), and how many were
    made. buckets: int64[n]. Takes the locks."""
    exact = variable.exact
    now_ms = engine.now_ms()
    with exact.lock:
        rows, missing = lookups.find_rows(exact, keys, now_ms, train=False)
        if train and exact.config.refresh == "lookup":
            k.touch_time(exact.table.header, exact.table.flags, rows, now_ms)
        exact.table.gather(rows, out)
    there = rows >= 0
    if not missing:
        return there, 0
    positions, distinct, inverse, counts = lookups.absent_keys(exact, keys, rows)
    bucket_of = np.empty(distinct.size, np.int64)
    bucket_of[inverse] = buckets[positions]
    weights, found, made = np.empty((distinct.size, out.shape[1]), np.float32), np.empty(distinct.size, np.bool_), 0
    for piece in lookups.pieces(exact, distinct.size):
        bring = _Bringing(engine, variable, distinct[piece], bucket_of[piece], counts[piece], train=train)
        made += bring(weights[piece], found[piece])
    out[positions], there[positions] = weights[inverse], found[inverse]
    return there, made


class _Bringing:
    """Of exact rows that were not in memory a moment ago: they are read from disk, or made.

    keys: int64[n], distinct and ascending; buckets, counts: int64[n], how often each occurs.
    """

    def __init__(
        self, engine: "Engine", variable: _Variable, keys: I64, buckets: I64, counts: I64, *, train: bool
    ) -> None:
        self._engine, self._variable, self._train = engine, variable, train
        self._keys, self._buckets, self._counts = keys, buckets, counts
        self._admitted: Bool | None = None  # decided once, however often room has to be made

    def __call__(self, out: F32, found: Bool) -> int:
        """Fill out, float32[n, dim], and found, bool[n]. Returns how many were made."""
        engine, variable = self._engine, self._variable
        with variable.exact.lock:
            left = variable.exact.table.left
        fetched = variable.exact.fetch(self._keys), left
        groups = [variable.exact]
        ahead: tuple[Fetched, int] | None = None
        if self._train:
            groups.append(variable.static)
            ahead = push.read_ahead(variable.static, self._buckets)
            engine.wait_for_journal_room()
        groups.sort(key=lambda group: group.number)
        attempt: Callable[[], int] = partial(self._attempt, groups, fetched, ahead, out, found)
        return with_space(engine, attempt, "the lookup")

    def _attempt(
        self, groups: list[Group], early: tuple[Fetched, int], ahead: tuple[Fetched, int] | None, out: F32, found: Bool
    ) -> int:
        engine, exact = self._engine, self._variable.exact
        now_ms = engine.now_ms()
        with Uninterrupted(), ExitStack() as locks:
            for group in groups:
                locks.enter_context(group.lock)
                group.must_exist()
            fetched = exact.fetched_now(self._keys, *early)
            begin = self._to_begin(fetched, now_ms)
            expired = begin & (exact.table.find(self._keys, 0)[0] >= 0)
            rows, created = exact.place(fetched, begin, now_ms)
            done = False
            try:
                if ahead is not None and begin.any():
                    put = self._copies(begin, ahead, now_ms)
                    lsn = engine.journal.append(Kind.COPY, now_ms, put_parts(put))
                    done = True
                    with engine.must_succeed(lsn):
                        putting.store(exact, rows[begin], put, lsn)
                        self._variable.counts.copied(put.keys.size, lsn)
                done = True
            finally:
                if not done:  # no row may begin as anything but a copy
                    exact.table.remove(rows[begin & ~expired])
                    exact.table.header[rows[expired], 1] = exact.oldest_ms(now_ms)  # perhaps on disk, so it stays here
                    exact.counters.rows -= created.size
                    exact.counters.inserts -= created.size
            if self._train and exact.config.refresh == "lookup":
                k.touch_time(exact.table.header, exact.table.flags, rows, now_ms)
            exact.table.gather(rows, out)
            found[:] = rows >= 0
            return int(begin.sum())

    def _to_begin(self, fetched: Fetched, now_ms: int) -> Bool:
        """Which exact rows are to be made. With the locks held."""
        exact = self._variable.exact
        if not self._train:
            return np.zeros(self._keys.size, np.bool_)
        rows, _ = exact.table.find(self._keys, 0)
        times = np.full(self._keys.size, -(2**62))
        times[fetched.found] = headers_of(fetched.records)["update_time"]
        times[rows >= 0] = exact.table.header[rows[rows >= 0], 1]
        absent = times <= exact.oldest_ms(now_ms)
        if self._admitted is None:
            self._admitted = np.ones(self._keys.size, np.bool_)
            if exact.admission is not None and absent.any():
                self._admitted[absent] = exact.admission.admit(self._keys[absent], self._counts[absent])
                exact.admission_changed = True
        begin: Bool = absent & self._admitted
        return begin

    def _copies(self, begin: Bool, ahead: tuple[Fetched, int], now_ms: int) -> Put:
        """What the new exact rows begin as. With the locks held."""
        exact, static = self._variable.exact, self._variable.static
        distinct, inverse = np.unique(self._buckets[begin], return_inverse=True)
        data, updates = _rows_of(static, distinct, ahead, now_ms)
        data, updates = data[inverse], updates[inverse]
        if not self._variable.with_slots:
            data[:, exact.config.dim :] = exact.initial_state
            updates[:] = 0
        return Put(exact.number, self._keys[begin], updates, np.full(updates.size, now_ms), data)


def _rows_of(static: Group, buckets: I64, ahead: tuple[Fetched, int], now_ms: int) -> tuple[F32, I64]:
    """The static rows of distinct buckets, weights and slots, float32[n, width], and their update counts, int64[n]. One
    that was never trained has its initial values; none is made. ahead: read after `table.left` was that number. With
    the lock held."""
    config, table = static.config, static.table
    data, updates = np.empty((buckets.size, table.width), np.float32), np.zeros(buckets.size, np.int64)
    data[:, config.dim :] = static.initial_state
    static.initializer.fill(data, np.arange(buckets.size), buckets, config.dim, config.seed, static.number)
    rows, _ = table.find(buckets, 0)
    held = np.flatnonzero(rows >= 0)
    held = held[table.header[rows[held], 1] > static.oldest_ms(now_ms)]
    data[held], updates[held] = table.data[rows[held]], table.header[rows[held], 2]
    absent = np.flatnonzero(rows < 0)
    fetched = static.fetched_now(buckets[absent], *ahead)
    heads = headers_of(fetched.records)
    wanted = heads["update_time"] > static.oldest_ms(now_ms)
    at = absent[fetched.found[wanted]]
    data[at] = np.ascontiguousarray(fetched.records[:, HEADER_BYTES:]).view(np.float32)[wanted]
    updates[at] = heads["update_num"][wanted]
    return data, updates
