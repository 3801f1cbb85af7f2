"""A counting Bloom filter in a memory-mapped file: two 4-bit counters a byte, which stop at 15.

The file: 4096 bytes of header (magic, version, counters, hashes), then the counters. It is as long as its counters need
from the beginning, but takes disk space only where a counter was set.
"""

import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from rockbed.errors import StorageCorrupt
from rockbed.kernels import inlined, kernel, mix64
from rockbed.storage.files import os_errors
from rockbed.types import I64, U8

COUNTER_MAX = 15
_HEADER = struct.Struct("<12sIQI")
_MAGIC = b"ROCKBED-CBF\0"
_HEADER_BYTES = 4096
_VERSION = 1


def shape(capacity: int, fpr: float) -> tuple[int, int]:
    """(counters m, hashes k) for a share of at most `fpr` false positives among `capacity` keys (Bloom 1970).

    m = n ln(1/fpr) / (ln 2)^2, rounded up to an even number; k = ceil(m / n ln 2).
    """
    counters = math.ceil(capacity * math.log(1 / fpr) / math.log(2) ** 2)
    counters += counters % 2
    return counters, math.ceil(counters / capacity * math.log(2))


@inlined
def _place(group: int, key: int, probe: int, size: int) -> Any:
    # double hashing (Kirsch, Mitzenmacher 2006): h1 + i * h2, the second odd
    first = mix64(mix64(key) ^ np.uint64(group))
    second = mix64(first) | np.uint64(1)
    return (first + np.uint64(probe) * second) % np.uint64(size)


@inlined
def _get(counters: U8, at: int) -> Any:
    return (counters[at >> np.uint64(1)] >> np.uint8((at & np.uint64(1)) << np.uint64(2))) & np.uint8(15)


@kernel
def _least(counters: U8, size: int, probes: int, group: int, keys: I64, out: U8) -> None:
    for i in range(keys.shape[0]):
        least = np.uint8(15)
        for probe in range(probes):
            least = min(least, _get(counters, _place(group, keys[i], probe, size)))
        out[i] = least


@kernel
def _add(counters: U8, size: int, probes: int, group: int, keys: I64, more: I64) -> None:
    for i in range(keys.shape[0]):
        for probe in range(probes):
            at = _place(group, keys[i], probe, size)
            value = min(np.int64(_get(counters, at)) + more[i], np.int64(15))
            shift = np.uint8((at & np.uint64(1)) << np.uint64(2))
            byte = counters[at >> np.uint64(1)]
            counters[at >> np.uint64(1)] = (byte & ~(np.uint8(15) << shift)) | (np.uint8(value) << shift)


class CountingBloom:
    """An open filter file. Not thread-safe."""

    def __init__(self, path: Path, *, capacity: int, fpr: float, reload: bool) -> None:
        """reload: go on with the file that is there, which must be of the same shape; otherwise begin with zeros.

        Raises StorageCorrupt for a file that is no filter, or one of another shape; the disk's errors.
        """
        self.path = path
        self.counters, self.probes = shape(capacity, fpr)
        size = _HEADER_BYTES + self.counters // 2
        with os_errors(f"opening the filter {path}"):
            old = reload and path.is_file()
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | (0 if old else os.O_TRUNC), 0o644)
            try:
                if old:
                    self._check(os.pread(self._handle, _HEADER.size, 0), os.fstat(self._handle).st_size, size)
                else:
                    os.ftruncate(self._handle, size)
                    os.pwrite(self._handle, _HEADER.pack(_MAGIC, _VERSION, self.counters, self.probes), 0)
                self._map = mmap.mmap(self._handle, size)
            except BaseException:
                os.close(self._handle)
                raise
        self._bytes: U8 | None = np.frombuffer(self._map, np.uint8, offset=_HEADER_BYTES)

    def _check(self, head: bytes, size: int, expected: int) -> None:
        wanted = (_MAGIC, _VERSION, self.counters, self.probes)
        found = _HEADER.unpack(head) if len(head) == _HEADER.size else None
        if found != wanted or size != expected:
            is_filter = found is not None and found[0] == _MAGIC
            what = f"a filter of {found[2]} counters and {found[3]} hashes" if is_filter and found else "no filter"
            raise StorageCorrupt(
                f"{self.path} is {what} ({size} bytes); capacity and fpr ask for {self.counters} counters and "
                f"{self.probes} hashes ({expected} bytes): give another path, the same capacity and fpr, or "
                f"reload=False"
            )

    def least(self, group: int, keys: I64) -> U8:
        """The smallest counter of each key: at least as often as it was added, up to 15. int64[n] -> uint8[n]."""
        assert self._bytes is not None
        out = np.empty(keys.size, np.uint8)
        _least(self._bytes, self.counters, self.probes, group, keys, out)
        return out

    def add(self, group: int, keys: I64, more: I64) -> None:
        """Count each key `more` times further. keys, more: int64[n], more >= 0."""
        assert self._bytes is not None
        _add(self._bytes, self.counters, self.probes, group, keys, more)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._bytes is None

    def flush(self) -> None:
        """Force the counters to the disk."""
        with os_errors(f"writing the filter {self.path}"):
            self._map.flush()

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._bytes is not None:
            self._bytes = None
            self._map.close()
            os.close(self._handle)
