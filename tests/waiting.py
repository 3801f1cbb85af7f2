"""Waiting for what another thread does."""

import time
from collections.abc import Callable


def until(what: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return as soon as `what()` is true; fail when it has not become so within `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, f"it did not happen within {timeout_s} s"
        time.sleep(0.005)
