"""`PyFilter`: a counting Bloom filter of its own, as damo-embedding has one, to be asked before a lookup."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from rockbed.client.arrays import checked_keys
from rockbed.client.parameters import Parameters
from rockbed.config import GROUPS
from rockbed.errors import InvalidConfig, StorageClosed, UnknownName, WrongDtype
from rockbed.storage.counting_bloom import COUNTER_MAX, CountingBloom
from rockbed.types import I64, U64, Bool

_DEFAULTS: dict[str, Any] = {"capacity": 1 << 28, "count": 15, "path": "", "fpr": 1e-3, "reload": True}


class PyFilter:
    """Counts keys approximately, in a file; `check` says whether a key was added at least `count` times.

    No key that was is missed; of those that were not, a share of `fpr` is taken for one while up to `capacity` keys
    are counted. The admission rules of PyEmbedding do the same inside the store; this is for callers who decide
    themselves.
    """

    def __init__(self, params: Parameters | Mapping[str, Any] | None = None, /, **parameters: Any) -> None:
        """Open a filter's file, or make one.

        capacity: keys, by default 2^28. count: 1..15 (counters have 4 bits), 15. fpr: 1e-3. path: by default
        rockbed-filter in the temporary directory. reload: go on with a file that is there (True), or begin anew.

        The file is 7.2 bytes a key of capacity at fpr 1e-3, sparse at first.
        Raises UnknownName, InvalidConfig (with every problem), StorageCorrupt (another filter's file), the disk's
        errors.
        """
        given = {**(params.as_dict() if isinstance(params, Parameters) else params or {}), **parameters}
        unknown = sorted(set(given) - set(_DEFAULTS))
        if unknown:
            raise UnknownName(f"filter parameter {unknown[0]!r} is unknown. Known: {', '.join(_DEFAULTS)}")
        chosen = {**_DEFAULTS, **given}
        problems = _problems(chosen)
        if problems:
            raise InvalidConfig("filter: " + "; ".join(problems))
        self.count: int = chosen["count"]
        path = os.fspath(chosen["path"]) or os.path.join(tempfile.gettempdir(), "rockbed-filter")
        self._bloom = CountingBloom(
            Path(path), capacity=chosen["capacity"], fpr=float(chosen["fpr"]), reload=chosen["reload"]
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self._bloom.path

    @overload
    def check(self, group: int, key: int) -> bool: ...
    @overload
    def check(self, group: int, key: I64 | U64) -> Bool: ...
    def check(self, group: int, key: int | I64 | U64) -> bool | Bool:
        """Whether a key was added at least `count` times. key: an int, or int64[n] or uint64[n], which gives bool[n].

        Raises InvalidConfig, WrongDtype, WrongShape, StorageClosed.
        """
        self._check_open()
        found: Bool = self._bloom.least(_group(group), _keys(key)) >= self.count
        return found if isinstance(key, np.ndarray) else bool(found[0])

    def add(self, group: int, key: int | I64 | U64, num: int = 1) -> None:
        """Count a key, or each key of an array, `num` times. Raises as `check` does."""
        self._check_open()
        if isinstance(num, bool) or not isinstance(num, int) or num < 0:
            raise InvalidConfig(f"num is {num!r}: give a whole number of at least 0")
        keys = _keys(key)
        self._bloom.add(_group(group), keys, np.full(keys.size, min(num, COUNTER_MAX)))

    def flush(self) -> None:
        """Force the counters to the disk."""
        self._check_open()
        self._bloom.flush()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._bloom.close()

    def _check_open(self) -> None:
        if self._bloom.closed:
            raise StorageClosed(f"the filter {self.path} is closed: open another PyFilter")

    def __enter__(self) -> "PyFilter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _problems(chosen: dict[str, Any]) -> list[str]:
    problems = []
    for name, most in (("capacity", 1 << 40), ("count", COUNTER_MAX)):
        value = chosen[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            problems.append(f"{name} is {value!r}, not a whole number from 1 to {most}")
    fpr = chosen["fpr"]
    if isinstance(fpr, bool) or not isinstance(fpr, int | float) or not 0 < fpr < 1:
        problems.append(f"fpr is {fpr!r}, not between 0 and 1")
    if not isinstance(chosen["path"], str | os.PathLike):
        problems.append(f"path is {chosen['path']!r}, not a path")
    if not isinstance(chosen["reload"], bool):
        problems.append(f"reload is {chosen['reload']!r}, not True or False")
    return problems


def _group(group: int) -> int:
    if isinstance(group, bool) or not isinstance(group, int | np.integer) or not 0 <= group < GROUPS:
        raise InvalidConfig(f"group is {group!r}, not 0..{GROUPS - 1}")
    return int(group)


def _keys(key: Any) -> I64:
    if isinstance(key, np.ndarray):
        return checked_keys(key)
    if isinstance(key, bool) or not isinstance(key, int | np.integer) or not -(2**63) <= key < 2**64:
        raise WrongDtype(f"key is {key!r}: give an int of 64 bits, or an array of int64 or uint64")
    return np.array([int(key) - 2**64 if key >= 2**63 else int(key)], np.int64)
