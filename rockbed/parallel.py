"""Large batches over several cores: parts of one call in threads, which works because kernels release the GIL.

Threads rather than numba's own parallel loops: those need a threading layer that differs from machine to machine, and
the one that is always there ends the process when two threads use it at once.
"""

import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from rockbed.cores import cores
from rockbed.types import I64

GRAIN = 8192  # rows that are worth a thread: handing over a part costs about 50 us, 8,192 rows of work 200 us or more
_PARTS = 4  # of a call for each thread, at the least
_PART = 4 * GRAIN  # rows of a part of a large call: a thread that has ended may wait as long as one takes
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

    There are more slices than threads, so that one whose core others use as well takes fewer of them.
    Raises what a part raised, when all have ended.
    """
    if n < GRAIN or _shares():  # done before another thread has seen that this one is at work
        call(slice(0, n))
        return
    me = threading.get_ident()
    threads = min(_threads_for(me), n // GRAIN)
    _at_work[me] = None
    try:
        if threads > 1:
            parts = min(max(threads * _PARTS, n // _PART), n // GRAIN)
            calls = [partial(call, slice(n * i // parts, n * (i + 1) // parts)) for i in range(parts)]
            side_by_side(calls, threads)
        else:
            call(slice(0, n))
    finally:
        _at_work.pop(me, None)


def in_runs(begins: Sequence[int] | I64, n: int, call: Callable[[int, int], object]) -> None:
    """call(start, end) for runs of pieces start..end - 1, side by side as of `in_parts`.

    begins: ascending: where in 0..n the work of each piece begins, which ends where the next one begins.
    """

    def run(part: slice) -> None:
        # those that begin within the part; the first part has the empty ones before it, the last those behind
        start = 0 if part.start == 0 else bisect_left(begins, part.start)
        end = len(begins) if part.stop == n else bisect_left(begins, part.stop)
        call(start, end)

    in_parts(n, run)


def _threads_for(me: int) -> int:
    """How many threads are worth it for what a thread is about to do: not more than there are cores beside those that
    are at work already."""
    others = len(_at_work) - (me in _at_work)
    return min(THREADS, max(THREADS, _CORES) - others)


def core_to_spare() -> bool:
    """Whether there is a core for a second thread, beside those that are at work."""
    return not _shares() and _threads_for(threading.get_ident()) > 1


def side_by_side(calls: Sequence[Callable[[], object]], threads: int | None = None) -> None:
    """Make calls in threads, one of them this one: each takes the next call when it is done with one. They must not
    depend on each other. threads: how many, if not as many as there are calls.

    Within such a call they are made one after another: threads that wait for threads could all be waiting. So could
    threads that wait for a lock whose holder waits for a thread: what none has begun when the caller is free is made
    here. Of calls made with a lock held, none may wait for another lock.
    Raises what a call raised, when all that were begun have ended; after that none is begun.
    """
    todo = deque(calls)
    wanted = len(calls) if threads is None else min(threads, len(calls))
    pool = _workers() if wanted > 1 and not _shares() else None
    others: list[Future[None]] = []
    if pool is not None:
        with suppress(RuntimeError):  # the interpreter is shutting down and takes no more: the rest is done here
            for _ in range(wanted - 1):
                others.append(pool.submit(_take_turns, todo))
    before = _shares()
    try:
        _thread.shares = before or bool(others)
        _take_turns(todo)
    finally:
        _thread.shares = before
        begun = [other for other in others if not other.cancel()]
        for other in begun:
            other.exception()  # waits: nobody may go on while a part still works on the arrays
    for other in begun:
        other.result()


def _take_turns(todo: deque[Callable[[], object]]) -> None:
    while True:
        try:
            call = todo.popleft()
        except IndexError:
            return
        try:
            call()
        except BaseException:
            todo.clear()
            raise


def spread(calls: Sequence[tuple[int, Callable[[], object]]]) -> None:
    """Make calls, each with the rows that it is about: threads share them, but for those that are large beside the
    others, which come one after another and may use all threads. Raises what a call raised, when all that were begun
    have ended."""
    # by rows alone: the Python of a call takes as long, whichever thread has the interpreter
    large = max(2 * GRAIN, sum(rows for rows, _ in calls) // (2 * THREADS))
    shared = [(rows, call) for rows, call in calls if rows < large]
    me = threading.get_ident()
    threads = min(_threads_for(me), sum(rows for rows, _ in shared) // GRAIN)
    _at_work[me] = None
    try:
        side_by_side([call for _, call in shared], max(1, threads))
    finally:
        _at_work.pop(me, None)
    for rows, call in calls:
        if rows >= large:
            call()
