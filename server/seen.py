"""Where lookups found rows: who pushes to the keys of a batch that was looked up does not have them searched again."""

import threading
from dataclasses import dataclass

import numpy as np

from rockbed.storage.hot import HotTable
from rockbed.types import I64

_LOOKUPS = 4  # of a group: a few trainers, or one that looks batches up ahead
_KEYS_LEAST = 256  # to search for fewer takes no longer than to remember them
_KEYS_MOST = 1 << 17  # 16 bytes each


@dataclass(slots=True)
class Seen:
    """Where a lookup found the rows of its keys, int64[n], -1 for none: true until a row has left the table. whole:
    whether none is lacking."""

    table: HotTable
    left: int
    rows: I64
    whole: bool = True

    def holds(self, table: HotTable) -> bool:
        """Whether it is still true of the table that the group has now. With the group's lock held or shared."""
        return self.table is table and self.left == table.left


class LatestLookups:
    """What the last lookups of a group found, each until its push comes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: list[tuple[I64, Seen]] = []

    def note(self, keys: I64, seen: Seen) -> None:
        """Remember where keys were found, all of them. keys: int64[n]; seen: the caller's no longer."""
        if _KEYS_LEAST <= keys.size <= _KEYS_MOST:
            latest = keys.copy(), seen
            with self._lock:
                self._lookups = [*self._lookups[1 - _LOOKUPS :], latest]

    def take(self, keys: I64) -> Seen | None:
        """What a lookup of the very same keys found, which is then forgotten. keys: int64[n]."""
        for each in self._lookups:
            # the last one first: batches of one size differ there nearly always
            if each[0].size == keys.size and each[0][-1] == keys[-1] and np.array_equal(each[0], keys):
                with self._lock:
                    self._lookups = [other for other in self._lookups if other is not each]
                return each[1]
        return None
