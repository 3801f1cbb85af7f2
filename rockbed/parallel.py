"""Large batches over several cores: parts of one call in threads, which works because kernels release the GIL.

Threads rather than numba's own parallel loops: those need a threading layer that differs from machine to machine, and
the one that is always there ends the process when two threads use it at once.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from rockbed.cores import cores

GRAIN = 8192  # rows that are worth a thread: handing over a part costs about 50 us, 8,192 rows of work 200 us or more
_CALL_ROWS = 1024  # that take as long as the Python around a call
THREADS = min(8, cores())

_lock = threading.Lock()
_thread = threading.local()  # .of_pool: whether the thread is one of the pool's
_pool: ThreadPoolExecutor | None = None
_pool_process = 0  # that the pool was made in


def _enter() -> None:
    _thread.of_pool = True


def _workers() -> ThreadPoolExecutor | None:
    """The pool with all its threads started; None where the system gives none."""
    global _pool, _pool_process
    with _lock:
        if _pool_process != os.getpid():  # a forked child has none of the threads
            # submit() starts a thread after it has queued the call: if it cannot, the call is queued all the same and
            # would run some time. So the threads are there before anything that matters is queued.
            pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rockbed-part", initializer=_enter)
            together = threading.Barrier(THREADS + 1)
            try:
                for _ in range(THREADS):
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
    parts = min(THREADS, n // GRAIN)
    if parts > 1:
        side_by_side([partial(call, slice(n * i // parts, n * (i + 1) // parts)) for i in range(parts)])
    else:
        call(slice(0, n))


def side_by_side(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls in threads of their own, one of them here. They must not depend on each other.

    Within such a call they are made one after another: threads that wait for threads could all be waiting. So could
    threads that wait for a lock whose holder waits for a thread: what none has begun when the caller is free is made
    here. Of calls made with a lock held, none may wait for another lock.
    Raises what a call raised, when all that were begun have ended.
    """
    pool = _workers() if len(calls) > 1 and not getattr(_thread, "of_pool", False) else None
    own = list(calls)
    others: list[tuple[Future[object], Callable[[], object]]] = []
    if pool is not None:
        with suppress(RuntimeError):  # the interpreter is shutting down and takes no more: the rest is done here
            while len(own) > 1:
                others.append((pool.submit(own[-1]), own[-1]))
                own.pop()
    try:
        for call in own:
            call()
        for other, call in reversed(others):  # the last is the one that a thread takes last
            if other.cancel():
                call()
    finally:
        begun = [other for other, _ in others if not other.cancel()]
        for other in begun:
            other.exception()  # waits: nobody may go on while a part still works on the arrays
    for other in begun:
        other.result()


def spread(calls: Sequence[tuple[int, Callable[[], object]]]) -> None:
    """Make calls, each with the rows that it is about: small ones are shared out among threads, large ones, which use
    threads of their own, come one after another. Raises what a call raised, when all that were begun have ended."""
    small = [(rows + _CALL_ROWS, call) for rows, call in calls if rows < 2 * GRAIN]
    total, taken = sum(cost for cost, _ in small), 0
    heaps: list[list[Callable[[], object]]] = [[] for _ in range(max(1, min(THREADS, total // GRAIN)))]
    for cost, call in small:
        heaps[taken * len(heaps) // total].append(call)
        taken += cost
    side_by_side([partial(_in_turn, heap) for heap in heaps])
    _in_turn([call for rows, call in calls if rows >= 2 * GRAIN])


def _in_turn(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()
