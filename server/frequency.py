"""Which ids of an adaptive variable are frequent: counts that fade, and a threshold with hysteresis.

frequency       exact counts, 24 to 48 bytes an id
counting_bloom  the same by a counting Bloom filter, in fixed memory of some 11 bytes an id: never too late, too early,
                or for too long, for at most a share `fpr` of the ids
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rockbed.errors import InvalidConfig
from rockbed.kernels import kernel
from rockbed.optimizers.config import Configured, Registry, at_least_one, parameter
from rockbed.server.admission import keys_check, rate_check
from rockbed.server.sightings import SightingCounts, entry, table_for
from rockbed.storage import counting_bloom as cb
from rockbed.storage.memory import reserve
from rockbed.types import I64, AnyArray, Bool

# --- settings ---


def _at_least_two(value: int) -> str | None:
    return None if value >= 2 else "must be at least 2"


def _half_life(value: int) -> str | None:
    return None if 0 <= value < 1 << 62 else "must be at least 0 (0: counts do not fade)"


registry: Registry[Any] = Registry("threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Configured):
    """An id is frequent from the training lookup in which its count reaches `enter`, that lookup's occurrences
    included, until its count falls below `leave`.

    Counts fade: after the lookup with which the occurrences counted of all ids together pass a multiple of `half_life`,
    every count is halved, rounding down (once for each multiple passed); 0 = they do not fade.
    """

    kind: ClassVar[str] = "threshold"
    enter: int = parameter(int, "enter", check=_at_least_two)
    leave: int = parameter(int, "leave", default=1, check=at_least_one)
    half_life: int = parameter(int, "half_life", default=0, check=_half_life)

    def build(self, group: int, seed: int) -> "Frequencies | BloomFrequencies":
        """Counts of a group, all 0. Raises InvalidConfig where there is no room for them."""
        raise NotImplementedError

    def _conflicts(self) -> Iterable[str]:
        if self.leave >= self.enter:
            yield f"leave={self.leave} must be below enter={self.enter}: between the two an id stays what it is"


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class Frequency(Threshold):
    """A threshold for exact counts: `enter`, `leave` and `half_life` are as Threshold says.

    An id whose count is 0 is forgotten. At most `keys_max` ids are counted, 24 to 48 bytes each: when one more comes,
    counts are halved, as often as it takes to be rid of a quarter of them.
    """

    name: ClassVar[str] = "frequency"
    keys_max: int = parameter(int, "keys_max", default=1 << 24, check=keys_check)

    def build(self, group: int, seed: int) -> "Frequencies":
        """As Threshold.build; the exact counts of all groups are alike."""
        return Frequencies(self)


@registry.register
@dataclass(frozen=True, slots=True, kw_only=True)
class BloomFrequency(Threshold):
    """A threshold for counts in a counting Bloom filter, whose memory is fixed: `enter`, `leave` and `half_life` are as
    Threshold says, with the filter's estimate of a count, which is never below it.

    Of ids that are counted, as long as they are at most `capacity`, a share of about `fpr` may be counted too high, the
    others are exact (Bloom 1970). Beyond that counts get worse, and none is refused. For each id of `capacity` there
    are |ln fpr| / (ln 2)^2 counters, 9.6 at 0.01, of 4, 8 or 16 bits, the narrowest that reach `enter` and twice
    `leave`, where they stop, and a bit more for each: 6, 11 or 20 bytes.
    """

    name: ClassVar[str] = "counting_bloom"
    capacity: int = parameter(int, "capacity", default=1 << 20, check=keys_check)
    fpr: float = parameter(float, "fpr", default=0.01, check=rate_check)

    @property
    def reach(self) -> int:
        """What counters must hold: an id whose counter has stopped stays frequent when it is halved once."""
        return max(self.enter, 2 * self.leave)

    def build(self, group: int, seed: int) -> "BloomFrequencies":
        """As Threshold.build; group and seed go into the hashes."""
        return BloomFrequencies(self, group, seed)

    def _conflicts(self) -> Iterable[str]:
        yield from Threshold._conflicts(self)  # super() knows the class that slots=True has replaced
        if self.reach > cb.WIDEST_MAX:
            yield (
                f"enter={self.enter} and twice leave={self.leave} must be at most {cb.WIDEST_MAX}, where counters "
                'stop: count exactly, with "frequency"'
            )


def make_frequency(threshold: Mapping[str, Any]) -> Threshold:
    """From {"name": "frequency", parameters}. Raises UnknownName, InvalidConfig (all problems)."""
    if not isinstance(threshold, Mapping) or "name" not in threshold:
        raise InvalidConfig(f'threshold is {threshold!r}: give a mapping like {{"name": "frequency", "enter": 10}}')
    rule: Threshold = registry.make(threshold["name"], {key: v for key, v in threshold.items() if key != "name"})
    return rule


def _halvings(half_life: int, passed: int, total: int) -> int:
    """How often counts are halved when `total` occurrences are counted after `passed`."""
    return min(64, total // half_life - passed // half_life) if half_life else 0


# --- exact counts ---


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
        for _ in range(_halvings(self._half_life, passed, self._total)):
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


# --- counts in a Bloom filter ---


class BloomFrequencies:
    """The counts of one group. Not thread-safe: the group's lock is held.

    Beside the counters there is a bit for each, set in all of an id's when it becomes frequent; a counter that falls
    below `leave` loses its bit. An id is frequent while all of its bits are set: a plain Bloom filter of frequent ids.
    An id with a counter that no other id has is counted exactly, up to where counters stop, and frequent exactly when
    it should be. That all counters of one are shared has the probability (1 - e^(-k n / m))^k for n other ids, m
    counters and k of them an id (Bloom 1970): fpr for n = capacity.
    """

    def __init__(self, rule: BloomFrequency, group: int, seed: int) -> None:
        self._enter, self._leave, self._half_life = rule.enter, rule.leave, rule.half_life
        self._place = {"group": group, "seed": seed}
        bits = cb.bits_for(rule.reach)
        size, hashes = cb.shape_as_deeprec(rule.capacity, rule.fpr)
        shape = {"bits": bits, "size": size, "hashes": hashes, **self._place}
        self._rule = json.dumps({"name": rule.name, **shape}, sort_keys=True)
        self._stop = (1 << bits) - 1
        self._counts, self._frequent = (
            cb.CountingBloom(reserve((cb.words_of(size, each),), np.uint16), bits=each, size=size, hashes=hashes)
            for each in (bits, 1)
        )
        self._total = 0  # occurrences counted
        # estimates, as of the last halving, and exact from then on but for ids that are taken for others:
        self.ids = 0  # that are counted
        self.frequent_ids = 0
        self.left = 0  # how often an id stopped being frequent

    def count(self, keys: I64, counts: I64) -> Bool:
        """As Frequencies.count."""
        new, before = self._counts.least(keys, **self._place) == 0, self.frequent(keys)
        found = self._counts.add(keys, counts, limit=self._stop, **self._place)
        self._mark(keys[found >= self._enter])
        frequent = self.frequent(keys)
        self.ids += int(new.sum())
        self.frequent_ids += int((frequent & ~before).sum())
        passed = self._total
        self._total += int(counts.sum())
        if halvings := _halvings(self._half_life, passed, self._total):
            self._fade(halvings, self._leave)
        return frequent

    def frequent(self, keys: I64) -> Bool:
        """Which ids are frequent; counts nothing. int64[n] -> bool[n]."""
        frequent: Bool = self._frequent.least(keys, **self._place) > 0
        return frequent

    def _mark(self, keys: I64) -> None:
        self._frequent.add(keys, np.ones(keys.size, np.int64), limit=1, **self._place)

    def _fade(self, halvings: int, leave: int) -> None:
        above_zero, marked = self._counts.fade(min(halvings, 16), self._frequent, leave)
        before, self.frequent_ids = self.frequent_ids, self._frequent.keys_for(marked)
        self.left += max(0, before - self.frequent_ids)
        self.ids = self._counts.keys_for(above_zero)

    def state(self) -> dict[str, AnyArray]:
        """All counts, copied, for numpy.savez."""
        filters = {"words": self._counts.words.copy(), "frequent": self._frequent.words.copy()}
        return {"rule": np.array(self._rule), **filters, "total": np.array([self._total, self.left])}

    def restore(self, state: Mapping[str, AnyArray]) -> None:
        """The reverse of `state`, where nothing was counted; also of the state of exact counts. Those of a filter of
        another shape mean nothing here: then counting begins anew. Raises ValueError or KeyError where the arrays are
        damaged."""
        self._total, self.left = (int(each) for each in state["total"])
        if "keys" in state:
            keys, counts = state["keys"].astype(np.int64), state["counts"].astype(np.int64)
            self._counts.add(keys, np.abs(counts), limit=self._stop, **self._place)
            self._mark(keys[counts < 0])
        elif str(state["rule"]) == self._rule:
            for name, own in (("words", self._counts.words), ("frequent", self._frequent.words)):
                if state[name].dtype != own.dtype or state[name].shape != own.shape:
                    raise ValueError(f"{state[name].dtype}{list(state[name].shape)}, not {own.dtype}{list(own.shape)}")
                own[:] = state[name]
        else:
            return
        self._fade(0, leave=0)  # estimates what is there
        self._fade(0, self._leave)  # which has been raised since, perhaps

    def memory_bytes(self) -> int:
        return self._counts.words.nbytes + self._frequent.words.nbytes
