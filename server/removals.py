"""Which rows were removed lately, when and why: for whoever asks where a row has gone."""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from rockbed.types import I64

KEYS_MAX = 1 << 20  # remembered: 8 MB; the oldest are forgotten first


@dataclass(frozen=True, slots=True)
class _Batch:
    group: int
    keys: I64  # ascending
    reason: str
    time_ms: int


class Removals:
    """Kept in memory only: what was removed before the store was opened is not known. Thread-safe."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._batches: deque[_Batch] = deque()
        self._keys = 0
        self._lock = threading.Lock()

    def add(self, group: int, keys: I64, reason: str, time_ms: int) -> None:
        """Remember a removal. keys: int64[n]."""
        if not keys.size:
            return
        with self._lock:
            self._batches.append(_Batch(group, np.sort(keys), reason, time_ms))
            self._keys += keys.size
            while self._keys > self._keys_max:
                self._keys -= self._batches.popleft().keys.size

    def forget(self, group: int) -> None:
        """Forget a group."""
        with self._lock:
            self._batches = deque(batch for batch in self._batches if batch.group != group)
            self._keys = sum(batch.keys.size for batch in self._batches)

    def find(self, group: int, keys: I64) -> tuple[I64, list[str]]:
        """When each key's row was removed last, int64[n] (ms since 1970, 0 = not known), and why, "" likewise."""
        times, reasons = np.zeros(keys.size, np.int64), [""] * keys.size
        with self._lock:
            batches = [batch for batch in self._batches if batch.group == group]
        for batch in batches:  # from the oldest to the newest, which counts
            at = np.minimum(np.searchsorted(batch.keys, keys), batch.keys.size - 1)
            for i in np.flatnonzero(batch.keys[at] == keys):
                times[i], reasons[i] = batch.time_ms, batch.reason
        return times, reasons
