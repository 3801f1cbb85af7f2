"""Admission: which new keys get a row. Rare keys are counted first, in far less memory than a row takes.

min_count        exact counts: admitted when sightings so far + those in this batch >= count (DeepRec's CounterFilter)
counting_bloom   the same by a counting Bloom filter, in fixed memory; may admit too early, with probability fpr
probability      each sighting admits with probability p, reproducibly: the sighting at which a key is admitted is drawn
                 from the geometric distribution by a hash of (seed, group, key): a min_count of the key's own
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from rockbed.kernels import inlined, kernel, mix64
from rockbed.optimizers.config import Configured, Registry, parameter
from rockbed.storage import index as ix
from rockbed.types import F64, I64, AnyArray, Bool


class Admission(Protocol):
    """Decides for one group. Not thread-safe: the group's lock is held."""

    def admit(self, keys: I64, counts: I64) -> Bool:
        """Count sightings, and say which keys get a row now. keys: int64[n], distinct, without a row; counts:
        int64[n]."""

    def is_admitted(self, keys: I64) -> Bool:
        """Whether keys without a row would be admitted as counted so far. keys: int64[n]; bool[n]."""

    def seen(self, keys: I64) -> I64:
        """Sightings counted so far: int64[n]; an upper bound under counting_bloom."""

    def state(self) -> dict[str, AnyArray]:
        """All counts, for saving."""

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        """The reverse of `state`. Raises ValueError where the arrays are not those of this rule."""

    def memory_bytes(self) -> int:
        """Bytes of the counts."""


def _at_least_one(value: int) -> str | None:
    return None if value >= 1 else "must be at least 1"


def _probability(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be in (0, 1]"


def _rate(value: float) -> str | None:
    return None if 0 < value < 1 else "must be in (0, 1)"


class _Rule(Configured):
    __slots__ = ()
    kind: ClassVar[str] = "admission"

    def build(self, group: int, seed: int) -> Admission:
        raise NotImplementedError


registry: Registry[Any] = Registry("admission")


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class MinCount(_Rule):
    """A key gets a row at its `count`-th sighting. At most keys_max rare keys are remembered: beyond that all counts
    are halved and zeros forgotten, so old sightings fade."""

    name: ClassVar[str] = "min_count"
    count: int = parameter(int, "count", "filter_freq", "min_count", check=_at_least_one)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=_at_least_one)

    def build(self, group: int, seed: int) -> Admission:
        return _Counted(self.keys_max, count=self.count)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Probability(_Rule):
    """A key gets a row at each sighting with probability p; keys_max as for min_count."""

    name: ClassVar[str] = "probability"
    p: float = parameter(float, "p", "probability", check=_probability)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=_at_least_one)

    def build(self, group: int, seed: int) -> Admission:
        return _Counted(self.keys_max, p=self.p, salt=(seed * 0x9E3779B97F4A7C15 + group + 1) & (2**64 - 1))


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class CountingBloom(_Rule):
    """As min_count, in counters for `capacity` rare keys of which a share of at most `fpr` is admitted too early."""

    name: ClassVar[str] = "counting_bloom"
    count: int = parameter(int, "count", "filter_freq", "min_count", check=_at_least_one)
    capacity: int = parameter(int, "capacity", "max_element_size", default=1 << 20, check=_at_least_one)
    fpr: float = parameter(float, "fpr", "false_positive_probability", default=0.01, check=_rate)

    def _conflicts(self) -> list[str]:
        return [] if self.count <= 65_535 else [f"count={self.count} is more than a 16-bit counter holds"]

    def build(self, group: int, seed: int) -> Admission:
        return _Bloom(self.count, self.capacity, self.fpr)


def make_admission(config: Mapping[str, Any], *, group: int, seed: int) -> Admission:
    """Build a group's rule from {"name": ..., parameters}. Raises UnknownName, InvalidConfig."""
    rule: _Rule = registry.make(config.get("name", ""), {key: v for key, v in config.items() if key != "name"})
    return rule.build(group, seed)


# --- exact counts ---

_FIRST = 1024


@kernel
def _count(index: I64, counts: I64, used: int, keys: I64, more: I64) -> int:
    # index: key -> place in counts; the caller keeps room for all keys
    for i in range(keys.shape[0]):
        at = ix.find_one(index, keys[i])
        if at < 0:
            at = used
            used += 1
            ix.insert_one(index, keys[i], at)
            counts[at] = 0
        counts[at] += more[i]
    return used


@kernel
def _seen(index: I64, counts: I64, keys: I64, out: I64) -> None:
    for i in range(keys.shape[0]):
        at = ix.find_one(index, keys[i])
        out[i] = counts[at] if at >= 0 else 0


@kernel
def _hashes(keys: I64, salt: Any, out: F64) -> None:
    for i in range(keys.shape[0]):
        out[i] = (np.float64(mix64(mix64(keys[i]) ^ salt) >> np.uint64(11)) + 0.5) / 9007199254740992.0


class _Counted:
    """Counts of keys without a row. An admitted key is forgotten at the next clean-up: it has a row from then on."""

    def __init__(self, keys_max: int, *, count: int = 1, p: float | None = None, salt: int = 0) -> None:
        self._keys_max = keys_max
        self._threshold, self._p, self._salt = count, p, np.uint64(salt)
        self._set(np.empty(0, np.int64), np.empty(0, np.int64))

    def _set(self, keys: I64, counts: I64) -> None:
        room = max(_FIRST, 2 * keys.size)
        self._keys, self._counts = np.zeros(room, np.int64), np.zeros(room, np.int64)
        self._keys[: keys.size], self._counts[: keys.size] = keys, counts
        self._index = np.zeros((2 * room, 2), np.int64)
        self._used = keys.size
        ix.insert_rows(self._index, keys, np.arange(keys.size))

    def _needed(self, keys: I64) -> I64:
        if self._p is None:
            return np.full(keys.size, self._threshold)
        if self._p == 1:
            return np.ones(keys.size, np.int64)
        uniform = np.empty(keys.size)
        _hashes(keys, self._salt, uniform)
        # the least n with 1 - (1-p)^n >= u: geometric by inversion
        return np.maximum(1, np.ceil(np.log1p(-uniform) / math.log1p(-self._p))).astype(np.int64)

    def admit(self, keys: I64, counts: I64) -> Bool:
        seen = self.seen(keys) + counts
        admitted: Bool = seen >= self._needed(keys)
        waiting = np.flatnonzero(~admitted | (seen > counts))  # an admitted key counts on if it is known already
        self._make_room(waiting.size)
        new = np.ascontiguousarray(keys[waiting])
        before = self._used
        self._used = _count(self._index, self._counts, self._used, new, np.ascontiguousarray(counts[waiting]))
        if self._used > before:
            added = np.empty(new.size, np.int64)
            ix.find(self._index, new, np.zeros(self._used, np.uint8), 0, added)
            self._keys[added] = new
        return admitted

    def is_admitted(self, keys: I64) -> Bool:
        admitted: Bool = self.seen(keys) >= self._needed(keys)
        return admitted

    def seen(self, keys: I64) -> I64:
        out = np.empty(keys.size, np.int64)
        _seen(self._index, self._counts, keys, out)
        return out

    def _make_room(self, more: int) -> None:
        if self._used + more <= self._keys.size:
            return
        keys, counts = self._keys[: self._used], self._counts[: self._used]
        while keys.size and keys.size + more > self._keys_max:
            counts = counts >> 1
            keys, counts = keys[counts > 0], counts[counts > 0]
        # room for as many again, so that growing is rare
        self._set(keys.copy(), counts.copy())
        if self._used + more > self._keys.size:
            self._keys = np.concatenate([self._keys, np.zeros(more, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
            self._index = np.zeros((2 * self._keys.size, 2), np.int64)
            ix.insert_rows(self._index, self._keys[: self._used].copy(), np.arange(self._used))

    def state(self) -> dict[str, AnyArray]:
        return {"keys": self._keys[: self._used].copy(), "counts": self._counts[: self._used].copy()}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        self._set(np.asarray(state["keys"], np.int64), np.asarray(state["counts"], np.int64))

    def memory_bytes(self) -> int:
        return self._keys.nbytes + self._counts.nbytes + self._index.nbytes


# --- counting Bloom filter ---


@inlined
def _place(key: int, probe: int, size: int) -> Any:
    # double hashing (Kirsch, Mitzenmacher 2006): h1 + i * h2, the second odd
    first = mix64(key)
    second = mix64(first) | np.uint64(1)
    return (first + np.uint64(probe) * second) % np.uint64(size)


@kernel
def _least(counters: Any, keys: I64, probes: int, out: I64) -> None:
    for i in range(keys.shape[0]):
        least = np.int64(counters[_place(keys[i], 0, counters.shape[0])])
        for probe in range(1, probes):
            least = min(least, np.int64(counters[_place(keys[i], probe, counters.shape[0])]))
        out[i] = least


@kernel
def _add(counters: Any, keys: I64, more: I64, probes: int, most: Any, out: I64) -> None:
    # conservative update: only the counters that hold the minimum grow (Estan, Varghese 2002)
    for i in range(keys.shape[0]):
        least = np.int64(counters[_place(keys[i], 0, counters.shape[0])])
        for probe in range(1, probes):
            least = min(least, np.int64(counters[_place(keys[i], probe, counters.shape[0])]))
        least = min(least + more[i], most)
        for probe in range(probes):
            at = _place(keys[i], probe, counters.shape[0])
            if counters[at] < least:
                counters[at] = least
        out[i] = least


def bloom_shape(capacity: int, fpr: float) -> tuple[int, int]:
    """(counters, hashes) = (ceil(|ln p| / (ln 2)^2 * n), ceil(|ln p| / ln 2)): Bloom 1970, as DeepRec rounds."""
    return math.ceil(-math.log(fpr) / math.log(2) ** 2 * capacity), math.ceil(-math.log(fpr) / math.log(2))


class _Bloom:
    def __init__(self, count: int, capacity: int, fpr: float) -> None:
        self._count = count
        size, self._probes = bloom_shape(capacity, fpr)
        self._counters: AnyArray = np.zeros(size, np.uint8 if count <= 255 else np.uint16)

    def admit(self, keys: I64, counts: I64) -> Bool:
        out = np.empty(keys.size, np.int64)
        _add(self._counters, keys, counts, self._probes, self._count, out)
        admitted: Bool = out >= self._count
        return admitted

    def is_admitted(self, keys: I64) -> Bool:
        admitted: Bool = self.seen(keys) >= self._count
        return admitted

    def seen(self, keys: I64) -> I64:
        out = np.empty(keys.size, np.int64)
        _least(self._counters, keys, self._probes, out)
        return out

    def state(self) -> dict[str, AnyArray]:
        return {"counters": self._counters.copy()}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        counters = state["counters"]
        if counters.shape != self._counters.shape or counters.dtype != self._counters.dtype:
            raise ValueError(
                f"{counters.dtype}[{counters.size}] counters, not {self._counters.dtype}[{self._counters.size}]"
            )
        self._counters = counters.copy()

    def memory_bytes(self) -> int:
        return self._counters.nbytes
