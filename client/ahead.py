"""Calls that go on while the caller does something else."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from rockbed.errors import StorageClosed

_Result = TypeVar("_Result")
_LOOKUPS = 4  # under way at a time; others wait their turn


class Ahead:
    """Threads of one storage. Pushes are applied one after another, in the order in which they were asked for; lookups
    go side by side. Thread-safe."""

    def __init__(self) -> None:
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._finished = False
        self._process = os.getpid()
        self._lock = threading.Lock()

    def push(self, call: Callable[..., _Result], *args: Any) -> "Future[_Result]":
        """Have a push made after those asked for before. Raises StorageClosed."""
        return self._submit("push", 1, call, *args)

    def lookup(self, call: Callable[..., _Result], *args: Any) -> "Future[_Result]":
        """Have rows looked up, or fetched. Raises StorageClosed, and so does the future of what has not begun when the
        storage is closed."""

        def begin() -> _Result:
            if self._finished:
                raise StorageClosed("the storage was closed before this lookup had begun")
            return call(*args)

        return self._submit("lookup", _LOOKUPS, begin)

    def finish(self) -> None:
        """Wait for the pushes asked for; lookups that have not begun are given up. May be called twice."""
        with self._lock:
            pools, self._pools, self._finished = self._pools, {}, True
        for pool in pools.values():
            pool.shutdown(wait=True)

    def _submit(self, name: str, threads: int, call: Callable[..., _Result], *args: Any) -> "Future[_Result]":
        if os.getpid() != self._process:  # a fork takes neither the threads along nor, maybe, an open lock
            raise StorageClosed(
                "the storage belongs to the process that this one was forked from, and cannot be used across fork(). "
                "Open it in the process that uses it"
            )
        with self._lock:
            if self._finished:
                raise StorageClosed("the storage is closed: open another PyStorage")
            if name not in self._pools:
                self._pools[name] = ThreadPoolExecutor(threads, thread_name_prefix=f"rockbed-{name}")
            return self._pools[name].submit(call, *args)
