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
_CORES = cores()
THREADS = min(8, _CORES)

_lock = threading.Lock()
_at_work: dict[int, None] = {}  # threads in a large call of `in_parts`, or in `spread`: each has a core already
os.register_at_fork(after_in_child=_at_work.clear)  # a forked child has none of the threads
_thread = threading.local()  # .shares: whether the thread makes calls beside others, as those of the pool do
_pool: ThreadPoolExecutor | None = None
_pool_process = 0  # that the pool was made in


def _enter() -> None:
    _thread.shares = True


def _shares() -> bool:
    return getattr(_thread, "shares", False)


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
    """call(slice) for slices that cover 0..n-1, side by side where n is large and there are cores for it. They must not
    depend on each other.

    Raises what a part raised, when all have ended.
    """
    if n < GRAIN or _shares():  # done before another thread has seen that this one is at work
        call(slice(0, n))
        return
    me = threading.get_ident()
    parts = min(_threads_for(me), n // GRAIN)
    _at_work[me] = None
    try:
        if parts > 1:
            side_by_side([partial(call, slice(n * i // parts, n * (i + 1) // parts)) for i in range(parts)])
        else:
            call(slice(0, n))
    finally:
        _at_work.pop(me, None)


def _threads_for(me: int) -> int:
    """How many threads are worth it for what a thread is about to do: not more than there are cores beside those that
    are at work already."""
    others = len(_at_work) - (me in _at_work)
    return min(THREADS, max(THREADS, _CORES) - others)


def core_to_spare() -> bool:
    """Whether there is a core for a second thread, beside those that are at work."""
    return not _shares() and _threads_for(threading.get_ident()) > 1


def side_by_side(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls in threads of their own, one of them here. They must not depend on each other.

    Within such a call they are made one after another: threads that wait for threads could all be waiting. So could
    threads that wait for a lock whose holder waits for a thread: what none has begun when the caller is free is made
    here. Of calls made with a lock held, none may wait for another lock.
    Raises what a call raised, when all that were begun have ended.
    """
    pool = _workers() if len(calls) > 1 and not _shares() else None
    own = list(calls)
    others: list[tuple[Future[object], Callable[[], object]]] = []
    if pool is not None:
        with suppress(RuntimeError):  # the interpreter is shutting down and takes no more: the rest is done here
            while len(own) > 1:
                others.append((pool.submit(own[-1]), own[-1]))
                own.pop()
    before = _shares()
    try:
        _thread.shares = before or bool(others)
        for call in own:
            call()
        for other, call in reversed(others):  # the last is the one that a thread takes last
            if other.cancel():
                call()
    finally:
        _thread.shares = before
        begun = [other for other, _ in others if not other.cancel()]
        for other in begun:
            other.exception()  # waits: nobody may go on while a part still works on the arrays
    for other in begun:
        other.result()


def spread(calls: Sequence[tuple[int, Callable[[], object]]]) -> None:
    """Make calls, each with the rows that it is about: they are shared out among threads, but for those that are large
    beside the others, which come one after another and may use all threads. Raises what a call raised, when all that
    were begun have ended."""
    costs = [rows + _CALL_ROWS for rows, _ in calls]
    large = max(2 * GRAIN, sum(costs) // (2 * THREADS))
    total, taken = sum(cost for cost in costs if cost < large), 0
    me = threading.get_ident()
    heaps: list[list[Callable[[], object]]] = [[] for _ in range(max(1, min(_threads_for(me), total // GRAIN)))]
    for cost, (_, call) in zip(costs, calls, strict=True):
        if cost < large:
            heaps[taken * len(heaps) // total].append(call)
            taken += cost
    _at_work[me] = None
    try:
        side_by_side([partial(_in_turn, heap) for heap in heaps])
    finally:
        _at_work.pop(me, None)
    _in_turn([call for cost, (_, call) in zip(costs, calls, strict=True) if cost >= large])


def _in_turn(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()
