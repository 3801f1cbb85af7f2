"""Digests of exported rows, by which a later export finds what has changed since.

A group's file holds (key i64, digest u64), little-endian, for each row that the export stands for, in the order in
which RocksDB has the keys: by slot, then by key. Both sides are in that order, so they are merged as they are read,
whatever their size. The manifest has the file's SHA-256: a digest that has changed on the disk would have its row
written again, a key that has changed would have another row taken for one that is gone.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np

from rockbed.errors import StorageCorrupt
from rockbed.slots import mix64, slots_of
from rockbed.storage.files import os_errors
from rockbed.types import I64, U64, AnyArray, Bool

ENTRY = np.dtype([("key", "<i8"), ("digest", "<u8")])
_PIECE_BYTES = 1 << 20  # of a file that are read at a time
_STEP = np.uint64(0x9E3779B97F4A7C15)
_SIGN = np.uint64(1 << 63)


def row_digests(columns: list[AnyArray]) -> U64:
    """A 64-bit digest of each row, uint64[n]: two rows that differ have the same one with a probability of 2^-64.

    columns: float32[n, width] or int64[n].
    """
    digests: U64 = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        words = column.view(np.uint32 if column.dtype == np.dtype(np.float32) else np.uint64)
        for word in np.atleast_2d(words.T):
            digests = mix64((digests ^ word.astype(np.uint64)) + _STEP)
    return digests


def entries_of(keys: I64, digests: U64) -> bytes:
    """The entries of some rows, as the file has them."""
    entries = np.empty(keys.size, ENTRY)
    entries["key"], entries["digest"] = keys, digests
    return entries.tobytes()


def must_be_whole(path: Path, checksum: str) -> None:
    """Raise StorageCorrupt where a file is not what was written. checksum: its SHA-256 in hexadecimal digits."""
    found = sha256()
    with os_errors(f"reading {path}"), path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    if found.hexdigest() != checksum:
        raise StorageCorrupt(
            f"{path} does not match its checksum in the manifest, and what has changed since cannot be told: put an "
            "undamaged copy of the export in its place, or make a whole export"
        )


class Earlier:
    """The rows of a group that an earlier export stands for, taken in RocksDB's order. path: None = there are none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = np.empty(0, ENTRY)
        if path is not None and path.stat().st_size:
            with os_errors(f"reading {path}"):
                self._entries = np.memmap(path, ENTRY, "r")
        self._at = 0

    def compared(self, keys: I64, digests: U64, last: int) -> tuple[Bool, I64]:
        """Which of the rows, in order, are new or differ; and the keys up to `last` that are not among them now."""
        return self._compared(keys, digests, self._after(last))

    def rest(self) -> I64:
        """The keys that have not been compared: none of them has a row."""
        return self._compared(np.empty(0, np.int64), np.empty(0, np.uint64), self._entries.size)[1]

    def _compared(self, keys: I64, digests: U64, end: int) -> tuple[Bool, I64]:
        then = self._entries[self._at : end]
        self._at = end
        old = np.ascontiguousarray(then["key"])
        if not old.size:
            return np.ones(keys.size, np.bool_), old
        order = np.argsort(old)
        at = order[np.minimum(np.searchsorted(old, keys, sorter=order), old.size - 1)]
        there = old[at] == keys
        gone = np.ones(old.size, np.bool_)
        gone[at[there]] = False
        return ~there | (then["digest"][at] != digests), old[gone]

    def _after(self, key: int) -> int:
        """Where the entries behind a key begin."""
        wanted = _place(np.int64(key))
        low, high = self._at, self._entries.size
        while low < high:
            middle = (low + high) // 2
            if _place(self._entries["key"][middle]) <= wanted:
                low = middle + 1
            else:
                high = middle
        if low > self._at and _place(self._entries["key"][low - 1]) < _place(self._entries["key"][self._at]):
            raise StorageCorrupt(f"{self._path} is not in order: make a full export")
        return low


def _place(key: np.int64) -> tuple[int, int]:
    """By what RocksDB sorts keys."""
    keys = np.array([key], np.int64)
    return int(slots_of(keys)[0]), int(keys.view(np.uint64)[0] ^ _SIGN)
