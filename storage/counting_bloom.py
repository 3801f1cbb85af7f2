"""Counting Bloom filters: counters of 4, 8 or 16 bits in memory, or of 4 bits in a memory-mapped file.

A key has k counters among m, found by double hashing (Kirsch, Mitzenmacher 2006, "Less hashing, same performance"):
with G = 0x9E3779B97F4A7C15, mix64 of rockbed.kernels, and arithmetic modulo 2^64,

    stream   = mix64(mix64(seed ^ D) + (group + 1) * G)      D keeps it apart from the stream of the initial rows
    first    = mix64(stream ^ key),  second = mix64(first + G) | 1
    counter  = (first + i * second) mod m                    i = 0..k-1

The smallest of a key's counters is at least the number of times it was added, up to where counters stop. Adding is
the conservative update (Estan, Varghese 2002): only counters below the new minimum are raised, which keeps that promise
and lets keys disturb each other less than counting in all k of them. Halving all counters, rounding down, keeps the
promise for counts that are halved with them (as TinyLFU ages its sketch: Einziger, Friedman, Manes 2017). Counters of
one bit are a plain Bloom filter.
"""

import fcntl
import math
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rockbed.errors import (
    FormatTooNew,
    InvalidConfig,
    StorageCorrupt,
    StorageFull,
    StoreLocked,
    StoreNotFound,
    StorePathInvalid,
)
from rockbed.kernels import inlined, kernel, mix64, prefetch
from rockbed.storage.files import os_errors
from rockbed.types import I64

U16 = NDArray[np.uint16]

GAMMA: Any = np.uint64(0x9E3779B97F4A7C15)
_DOMAIN: Any = np.uint64(0xA0761D6478BD642F)
_BLOCK = 32  # keys whose counters are all asked for before the first is used
FPR_LEAST = 1e-15  # 50 hashes
WIDEST_MAX = (1 << 16) - 1  # what counters of 16 bits reach


def counters_for(capacity: int, fpr: float) -> float:
    """m, not rounded: counters for a share of `fpr` false positives among `capacity` keys (Bloom 1970)."""
    return capacity * -math.log(fpr) / math.log(2) ** 2


def shape_as_deeprec(capacity: int, fpr: float) -> tuple[int, int]:
    """(m, k), m = ceil(n |ln p| / (ln 2)^2), k = ceil(|ln p| / ln 2)."""
    return math.ceil(counters_for(capacity, fpr)), math.ceil(-math.log(fpr) / math.log(2))


def shape_as_damo(capacity: int, fpr: float) -> tuple[int, int]:
    """(m, k), m = n ln(1/fpr) / (ln 2)^2 rounded up to an even number, k = ceil(m / n ln 2)."""
    counters = math.ceil(counters_for(capacity, fpr) / 2) * 2
    return counters, math.ceil(counters / capacity * math.log(2))


def bits_for(count: int) -> int:
    """The narrowest counters, 4, 8 or 16 bits, that reach `count`. Raises InvalidConfig above 65535."""
    for bits in (4, 8, 16):
        if count < 1 << bits:
            return bits
    raise InvalidConfig(f"count is {count}: the widest counters of a Bloom filter, of 16 bits, stop at {WIDEST_MAX}")


# --- kernels ---


@inlined
def stream_of(seed: Any, group: int) -> Any:
    """uint64: what the hashes of one group under one seed start from."""
    return mix64(mix64(np.uint64(seed) ^ _DOMAIN) + np.uint64(group + 1) * GAMMA)


@inlined
def _locate(words: U16, bits: int, size: int, stream: Any, keys: I64, start: int, stop: int, at: I64) -> None:
    # at[i - start, j] = first bit of counter j of keys[i], and its cache line is asked for
    for i in range(start, stop):
        first = mix64(stream ^ np.uint64(keys[i]))
        second = mix64(first + GAMMA) | np.uint64(1)
        for j in range(at.shape[1]):
            at[i - start, j] = np.int64((first + np.uint64(j) * second) % np.uint64(size)) * bits
            prefetch(words, at[i - start, j] >> 3)


@inlined
def _counter(words: U16, bits: int, bit: int) -> Any:
    return (np.int64(words[bit >> 4]) >> (bit & 15)) & ((1 << bits) - 1)


@inlined
def _smallest(words: U16, bits: int, at: I64, row: int) -> Any:
    least = _counter(words, bits, at[row, 0])
    for j in range(1, at.shape[1]):
        least = min(least, _counter(words, bits, at[row, j]))
    return least


@kernel
def _least(words: U16, bits: int, size: int, hashes: int, seed: Any, group: int, keys: I64, out: I64) -> None:
    at = np.empty((_BLOCK, hashes), np.int64)
    stream = stream_of(seed, group)
    for start in range(0, keys.shape[0], _BLOCK):
        stop = min(start + _BLOCK, keys.shape[0])
        _locate(words, bits, size, stream, keys, start, stop, at)
        for i in range(start, stop):
            out[i] = _smallest(words, bits, at, i - start)


@kernel
def _add(
    words: U16, bits: int, size: int, hashes: int, seed: Any, group: int, keys: I64, nums: I64, limit: int, out: I64
) -> None:
    at = np.empty((_BLOCK, hashes), np.int64)
    stream = stream_of(seed, group)
    for start in range(0, keys.shape[0], _BLOCK):
        stop = min(start + _BLOCK, keys.shape[0])
        _locate(words, bits, size, stream, keys, start, stop, at)
        for i in range(start, stop):
            # limited first, so that the sum cannot overflow
            value = min(_smallest(words, bits, at, i - start) + min(nums[i], limit), limit)
            for j in range(hashes):
                bit = at[i - start, j]
                if _counter(words, bits, bit) < value:
                    shift = bit & 15
                    others = np.int64(words[bit >> 4]) & ~(((1 << bits) - 1) << shift)
                    words[bit >> 4] = others | (value << shift)
            out[i] = value


@kernel
def _fade(words: U16, bits: int, size: int, halvings: int, flags: U16, least: int) -> tuple[int, int]:
    above_zero = flagged = 0
    for i in range(size):
        word, shift = i * bits >> 4, i * bits & 15
        value = _counter(words, bits, i * bits)
        if value == 0:
            continue  # most of them, and their flags are 0 too
        faded = value >> halvings
        if halvings:
            words[word] = (np.int64(words[word]) & ~(((1 << bits) - 1) << shift)) | (faded << shift)
        above_zero += faded > 0
        if _counter(flags, 1, i):
            if faded < least:
                flags[i >> 4] = np.int64(flags[i >> 4]) & ~(1 << (i & 15))
            else:
                flagged += 1
    return above_zero, flagged


class CountingBloom:
    """Counters of `bits` bits in `words`, uint16[ceil(size * bits / 16)]. Not thread-safe."""

    def __init__(self, words: U16, *, bits: int, size: int, hashes: int) -> None:
        self.words = words
        self.bits = bits
        self.size = size
        self.hashes = hashes

    def least(self, keys: I64, *, group: int, seed: int = 0) -> I64:
        """The smallest counter of each key. keys: int64[n] -> int64[n]."""
        out = np.empty(keys.shape[0], np.int64)
        _least(self.words, self.bits, self.size, self.hashes, np.uint64(seed), group, keys, out)
        return out

    def add(self, keys: I64, nums: I64, *, limit: int, group: int, seed: int = 0) -> I64:
        """Count keys[i] nums[i] times, in order; counters stop at `limit`. Returns `least` right after each.

        keys, nums: int64[n], repeats allowed, nums >= 0 -> int64[n]. 1 <= limit < 2**bits.
        """
        out = np.empty(keys.shape[0], np.int64)
        _add(self.words, self.bits, self.size, self.hashes, np.uint64(seed), group, keys, nums, limit, out)
        return out

    def fade(self, halvings: int, flags: "CountingBloom", least: int) -> tuple[int, int]:
        """Halve all counters, rounding down, `halvings` times (0..16), and clear the flags of those below `least`.

        flags: counters of one bit, of the same size, set only where a counter is above 0.
        Returns how many counters are above 0, and how many flags are set.
        """
        above_zero, flagged = _fade(self.words, self.bits, self.size, halvings, flags.words, least)
        return int(above_zero), int(flagged)

    def keys_for(self, counters: int) -> int:
        """How many distinct keys set so many counters: n = -m/k ln(1 - X/m), an estimate (Swamidass, Baldi 2007)."""
        return round(-self.size / self.hashes * math.log1p(-min(counters, self.size - 1) / self.size))


def words_of(size: int, bits: int) -> int:
    """How many uint16 `size` counters take."""
    return -(-size * bits // 16)


# --- the file ---

FILE_BITS = 4
COUNTER_MAX = (1 << FILE_BITS) - 1
_HEADER = struct.Struct("<12sIQIQd")  # magic, version, counters, hashes, capacity, fpr; then crc32 of these
_CRC = struct.Struct("<I")
_MAGIC = b"ROCKBED-CBF\0"
_HEADER_BYTES = 4096  # a page, so that the counters begin at one
_VERSION = 2


class FilterFile:
    """An open filter file: a header page, then 4-bit counters, two a byte, the first in the lower half.

    The file has its full length from the beginning and takes disk space where a counter was set. One process at a
    time has it open: counters are read, raised and written without anything that would keep two writers apart.
    """

    def __init__(self, path: Path, *, capacity: int, fpr: float, reload: bool) -> None:
        """reload: go on with the file that is there, made with the same capacity and fpr; otherwise begin with zeros.

        Raises InvalidConfig (made with others), StorageCorrupt (no filter file, or a damaged one: never overwritten),
        FormatTooNew, StoreLocked, StoreNotFound (no such directory), StorePathInvalid (no regular file), StorageFull
        (the disk has less room than the counters may come to take), StorePermission, StorageFailed.
        """
        self.path = path
        size, hashes = shape_as_damo(capacity, fpr)
        self._made_for = (_MAGIC, _VERSION, size, hashes, capacity, fpr)
        self._bytes = _HEADER_BYTES + 2 * words_of(size, FILE_BITS)
        if not path.parent.is_dir():
            raise StoreNotFound(f"there is no directory {path.parent} for the filter {path.name}: create it first")
        if path.exists() and not path.is_file():
            raise StorePathInvalid(f"{path} is not a regular file: give the path of a filter file, or a new one")
        with os_errors(f"opening the filter {path}"):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(handle)
                self._prepare(handle, reload)
                # the mapping holds a duplicate of the handle, and with it the lock: both go when it is closed or freed
                self._map = mmap.mmap(handle, self._bytes)
            finally:
                os.close(handle)
        words: U16 = np.frombuffer(self._map, "<u2", offset=_HEADER_BYTES)
        self._counters: CountingBloom | None = CountingBloom(words, bits=FILE_BITS, size=size, hashes=hashes)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(
                f"the filter {self.path} is open already, here or in another process: close that one, share it, or "
                "give another path"
            ) from None

    def _prepare(self, handle: int, reload: bool) -> None:
        status = os.fstat(handle)
        if status.st_size:
            # also where it is about to be emptied: a mistyped path must not cost somebody's file
            self._check(os.pread(handle, _HEADER_BYTES, 0), status.st_size, reload)
        fresh = not (status.st_size and reload)
        if fresh:
            os.ftruncate(handle, 0)
        room = os.fstatvfs(handle)
        missing = self._bytes - (0 if fresh else status.st_blocks * 512)
        # a write through the mapping that finds the disk full kills the process (SIGBUS), so it is asked for now
        if missing > room.f_bavail * room.f_frsize:
            raise StorageFull(
                f"the filter {self.path} may come to take {self._bytes:,} bytes, {missing:,} more than now, and its "
                f"disk has {room.f_bavail * room.f_frsize:,} free: give a smaller capacity, or a path on another disk"
            )
        if fresh:
            head = _HEADER.pack(*self._made_for)
            os.pwrite(handle, head + _CRC.pack(zlib.crc32(head)), 0)
            os.ftruncate(handle, self._bytes)

    def _check(self, page: bytes, size: int, reload: bool) -> None:
        instead = "give another path, or remove it"
        if page[: len(_MAGIC)] != _MAGIC:
            raise StorageCorrupt(f"{self.path} ({size:,} bytes) is not a filter file: {instead}")
        if not reload:
            return
        if len(page) < _HEADER_BYTES:
            raise StorageCorrupt(f"{self.path} ends within its header: begin anew with reload=False")
        found = _HEADER.unpack_from(page)
        if found[1] > _VERSION:
            raise FormatTooNew(
                f"{self.path} is a filter of format {found[1]}, this Rockbed reads {_VERSION}: open it with a newer one"
            )
        if found[1] < _VERSION or zlib.crc32(page[: _HEADER.size]) != _CRC.unpack_from(page, _HEADER.size)[0]:
            raise StorageCorrupt(f"the header of {self.path} is damaged: begin anew with reload=False")
        if found != self._made_for:
            raise InvalidConfig(
                f"the filter {self.path} was made with capacity={found[4]}, fpr={found[5]!r}, and is opened with "
                f"capacity={self._made_for[4]}, fpr={self._made_for[5]!r}: give the same, another path, or reload=False"
            )
        if size != self._bytes:
            raise StorageCorrupt(
                f"{self.path} has {size:,} bytes instead of {self._bytes:,}, it was cut or extended: begin anew with "
                "reload=False"
            )

    @property
    def counters(self) -> CountingBloom | None:
        """The counters; None after `close`."""
        return self._counters

    def flush(self) -> None:
        """Force the counters to the disk."""
        with os_errors(f"writing the filter {self.path}"):
            self._map.flush()

    def close(self) -> None:
        """Close the file. What was counted reaches the disk as after a write(). May be called twice."""
        self._counters = None  # the array over the mapping goes first: a mapping in use cannot be closed
        self._map.close()
