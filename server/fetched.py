"""What was read from disk: which keys were asked for, and the records of those that have one."""

from dataclasses import dataclass

import numpy as np

from rockbed.types import I64, U8, Bool


@dataclass(slots=True)
class Fetched:
    """Rows read from disk. keys: int64[n], asked for; found: int64[m], positions in keys; records: uint8[m, size]."""

    keys: I64
    found: I64
    records: U8

    def part(self, at: I64) -> "Fetched":
        """What was read of the keys at ascending positions."""
        number = np.full(self.keys.size, -1)
        number[at] = np.arange(at.size)
        kept = number[self.found] >= 0
        return Fetched(self.keys[at], number[self.found[kept]], self.records[kept])

    def joined(self, at: I64, other: "Fetched", other_at: I64) -> "Fetched":
        """What was read of these keys and of others. at, other_at: the positions of either's keys among all of them."""
        keys = np.empty(at.size + other_at.size, np.int64)
        keys[at], keys[other_at] = self.keys, other.keys
        found = np.concatenate([at[self.found], other_at[other.found]])
        return Fetched(keys, found, np.concatenate([self.records, other.records]))


def find_in(ascending: I64, keys: I64) -> tuple[I64, Bool]:
    """Where keys stand among distinct ascending ones: int64[n], any position for those that do not; bool[n]."""
    if not ascending.size:
        return np.zeros(keys.size, np.int64), np.zeros(keys.size, np.bool_)
    at = np.minimum(np.searchsorted(ascending, keys), ascending.size - 1)
    return at, ascending[at] == keys
