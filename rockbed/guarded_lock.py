"""The lock of a group: one thread has it, or several share it that change nothing for each other."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rockbed.interrupts import hold, let_go

# To look again and again before sleeping until a lock is free that is held briefly: in a virtual machine it can take
# milliseconds until a processor that went to sleep is awake again. Looking takes the interpreter's lock from whoever
# is to finish, so that calls of many threads, which hold locks for longer, do without.
_SPIN_S = 2e-4


class GuardedLock:
    """A re-entrant lock that can also be shared; whoever has it is not interrupted by a signal.

    `with lock:` has it alone. `with lock.shared:` has it together with others that share it; who shares it must not
    take it in any other way before the end of the block. `with lock.unguarded:` keeps out who would have it alone, lets
    in who shares it, and may be interrupted.
    """

    def __init__(self) -> None:
        self.unguarded = threading.RLock()  # whoever has the lock alone has this one, too
        self.shared = _Shared(self)
        self.is_brief = False  # for whoever has or shares it to set and to take back: held for no longer than _SPIN_S
        self.favours_sharing = False  # for whoever shares it in many short turns: who can share it should, meanwhile
        self._depth = 0  # how often the thread that has it has taken it
        self._is_claimed = False  # a thread has it alone, or waits for those who share it to leave
        self._left = threading.Event()  # one of those has left
        # By thread: a count could not be kept without a lock of its own.
        self._sharing: dict[int, None] = {}
        self._waiting: dict[int, None] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether a thread waits for it."""
        return bool(self._waiting)

    def __enter__(self) -> None:
        hold()
        if not self.unguarded.acquire(blocking=False):
            self._wait()
        self._depth += 1
        if self._depth == 1:
            self._is_claimed = True  # before it looks who shares it: whoever comes later sees the claim
            if self._sharing:
                self._wait_until_alone()

    def _wait(self) -> None:
        me = threading.get_ident()
        self._waiting[me] = None
        try:
            end = time.perf_counter() + _SPIN_S
            while self.is_brief and time.perf_counter() < end:
                time.sleep(0)  # lets whoever is to finish have the interpreter
                if self.unguarded.acquire(blocking=False):
                    return
            self.unguarded.acquire()
        finally:
            del self._waiting[me]

    def _wait_until_alone(self) -> None:
        end = time.perf_counter() + _SPIN_S
        while self._sharing and self.is_brief and time.perf_counter() < end:
            time.sleep(0)
        while self._sharing:
            self._left.clear()
            if self._sharing:  # still: who leaves from now on says so
                self._left.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._is_claimed = False
        self.unguarded.release()
        let_go()

    def share(self) -> None:
        """What `with lock.shared:` begins with."""
        hold()
        me = threading.get_ident()
        self._sharing[me] = None
        if self._is_claimed:
            self._leave(me)
            if not self.unguarded.acquire(blocking=False):
                self._wait()
            self._sharing[me] = None
            self.unguarded.release()

    def unshare(self) -> None:
        """What it ends with."""
        self._leave(threading.get_ident())
        let_go()

    def _leave(self, me: int) -> None:
        del self._sharing[me]
        if self._is_claimed:
            self._left.set()


class _Shared:
    """`GuardedLock.shared`."""

    def __init__(self, lock: GuardedLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.share()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.unshare()


@contextmanager
def all_shared(locks: Iterable[GuardedLock]) -> Iterator[None]:
    """With all of them shared, taken in the order given. Within `Uninterrupted`."""
    taken: list[GuardedLock] = []
    try:
        for lock in locks:
            lock.share()
            taken.append(lock)
        yield
    finally:
        for lock in taken:
            lock.unshare()
