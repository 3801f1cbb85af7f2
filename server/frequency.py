"""Which ids of an adaptive variable are frequent: counts that fade, and a threshold with hysteresis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rockbed.errors import InvalidConfig
from rockbed.kernels import kernel
from rockbed.optimizers.config import Configured, Registry, parameter
from rockbed.server.sightings import SightingCounts, entry, table_for
from rockbed.types import I64, AnyArray, Bool

_KEYS_MAX = 1 << 36


def _at_least_two(value: int) -> str | None:
    return None if value >= 2 else "must be at least 2"


def _at_least_one(value: int) -> str | None:
    return None if value >= 1 else "must be at least 1"


def _half_life(value: int) -> str | None:
    return None if 0 <= value < 1 << 62 else "must be at least 0 (0: counts do not fade)"


def _keys(value: int) -> str | None:
    return None if 1 <= value <= _KEYS_MAX else f"must be from 1 to {_KEYS_MAX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequency(Configured):
    """An id is frequent from the training lookup in which its count reaches `enter`, that lookup's occurrences
    included, until its count falls below `leave`.

    Counts fade: after the lookup with which the occurrences counted of all ids together pass a multiple of `half_life`,
    every count is halved, rounding down (once for each multiple passed); 0 = they do not fade. An id whose count is 0
    is forgotten. At most `keys_max` ids are counted, 24 to 48 bytes each: when one more comes, counts are halved, as
    often as it takes to be rid of a quarter of them.
    """

    name: ClassVar[str] = "frequency"
    kind: ClassVar[str] = "threshold"
    enter: int = parameter(int, "enter", check=_at_least_two)
    leave: int = parameter(int, "leave", default=1, check=_at_least_one)
    half_life: int = parameter(int, "half_life", default=0, check=_half_life)
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=_keys)

    def _conflicts(self) -> Iterable[str]:
        if self.leave >= self.enter:
            yield f"leave={self.leave} must be below enter={self.enter}: between the two an id stays what it is"


registry: Registry[Frequency] = Registry("threshold")
registry.register(Frequency)


def make_frequency(threshold: Mapping[str, Any]) -> Frequency:
    """From {"name": "frequency", parameters}. Raises UnknownName, InvalidConfig (all problems)."""
    if not isinstance(threshold, Mapping) or "name" not in threshold:
        raise InvalidConfig(f'threshold is {threshold!r}: give a mapping like {{"name": "frequency", "enter": 10}}')
    return registry.make(threshold["name"], {key: v for key, v in threshold.items() if key != "name"})


@kernel
def _halved(table: I64, into: I64, leave: int) -> tuple[int, int]:
    """Enter the ids into an empty table with half their counts, those at 0 not at all. An entry is negative while its
    id is frequent. Returns how many were entered, and how many stopped being frequent."""
    entered = left = 0
    for at in range(table.shape[0]):
        value = table[at, 1]
        count = abs(value) >> 1
        if value < 0 and count < leave:
            left += 1
        if count:
            place = entry(into, table[at, 0])
            into[place, 0] = table[at, 0]
            into[place, 1] = -count if value < 0 and count >= leave else count
            entered += 1
    return entered, left


class Frequencies(SightingCounts):
    """The counts of one group. Not thread-safe: the group's lock is held."""

    def __init__(self, rule: Frequency) -> None:
        self._leave, self._half_life = rule.leave, rule.half_life
        self._total = 0  # occurrences counted
        self._halvings = 0
        self.frequent_ids = 0
        self.left = 0  # how often an id stopped being frequent
        super().__init__({"name": rule.name}, rule.keys_max, count=rule.enter)

    @property
    def ids(self) -> int:
        """How many ids are counted."""
        return self._used

    def count(self, keys: I64, counts: I64) -> Bool:
        """Count occurrences, and say which ids are frequent. keys: int64[n], distinct; counts: int64[n], from 1."""
        halvings, before = self._halvings, self.is_admitted(keys)
        frequent = self.admit(keys, counts)
        if self._halvings == halvings:
            self.frequent_ids += int((frequent & ~before).sum())
        else:  # there were too many ids, and some that were frequent may have left and entered again
            self.frequent_ids = self._frequent_entries()
        passed = self._total
        self._total += int(counts.sum())
        if self._half_life:
            for _ in range(min(64, self._total // self._half_life - passed // self._half_life)):
                self._halve()
        return frequent

    def frequent(self, keys: I64) -> Bool:
        """Which ids are frequent; counts nothing. int64[n] -> bool[n]."""
        return self.is_admitted(keys)

    def _frequent_entries(self) -> int:
        return int((self._table[:, 1] < 0).sum())

    def _halve(self) -> None:
        table = table_for(max(self._room, self._used))
        self._used, left = _halved(self._table, table, self._leave)
        self._table = table
        self._halvings += 1
        self.frequent_ids -= left
        self.left += left

    def _age(self) -> None:
        self._room = self._keys_max
        while self._used > self._keys_max * 3 // 4:  # so that a full table is not gone through again at once
            self._halve()

    def state(self) -> dict[str, AnyArray]:
        return {**super().state(), "total": np.array([self._total, self.left])}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        super().restore(state)
        self._total, self.left = (int(each) for each in state["total"])
        counts = self._table[:, 1]
        low = (counts < 0) & (counts > -self._leave)  # where `leave` has been raised since
        counts[low] *= -1
        self.left += int(low.sum())
        self.frequent_ids = self._frequent_entries()
