"""Whether something may still be used, and who is using it when it is to end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rockbed.errors import StorageClosed

_WAIT_S = 30.0  # for users that take no notice: a scan whose caller stopped asking, and holds on to it


class InUse:
    """Counts users. Thread-safe."""

    def __init__(self, what: str) -> None:
        """what: "the storage of ./model"."""
        self._what = what
        self._users = 0
        self._ending = False
        self._changed = threading.Condition()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Be a user during the block. Raises StorageClosed once `end` was called."""
        with self._changed:
            self.check()
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Raise StorageClosed once `end` was called: long users ask now and then."""
        if self._ending:
            raise StorageClosed(f"{self._what} is being closed: open another PyStorage")

    def end(self) -> None:
        """Let nobody else begin, and wait for those who have."""
        until = time.monotonic() + _WAIT_S
        with self._changed:
            self._ending = True
            while self._users and time.monotonic() < until:
                self._changed.wait(_WAIT_S)
