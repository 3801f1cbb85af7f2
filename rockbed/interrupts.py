"""Ctrl-C, or another signal whose handler raises, while a change is half made: it waits until the change is whole."""

# _signal is what `signal` wraps: its wrappers turn numbers into enums, which takes 3 us a call.
import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_Handlers = tuple[tuple[int, Any], ...]

# Those whose handlers programs let raise: Ctrl-C, a service being stopped, timeouts.
_MAY_RAISE = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF")
    if hasattr(signal, name)
)


class _Held:
    """What is held back now. Python runs signal handlers in the main thread only, so only that one uses this."""

    main_thread: int | None = threading.main_thread().ident
    depth = 0
    before: _Handlers = ()
    came: list[tuple[int, FrameType | None]] = []  # noqa: RUF012 - there is one


def _is_forked() -> None:
    _Held.main_thread = threading.main_thread().ident  # whichever thread forked


os.register_at_fork(after_in_child=_is_forked)


def _note(number: int, frame: FrameType | None) -> None:
    _Held.came.append((number, frame))


def hold() -> None:
    """Hold signals back until `let_go`, which has to be called as often."""
    if threading.get_ident() != _Held.main_thread:
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


def let_go() -> None:
    """The end of `hold`: what came meanwhile is handled now, and may raise."""
    if threading.get_ident() != _Held.main_thread:
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
        hold()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        let_go()
