"""Where the rows of a variable lie: parts are ranges of slots, and each part is on one of the variable's storages.

A key's slot is mix64(key) & 0x3FFF, as in the keys of RocksDB, so a part is one range of a group on disk. Part i of n
holds the slots with slot * n >> 14 == i, and lies on storage i * S // n of S.
"""

import numpy as np

from rockbed.types import I64

SLOTS = 1 << 14


def slots_of(keys: I64) -> I64:
    """The slot of each key, 0..16383: the low bits of splitmix64's finalizer (Steele, Lea, Flood 2014), which
    rockbed.kernels.mix64 is for compiled loops."""
    z = keys.view(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) & np.uint64(SLOTS - 1)).astype(np.int64)


class Placement:
    """`parts` parts on `storages` storages, storages <= parts <= SLOTS."""

    def __init__(self, parts: int, storages: int) -> None:
        self.parts = parts
        self.storages = storages
        self._storage_of_slot: I64 = (np.arange(SLOTS) * parts >> 14) * storages // parts

    def parts_of(self, keys: I64) -> I64:
        """The part of each key, 0..parts-1."""
        parts: I64 = slots_of(keys) * self.parts >> 14
        return parts

    def split(self, keys: I64) -> list[tuple[int, I64]]:
        """For each storage that has any of the keys: its number, and the positions of its keys, ascending."""
        if self.storages == 1:
            return [(0, np.arange(keys.size))]
        storage = self._storage_of_slot[slots_of(keys)]
        order = np.argsort(storage, kind="stable")
        ends = np.cumsum(np.bincount(storage, minlength=self.storages))
        found = [(i, part) for i, part in enumerate(np.split(order, ends[:-1])) if part.size]
        return found or [(0, order)]

    def slots_on(self, storage: int) -> tuple[int, int]:
        """The slots that lie on a storage: from the first one to before the second."""
        first, last = np.searchsorted(self._storage_of_slot, [storage, storage + 1])
        return int(first), int(last)

    def __eq__(self, other: object) -> bool:
        """Whether each key lies on the same storage."""
        return isinstance(other, Placement) and np.array_equal(self._storage_of_slot, other._storage_of_slot)

    __hash__ = None  # type: ignore[assignment]
