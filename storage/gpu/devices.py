"""Devices that rows can be kept on, by name. CuPy is imported when one is opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rockbed.errors import DeviceUnavailable, MissingPackage
from rockbed.storage.gpu.launcher import Launcher


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


def open_launcher(name: str) -> Launcher:
    """The launcher of "cuda" or "cuda:N". Raises DeviceUnavailable, also where CuPy is not installed."""
    from rockbed.storage.gpu.cupy_launcher import CupyLauncher

    try:
        return CupyLauncher(int(name.partition(":")[2] or 0))
    except MissingPackage as error:
        raise DeviceUnavailable(f"device={name!r}: {error}. Rows stay on the CPU with device=None") from error
