"""Exact counts of how often keys were seen: what the admission rules min_count and probability go by."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rockbed.kernels import inlined, kernel, mix64, prefetch
from rockbed.storage.counting_bloom import GAMMA, stream_of
from rockbed.storage.index import ENTRY_BYTES, home
from rockbed.storage.memory import reserve
from rockbed.types import I64, AnyArray, Bool

_FIRST = 1024  # keys that a new table has room for
_AHEAD = 24  # keys between asking for a cache line and using it


@inlined
def entry(table: I64, key: int) -> Any:
    """Where the key is, or the empty entry where it belongs."""
    size = table.shape[0]
    at = home(key, size)
    while table[at, 1] != 0 and table[at, 0] != key:
        at += 1
        if at == size:
            at = 0
    return at


@inlined
def _drawn(stream: Any, key: int, before: int, more: int, chance: Any) -> bool:
    """Whether one of the sightings before + 1 .. before + more of a key admits it: splitmix64 started at the key."""
    start = mix64(stream ^ np.uint64(key))
    for n in range(before + 1, before + more + 1):  # noqa: SIM110  (numba compiles loops best)
        if mix64(start + np.uint64(n) * GAMMA) < chance:
            return True
    return False


@kernel
def _count(
    table: I64, used: int, room: int, keys: I64, counts: I64, begin: int,
    needed: int, chance: Any, seed: Any, group: int, admitted: Bool,
) -> tuple[int, int]:  # fmt: skip
    # Counts from position `begin` on, up to the first key for which there is no room; returns that position and `used`.
    # needed > 0: admitted at that many sightings; needed == 0: each admits with probability chance / 2^64.
    n = keys.shape[0]
    size = table.shape[0]
    stream = stream_of(seed, group)
    for i in range(begin, n):
        if i + _AHEAD < n:
            prefetch(table, home(keys[i + _AHEAD], size) * ENTRY_BYTES)
        at = entry(table, keys[i])
        before = table[at, 1]
        if before == 0:
            if used >= room:
                return i, used
            used += 1
            table[at, 0] = keys[i]
        total = abs(before) + counts[i]
        if before < 0:
            admits = True
        elif needed > 0:
            admits = total >= needed
        else:
            admits = _drawn(stream, keys[i], before, counts[i], chance)
        table[at, 1] = -total if admits else total
        admitted[i] = admits
    return n, used


@kernel
def _values(table: I64, keys: I64, out: I64) -> None:
    n = keys.shape[0]
    size = table.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(table, home(keys[i + _AHEAD], size) * ENTRY_BYTES)
        out[i] = table[entry(table, keys[i]), 1]


@kernel
def _waiting(table: I64, halvings: int) -> int:
    """How many keys that are not admitted keep a count after so many halvings."""
    found = 0
    for at in range(table.shape[0]):
        found += table[at, 1] >> halvings > 0
    return found


@kernel
def _move(table: I64, into: I64, halvings: int, all_of_them: bool) -> None:
    """Enter into an empty table the keys that wait, their counts halved so often, and with `all_of_them` the others."""
    for at in range(table.shape[0]):
        value = table[at, 1]
        if value > 0:
            value >>= halvings
        elif not all_of_them:
            value = 0
        if value != 0:
            place = entry(into, table[at, 0])
            into[place, 0] = table[at, 0]
            into[place, 1] = value


def table_for(keys: int) -> I64:
    """An empty table for so many keys."""
    return reserve((keys * 3 // 2 + 16, 2), np.int64)  # a third stays empty, so that probes are short


class SightingCounts:
    """Counts of keys without a row, by open addressing: int64[size, 2] of (key, sightings), negative once admitted.

    An admitted key is remembered while there is room: its row may expire and come back, and whether it does must
    not depend on the row being in memory or on disk at the time.
    """

    def __init__(
        self, rule: dict[str, Any], keys_max: int, *, count: int = 0, p: float = 0.0, group: int = 0, seed: int = 0
    ) -> None:
        self._rule = json.dumps(rule, sort_keys=True)
        self._keys_max = keys_max
        self._needed = count
        self._everybody = count == 1 or p == 1
        # p * 2^64 is exact; p = 1, which would not fit, draws nothing
        self._chance = np.uint64(0 if self._everybody else int(p * 2.0**64))
        self._seed, self._group = np.uint64(seed), group
        self._clear()

    def _clear(self) -> None:
        self._room = min(_FIRST, self._keys_max)
        self._table = table_for(self._room)
        self._used = 0
        self._aged = False  # a key that is not in the table may have been seen

    def admit(self, keys: I64, counts: I64) -> Bool:
        admitted = np.ones(keys.size, np.bool_)
        if self._everybody:
            return admitted
        at = 0
        while True:
            at, self._used = _count(
                self._table, self._used, self._room, keys, counts, at,
                self._needed, self._chance, self._seed, self._group, admitted,
            )  # fmt: skip
            if at == keys.size:
                return admitted
            if self._used < self._keys_max:
                self._room = min(2 * self._room, self._keys_max)
                self._replace(0, all_of_them=True)
            else:
                self._age()

    def _age(self) -> None:
        left = self._keys_max * 3 // 4  # so that a full table is not gone through again at once
        halvings = 0
        while (waiting := int(_waiting(self._table, halvings))) > left:
            halvings += 1
        self._room = self._keys_max
        self._replace(halvings, all_of_them=False)
        self._used = waiting
        self._aged = True

    def _replace(self, halvings: int, *, all_of_them: bool) -> None:
        table = table_for(self._room)
        _move(self._table, table, halvings, all_of_them)
        self._table = table

    def _find(self, keys: I64) -> I64:
        out = np.empty(keys.size, np.int64)
        _values(self._table, keys, out)
        return out

    def is_admitted(self, keys: I64) -> Bool:
        return np.ones(keys.size, np.bool_) if self._everybody else self._find(keys) < 0

    def seen(self, keys: I64) -> I64:
        values = np.abs(self._find(keys))
        if self._everybody or self._aged:
            values[values == 0] = -1
        return values

    def state(self) -> dict[str, AnyArray]:
        entries = self._table[self._table[:, 1] != 0]
        return {
            "rule": np.array(self._rule),
            "keys": entries[:, 0].copy(),
            "counts": entries[:, 1].copy(),
            "aged": np.array(self._aged),
        }

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        self._clear()
        if str(state["rule"]) != self._rule:
            return
        keys, values, aged = state["keys"], state["counts"], state["aged"]
        if not keys.dtype == values.dtype == np.dtype(np.int64) or not keys.shape == values.shape == (keys.size,):
            raise ValueError(f"counts {values.dtype}{list(values.shape)} of keys {keys.dtype}{list(keys.shape)}")
        if not values.all() or np.unique(keys).size != keys.size:
            raise ValueError("a key without a count, or twice")
        entries = np.stack([keys, values], axis=1)
        # more than keys_max where that was lowered since: the next new key ages them
        self._room = max(self._room, min(2 * keys.size, self._keys_max))
        self._table = table_for(max(self._room, keys.size))
        _move(entries, self._table, 0, True)
        self._used = keys.size
        self._aged = bool(aged)

    def memory_bytes(self) -> int:
        return self._table.nbytes
