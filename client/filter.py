"""`PyFilter`: a counting Bloom filter of its own, as damo-embedding has one, to be asked before a lookup."""

import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, overload

import numpy as np

from rockbed.client.arrays import checked_keys
from rockbed.client.parameters import Parameters, as_mapping
from rockbed.config import GROUPS
from rockbed.errors import InvalidConfig, StorageClosed, WrongDtype, WrongShape
from rockbed.optimizers.config import Configured, Registry, parameter
from rockbed.storage.counting_bloom import COUNTER_MAX, FPR_LEAST, CountingBloom, FilterFile
from rockbed.types import I64, U64, Bool

_CAPACITY_MAX = 1 << 40
_DEFAULT_NAME = "rockbed-filter"


def _capacity(value: int) -> str | None:
    return None if 1 <= value <= _CAPACITY_MAX else f"must be from 1 to {_CAPACITY_MAX}"


def _count(value: int) -> str | None:
    return None if 1 <= value <= COUNTER_MAX else f"must be from 1 to {COUNTER_MAX}, where 4-bit counters stop"


def _rate(value: float) -> str | None:
    return None if FPR_LEAST <= value < 1 else f"must be in [{FPR_LEAST:g}, 1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings(Configured):
    """Parameters of a filter."""

    kind: ClassVar[str] = "filter"
    name: ClassVar[str] = "counting_bloom"
    capacity: int = parameter(int, "capacity", "max_element_size", default=1 << 28, check=_capacity)
    count: int = parameter(int, "count", "filter_freq", default=COUNTER_MAX, check=_count)
    path: str = parameter(str, "path", default="")
    fpr: float = parameter(float, "fpr", "false_positive_probability", default=1e-3, check=_rate)
    reload: bool = parameter(bool, "reload", default=True)


_registry: Registry[_Settings] = Registry("filter")
_registry.register(_Settings)


class PyFilter:
    """Counts keys approximately, in a file; `check` says whether a key was added at least `count` times.

    No key that was is missed. Of those that were not, a share of at most `fpr` is taken for one while up to `capacity`
    different keys (of all groups together) are counted, far fewer when `count` is more than 1. Thread-safe. The
    admission rules of PyEmbedding do the same inside the store; this is for callers who decide themselves.
    """

    def __init__(self, params: Parameters | Mapping[str, Any] | None = None, /, **parameters: Any) -> None:
        """Open a filter's file, or make one. Parameters in a bag, by keyword, or some each way.

        capacity: keys, by default 2^28. count: 1..15 (counters have 4 bits), by default 15. fpr: by default 1e-3.
        path: by default `rockbed-filter` in the temporary directory. reload: go on with a file that is there (True), or
        begin anew (False).

        The file is 7.2 bytes a key of capacity at fpr 1e-3, 1.9 GB by default, sparse until keys are added. One
        PyFilter at a time may have it open. `count` is not kept in it: every opening says it anew.
        Raises UnknownName, InvalidConfig (with every problem; also for a file that was made with another capacity or
        fpr), StorageCorrupt (a file that is no filter: it is never overwritten), StoreLocked, StorageFull (less room
        on the disk than the counters may come to take) and the disk's other errors.
        """
        given = as_mapping("filter", params, parameters)
        if isinstance(given.get("path"), os.PathLike):
            given["path"] = os.fspath(given["path"])
        settings = _registry.make(_Settings.name, given)
        self.count: int = settings.count
        self._lock = threading.Lock()
        path = Path(settings.path) if settings.path else Path(tempfile.gettempdir()) / _DEFAULT_NAME
        self._file = FilterFile(path, capacity=settings.capacity, fpr=settings.fpr, reload=settings.reload)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @overload
    def check(self, group: int, key: int | np.integer[Any]) -> bool: ...
    @overload
    def check(self, group: int, key: I64 | U64) -> Bool: ...
    def check(self, group: int, key: int | np.integer[Any] | I64 | U64) -> bool | Bool:
        """Whether a key was added at least `count` times. key: an int, or int64[n] or uint64[n], which gives bool[n].

        Raises InvalidConfig (group), WrongDtype, WrongShape, StorageClosed.
        """
        keys, group = _keys(key), _group(group)
        with self._lock:
            found: Bool = self._counters().least(keys, group=group) >= self.count
        return found if isinstance(key, np.ndarray) else bool(found[0])

    def add(self, group: int, key: int | np.integer[Any] | I64 | U64, num: int | I64 = 1) -> None:
        """Count a key, or each key of an array, `num` times: an int, or int64[n], one for each key; at least 0.

        Counters stop at 15. Raises InvalidConfig (group, num), WrongDtype, WrongShape, StorageClosed.
        """
        keys, group = _keys(key), _group(group)
        nums = _nums(num, keys.size)
        with self._lock:
            self._counters().add(keys, nums, limit=COUNTER_MAX, group=group)

    def flush(self) -> None:
        """Force the counters to the disk. Raises StorageClosed, the disk's errors."""
        with self._lock:
            self._counters()
            self._file.flush()

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._file.close()

    def _counters(self) -> CountingBloom:
        if self._file.counters is None:
            raise StorageClosed(f"the filter {self.path} is closed: open another PyFilter")
        return self._file.counters

    def __enter__(self) -> "PyFilter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _group(group: int) -> int:
    if isinstance(group, bool) or not isinstance(group, int | np.integer) or not 0 <= group < GROUPS:
        raise InvalidConfig(f"group is {group!r}, not an int from 0 to {GROUPS - 1}")
    return int(group)


def _keys(key: Any) -> I64:
    if isinstance(key, np.ndarray):
        return checked_keys(key)
    if isinstance(key, bool) or not isinstance(key, int | np.integer) or not -(2**63) <= key < 2**64:
        raise WrongDtype(f"key is {key!r}: give an int of 64 bits, or an array of int64 or uint64")
    return np.array([int(key) - 2**64 if key >= 2**63 else int(key)], np.int64)


def _nums(num: Any, n: int) -> I64:
    if isinstance(num, np.ndarray):
        if num.dtype != np.dtype(np.int64):
            raise WrongDtype(f"num must be an int or an array of int64, not of {num.dtype}")
        if num.shape != (n,):
            raise WrongShape(f"num must be an int or int64[{n}], one for each key, not of the shape {list(num.shape)}")
        if n and num.min() < 0:
            raise InvalidConfig(f"num holds {num.min()}: keys cannot be taken back, give numbers of at least 0")
        return np.array(num)
    if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 0:
        raise InvalidConfig(f"num is {num!r}: give a whole number of at least 0")
    return np.full(n, min(int(num), COUNTER_MAX), np.int64)
