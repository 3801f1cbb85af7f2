"""Devices that rows can be kept on, by name. CuPy is imported when one is opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from rockbed.bags import Bags, check_arrays
from rockbed.device_arrays import Stream, on_device
from rockbed.errors import DeviceUnavailable, MissingPackage
from rockbed.storage.gpu.borrowing import borrowed
from rockbed.storage.gpu.launcher import DeviceArray, Launcher
from rockbed.types import AnyArray


class Device:
    """A device and the bytes that the rows of all groups together may take of it."""

    def __init__(self, name: str, budget_bytes: int) -> None:
        """name: "cuda" or "cuda:N". Raises DeviceUnavailable."""
        self.name = name
        self.budget_bytes = budget_bytes
        self.launcher = open_launcher(name)
        self._lock = threading.RLock()

    @contextmanager
    def queue(self) -> Iterator[None]:
        """To be held by whoever calls the launcher, or a table: one thread at a time, and on one stream, so that all
        work is done in the order in which it was queued. Taken after the locks of groups."""
        with self._lock, self.launcher.own_stream():
            yield

    # --- arrays and streams of callers ---

    # Without the lock: events may come between the work of another call. And what holds it must not wait for others'
    # code, as `borrow` does: that may wait for a thread which has to have the lock, or a group's.

    def follow(self, stream: Stream | None) -> tuple[Stream, ...]:
        """Have all that is queued from now on come, on the device, after what the caller has queued.

        That is on `stream`, if it is given, and on the stream that the calling thread has set for the launcher's
        library (CuPy). Returns them, for `lead`.
        """
        streams = (self.launcher.current_stream(), *(() if stream is None else (stream,)))
        with self.launcher.own_stream():
            for each in streams:
                self.launcher.wait_for(each.handle)
        return streams

    def lead(self, streams: tuple[Stream, ...]) -> None:
        """Have what these streams get from now on come, on the device, after all that was queued."""
        with self.launcher.own_stream():
            for each in streams:
                self.launcher.let_go_on(each.handle)

    def borrow(self, name: str, array: Any) -> DeviceArray:
        """An array of another library as the launcher's: see borrowing.borrowed."""
        with self.launcher.own_stream():
            return borrowed(self.launcher, name, array)

    def as_int64(self, array: DeviceArray) -> DeviceArray:
        """The array itself if it is int64, a copy that is if not."""
        if array.dtype == np.int64:
            return array
        with self.queue():
            wide = self.launcher.empty(array.shape, np.int64)
            wide[...] = array
        return wide

    def up(self, array: AnyArray | DeviceArray) -> DeviceArray:
        """The array itself if it is on the device, a copy there if not. Within `queue`."""
        return array if on_device(array) else self.launcher.to_device(array)

    def down(self, array: AnyArray | DeviceArray) -> AnyArray:
        """The array itself if it is in memory, a copy there if not. Within `queue`."""
        return self.launcher.to_host(array) if on_device(array) else array

    def in_memory(self, bags: Bags) -> Bags:
        """The same bags in memory; of those that were on the device, whose values nobody has seen, all is checked.

        Raises what check_arrays raises.
        """
        if not bags.on_device:
            return bags
        with self.queue():
            keys, offsets = self.down(bags.keys), self.down(bags.offsets)
            weights = None if bags.weights is None else self.down(bags.weights)
        check_arrays(keys, offsets, weights, f"feature {bags.name!r}: ")
        return replace(bags, keys=keys, offsets=offsets, weights=weights)


def open_launcher(name: str) -> Launcher:
    """The launcher of "cuda" or "cuda:N". Raises DeviceUnavailable, also where CuPy is not installed."""
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    try:
        return CupyLauncher(int(name.partition(":")[2] or 0))
    except MissingPackage as error:
        raise DeviceUnavailable(f"device={name!r}: {error}. Rows stay on the CPU with device=None") from error
