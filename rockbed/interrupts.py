"""Ctrl-C, or another signal whose handler raises, while a change is half made: it waits until the change is whole."""

# _signal is what `signal` wraps: its wrappers turn numbers into enums, which takes 3 us a call.
import _signal  # type: ignore[import-not-found]
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_Handlers = tuple[tuple[int, Any], ...]

# To look again and again before sleeping until a lock is free that is held briefly: in a virtual machine it can take
# milliseconds until a processor that went to sleep is awake again. Looking takes the interpreter's lock from whoever
# is to finish, so that calls of many threads, which hold locks for longer, do without.
_SPIN_S = 2e-4

# Those whose handlers programs let raise: Ctrl-C, a service being stopped, timeouts.
_MAY_RAISE = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF")
    if hasattr(signal, name)
)


class _Held:
    """What is held back now. Python runs signal handlers in the main thread only, so only that one uses this."""

    depth = 0
    before: _Handlers = ()
    came: list[tuple[int, FrameType | None]] = []  # noqa: RUF012 - there is one


def _note(number: int, frame: FrameType | None) -> None:
    _Held.came.append((number, frame))


def _hold() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    if _Held.depth == 0:
        handlers = ((number, _signal.getsignal(number)) for number in _MAY_RAISE)
        before = tuple((number, handler) for number, handler in handlers if callable(handler))
        try:
            for number, _ in before:
                _signal.signal(number, _note)
        except BaseException:  # a handler that was not replaced yet has raised
            _restore(before)
            raise
        _Held.before = before
    _Held.depth += 1


def _let_go() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    _Held.depth -= 1
    if _Held.depth == 0:
        before, came = _Held.before, _Held.came
        _Held.before, _Held.came = (), []
        _restore(before)
        for number, frame in came:
            handler = dict(before)[number]
            if callable(handler):
                handler(number, frame)


def _restore(before: _Handlers) -> None:
    try:
        for number, handler in before:
            _signal.signal(number, handler)
    except BaseException:  # one that is back already has raised: the others come back all the same
        for number, handler in before:
            _signal.signal(number, handler)
        raise


class Uninterrupted:
    """`with Uninterrupted():` holds signals back during the block, which should be short; their handlers run after."""

    def __enter__(self) -> None:
        _hold()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _let_go()


class GuardedLock:
    """A re-entrant lock; whoever has it is not interrupted by a signal, unless it was taken by way of `unguarded`."""

    def __init__(self) -> None:
        self.unguarded = threading.RLock()
        self.is_brief = False  # for whoever has it to set and to take back: it is held for much less than _SPIN_S
        self._waiting: dict[int, None] = {}  # by thread: a count could not be kept without a lock of its own

    @property
    def is_wanted(self) -> bool:
        """Whether a thread waits for it."""
        return bool(self._waiting)

    def __enter__(self) -> None:
        _hold()
        if not self.unguarded.acquire(blocking=False):
            self._wait()

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unguarded.release()
        _let_go()
