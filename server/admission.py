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

from rockbed.config import Named
from rockbed.errors import InvalidConfig
from rockbed.optimizers.config import Configured, Registry, parameter
from rockbed.server.sightings import SightingCounts
from rockbed.storage import counting_bloom as cb
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


def keys_check(value: int) -> str | None:
    return None if 1 <= value <= _KEYS_MAX else f"must be from 1 to {_KEYS_MAX}"


def _probability(value: float) -> str | None:
    return None if 1e-15 <= value <= 1 else "must be in (0, 1], and at least 1e-15"


def rate_check(value: float) -> str | None:
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
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=keys_check)

    def build(self, group: int, seed: int) -> Admission:
        return SightingCounts({"name": self.name}, self.keys_max, count=self.count)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Probability(_Rule):
    """A key gets a row at each sighting with probability `p`. keys_max, and what aging does, as for min_count."""

    name: ClassVar[str] = "probability"
    p: float = parameter(float, "p", "probability", check=_probability)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=keys_check)

    def build(self, group: int, seed: int) -> Admission:
        rule = {"name": self.name, "p": self.p, "group": group, "seed": seed}
        return SightingCounts(rule, self.keys_max, p=self.p, group=group, seed=seed)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class CountingBloom(_Rule):
    """As min_count, in counters of 4, 8 or 16 bits (by `count`) for `capacity` keys, admitted ones included."""

    name: ClassVar[str] = "counting_bloom"
    count: int = parameter(int, "count", "filter_freq", "min_count", check=_bloom_count)
    capacity: int = parameter(int, "capacity", "max_element_size", default=1 << 20, check=keys_check)
    fpr: float = parameter(float, "fpr", "false_positive_probability", default=0.01, check=rate_check)

    def build(self, group: int, seed: int) -> Admission:
        return _Bloom(self.count, self.capacity, self.fpr, group, seed)


def checked_admission(config: Mapping[str, Any]) -> Named:
    """{"name": ..., parameters} under their primary names, defaults included; nothing is allocated.

    Raises UnknownName, InvalidConfig (all problems).
    """
    rule = _rule_of(config)
    return {"name": rule.name, **rule.params()}


def make_admission(config: Mapping[str, Any], *, group: int, seed: int) -> Admission:
    """Build a group's rule from {"name": ..., parameters}. Raises UnknownName, InvalidConfig (all problems)."""
    return _rule_of(config).build(group, seed)


def _rule_of(config: Mapping[str, Any]) -> _Rule:
    if not isinstance(config, Mapping) or "name" not in config:
        raise InvalidConfig(f'admission is {config!r}: give a mapping like {{"name": "min_count", "count": 3}}')
    rule: _Rule = registry.make(config["name"], {key: v for key, v in config.items() if key != "name"})
    return rule


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
