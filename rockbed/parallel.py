"""Large batches over several cores: parts of one call in threads, which works because kernels release the GIL.

Threads rather than numba's own parallel loops: those need a threading layer that differs from machine to machine, and
the one that is always there ends the process when two threads use it at once.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from rockbed.cores import cores

GRAIN = 8192  # rows that are worth a thread: handing over a part costs about 50 us, 8,192 rows of work 200 us or more
_THREADS = min(8, cores())

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_process = 0  # that the pool was made in


def _workers() -> ThreadPoolExecutor | None:
    """The pool with all its threads started; None where the system gives none."""
    global _pool, _pool_process
    with _lock:
        if _pool_process != os.getpid():  # a forked child has none of the threads
            # submit() starts a thread after it has queued the call: if it cannot, the call is queued all the same and
            # would run some time. So the threads are there before anything that matters is queued.
            pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rockbed-part")
            together = threading.Barrier(_THREADS + 1)
            try:
                for _ in range(_THREADS):
                    pool.submit(together.wait)
                together.wait()
                _pool = pool
            except RuntimeError:
                together.abort()
                _pool = None
            _pool_process = os.getpid()
        return _pool


def in_parts(n: int, call: Callable[[slice], object]) -> None:
    """call(slice) for slices that cover 0..n-1, side by side where n is large. They must not depend on each other.

    Raises what a part raised, when all have ended.
    """
    parts = min(_THREADS, n // GRAIN)
    pool = _workers() if parts > 1 else None
    if pool is None:
        call(slice(0, n))
        return
    own = [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
    others: list[Future[object]] = []
    with suppress(RuntimeError):  # the interpreter is shutting down and takes no more: the rest is done here
        while len(own) > 1:
            others.append(pool.submit(call, own[-1]))
            own.pop()
    try:
        for part in own:
            call(part)
    finally:
        for other in others:
            other.exception()  # waits: nobody may go on while a part still works on the arrays
    for other in others:
        other.result()
