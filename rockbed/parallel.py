"""Large batches over several cores: parts of one call in threads, which works because kernels release the GIL.

Threads rather than numba's own parallel loops: those need a threading layer that differs from machine to machine, and
the one that is always there ends the process when two threads use it at once.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

GRAIN = 8192  # rows that are worth a thread: handing over a part costs about 50 us, 8,192 rows of work 200 us or more
_THREADS = min(8, os.cpu_count() or 1)

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_process = 0


def _workers() -> ThreadPoolExecutor:
    global _pool, _pool_process
    with _lock:
        if _pool is None or _pool_process != os.getpid():  # a forked child has none of the threads
            _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rockbed-part")
            _pool_process = os.getpid()
        return _pool


def in_parts(n: int, call: Callable[[slice], object]) -> None:
    """call(slice) for slices that cover 0..n-1, side by side where n is large. They must not depend on each other.

    Raises what a part raised, when all have ended.
    """
    parts = min(_THREADS, n // GRAIN)
    if parts < 2:
        call(slice(0, n))
        return
    slices = [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
    try:
        others: list[Future[object]] = [_workers().submit(call, part) for part in slices[1:]]
    except RuntimeError:  # the interpreter is shutting down: no new threads
        call(slice(0, n))
        return
    try:
        call(slices[0])
    finally:
        for other in others:
            other.exception()  # waits: nobody may go on while a part still works on the arrays
    for other in others:
        other.result()
