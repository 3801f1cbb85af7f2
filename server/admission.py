"""Admission: which new keys get a row. Rare keys are counted first, in far less memory than a row takes.

min_count       exact counts (DeepRec's CounterFilter): admitted when the sightings reach `count`, this batch's included
counting_bloom  the same by a counting Bloom filter of DeepRec's size, in fixed memory: never too late, too early for
                at most a share `fpr` of the keys. Unlike DeepRec it counts before it tests, so that a key is admitted
                in the lookup in which it reaches `count`
probability     each sighting admits with probability p, reproducibly: the n-th one of a key does if a hash of (seed,
                group, key, n) says so. It is thus a min_count whose count is the key's own, drawn from the geometric
                distribution, and does not depend on how sightings fall into batches

A sighting is one occurrence of a key in a training lookup that finds no row for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from rockbed.errors import InvalidConfig
from rockbed.kernels import inlined, kernel, mix64, prefetch
from rockbed.optimizers.config import Configured, Registry, parameter
from rockbed.storage import counting_bloom as cb
from rockbed.storage.index import ENTRY_BYTES, home
from rockbed.storage.memory import reserve
from rockbed.types import I64, AnyArray, Bool


class Admission(Protocol):
    """Decides for one group. Not thread-safe: the group's lock is held."""

    def admit(self, keys: I64, counts: I64) -> Bool:
        """Count sightings, and say which keys get a row now.

        keys: int64[n], distinct, without a row; counts: int64[n], sightings in this batch, at least 1 -> bool[n].
        """

    def is_admitted(self, keys: I64) -> Bool:
        """Whether keys without a row have been admitted before; counts nothing. int64[n] -> bool[n]."""

    def seen(self, keys: I64) -> I64:
        """Sightings counted so far, -1 where that is not known. int64[n] -> int64[n]."""

    def state(self) -> dict[str, AnyArray]:
        """All counts, copied, for numpy.savez."""

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        """The reverse of `state`. Counts of a rule that differs in more than `count` and `keys_max` mean nothing
        here: then counting begins anew. Raises ValueError or KeyError where the arrays are damaged."""

    def memory_bytes(self) -> int:
        """Bytes of the counts."""


# --- settings ---

_KEYS_MAX = 1 << 36


def _at_least_one(value: int) -> str | None:
    return None if value >= 1 else "must be at least 1"


def _keys(value: int) -> str | None:
    return None if 1 <= value <= _KEYS_MAX else f"must be from 1 to {_KEYS_MAX}"


def _probability(value: float) -> str | None:
    return None if 1e-15 <= value <= 1 else "must be in (0, 1], and at least 1e-15"


def _rate(value: float) -> str | None:
    return None if cb.FPR_LEAST <= value < 1 else f"must be in (0, 1), and at least {cb.FPR_LEAST:g}"


def _bloom_count(value: int) -> str | None:
    return None if 1 <= value < 1 << 16 else "must be from 1 to 65535, where 16-bit counters stop"


class _Rule(Configured):
    __slots__ = ()
    kind: ClassVar[str] = "admission"

    def build(self, group: int, seed: int) -> Admission:
        raise NotImplementedError


registry: Registry[Any] = Registry("admission")


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class MinCount(_Rule):
    """A key gets a row at its `count`-th sighting. At most `keys_max` keys are remembered, 24 to 48 bytes each.

    Aging: when one more key comes, those admitted are forgotten (they have rows); then, while more than three quarters
    of keys_max are left, all counts are halved, rounding down, and keys at zero forgotten. So old sightings fade, and
    a key that lost some is admitted later, never earlier.
    """

    name: ClassVar[str] = "min_count"
    count: int = parameter(int, "count", "filter_freq", "min_count", check=_at_least_one)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=_keys)

    def build(self, group: int, seed: int) -> Admission:
        return _Counted({"name": self.name}, self.keys_max, count=self.count)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Probability(_Rule):
    """A key gets a row at each sighting with probability `p`. keys_max, and what aging does, as for min_count."""

    name: ClassVar[str] = "probability"
    p: float = parameter(float, "p", "probability", check=_probability)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=_keys)

    def build(self, group: int, seed: int) -> Admission:
        rule = {"name": self.name, "p": self.p, "group": group, "seed": seed}
        return _Counted(rule, self.keys_max, p=self.p, group=group, seed=seed)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class CountingBloom(_Rule):
    """As min_count, in counters of 4, 8 or 16 bits (by `count`) for `capacity` keys, admitted ones included."""

    name: ClassVar[str] = "counting_bloom"
    count: int = parameter(int, "count", "filter_freq", "min_count", check=_bloom_count)
    capacity: int = parameter(int, "capacity", "max_element_size", default=1 << 20, check=_keys)
    fpr: float = parameter(float, "fpr", "false_positive_probability", default=0.01, check=_rate)

    def build(self, group: int, seed: int) -> Admission:
        return _Bloom(self.count, self.capacity, self.fpr, group, seed)


def check_admission(config: Mapping[str, Any]) -> None:
    """Check {"name": ..., parameters} without allocating anything. Raises UnknownName, InvalidConfig (all problems)."""
    _rule_of(config)


def make_admission(config: Mapping[str, Any], *, group: int, seed: int) -> Admission:
    """Build a group's rule from {"name": ..., parameters}. Raises UnknownName, InvalidConfig (all problems)."""
    return _rule_of(config).build(group, seed)


def _rule_of(config: Mapping[str, Any]) -> _Rule:
    if not isinstance(config, Mapping):
        raise InvalidConfig(f'admission is {config!r}: give a mapping like {{"name": "min_count", "count": 3}}')
    rule: _Rule = registry.make(config.get("name", ""), {key: v for key, v in config.items() if key != "name"})
    return rule


# --- exact counts ---

_FIRST = 1024  # keys that a new table has room for
_AHEAD = 24  # keys between asking for a cache line and using it


@inlined
def _entry(table: I64, key: int) -> Any:
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
        if mix64(start + np.uint64(n) * cb.GAMMA) < chance:
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
    stream = cb.stream_of(seed, group)
    for i in range(begin, n):
        if i + _AHEAD < n:
            prefetch(table, home(keys[i + _AHEAD], size) * ENTRY_BYTES)
        at = _entry(table, keys[i])
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
        out[i] = table[_entry(table, keys[i]), 1]


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
            place = _entry(into, table[at, 0])
            into[place, 0] = table[at, 0]
            into[place, 1] = value


def _table_for(keys: int) -> I64:
    return reserve((keys * 3 // 2 + 16, 2), np.int64)  # a third stays empty, so that probes are short


class _Counted:
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
        self._table = _table_for(self._room)
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
        table = _table_for(self._room)
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
        self._table = _table_for(max(self._room, keys.size))
        _move(entries, self._table, 0, True)
        self._used = keys.size
        self._aged = bool(aged)

    def memory_bytes(self) -> int:
        return self._table.nbytes


# --- counting Bloom filter ---


class _Bloom:
    def __init__(self, count: int, capacity: int, fpr: float, group: int, seed: int) -> None:
        self._count, self._group, self._seed = count, group, seed
        self._bits = cb.bits_for(count)
        self._size, self._hashes = cb.shape_as_deeprec(capacity, fpr)
        shape = {"bits": self._bits, "size": self._size, "hashes": self._hashes}
        self._rule = json.dumps({"name": CountingBloom.name, **shape, "group": group, "seed": seed}, sort_keys=True)
        self._clear()

    def _clear(self) -> None:
        words = reserve((cb.words_of(self._size, self._bits),), np.uint16)
        self._filter = cb.CountingBloom(words, bits=self._bits, size=self._size, hashes=self._hashes)

    def admit(self, keys: I64, counts: I64) -> Bool:
        after = self._filter.add(keys, counts, limit=self._count, group=self._group, seed=self._seed)
        admitted: Bool = after >= self._count
        return admitted

    def is_admitted(self, keys: I64) -> Bool:
        # as for the other rules, a first sighting is nothing to wait for
        admitted: Bool = (self.seen(keys) >= self._count) | (self._count == 1)
        return admitted

    def seen(self, keys: I64) -> I64:
        """An upper bound, as the filter goes; counting stops at `count`."""
        return self._filter.least(keys, group=self._group, seed=self._seed)

    def state(self) -> dict[str, AnyArray]:
        return {"rule": np.array(self._rule), "words": self._filter.words.copy()}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        if str(state["rule"]) != self._rule:
            self._clear()
            return
        words, own = state["words"], self._filter.words
        if words.dtype != own.dtype or words.shape != own.shape:
            raise ValueError(f"{words.dtype}{list(words.shape)} of counters instead of {own.dtype}{list(own.shape)}")
        own[:] = words

    def memory_bytes(self) -> int:
        return self._filter.words.nbytes
