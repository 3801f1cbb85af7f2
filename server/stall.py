"""How often, and how long, calls had to wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stall:
    """Waits for one thing, since the store was opened. Thread-safe. A wait counts when it has ended."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0  # of all threads together
        self._lock = threading.Lock()
        # By thread: where a signal's handler raises, a count could keep one too many for ever.
        self._waiting: dict[int, None] = {}

    @property
    def is_on(self) -> bool:
        """Whether a thread waits now."""
        return bool(self._waiting)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as one wait."""
        began, me = time.perf_counter(), threading.get_ident()
        try:
            self._waiting[me] = None
            yield
        finally:
            self._waiting.pop(me, None)
            with self._lock:
                self.count += 1
                self.seconds += time.perf_counter() - began
