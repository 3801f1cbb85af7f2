"""Where the rows of a variable lie: parts are ranges of slots, and each part is on one of the variable's storages.

A key's slot is mix64(key) & 0x3FFF, as in the keys of RocksDB, so a part is one range of a group on disk. Part i of n
holds the slots with slot * n >> 14 == i, and lies on storage i * S // n of S.
"""

import numpy as np

from rockbed.slots import SLOTS, slots_of
from rockbed.types import I64


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
