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

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as one wait."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.count += 1
                self.seconds += time.perf_counter() - began
