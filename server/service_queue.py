"""The threads that serve, and how many calls may wait for one."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from rockbed.errors import Overloaded
from rockbed.server.service_errors import refusing

_Result = TypeVar("_Result")
_OTHERS_MAX = 64  # calls of a service other than Rockbed's that may wait: they need no token


class Workers(ThreadPoolExecutor):
    """A pool that knows how many tasks are under way or wait for a thread."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=f"rockbed-{name}")
        self.threads = threads
        self.tasks = 0
        self._count_lock = threading.Lock()

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> "Future[_Result]":
        """As ThreadPoolExecutor.submit."""

        def run() -> _Result:
            try:
                return fn(*args, **kwargs)
            finally:
                self._count(-1)

        self._count(1)
        try:
            return super().submit(run)
        except BaseException:  # it was shut down
            self._count(-1)
            raise

    def _count(self, change: int) -> None:
        with self._count_lock:
            self.tasks += change


class Queue(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls while `queue_max` others wait, and streams while all threads for them are taken: what waits stays
    bounded. Streams have threads of their own, because one may last, and hold its thread, for hours."""

    def __init__(
        self, calls: Workers, queue_max: int, streams: Workers, long: Workers, refusals: ThreadPoolExecutor
    ) -> None:
        """refusals: a thread that is free to refuse."""
        self._calls = calls
        self._queue_max = queue_max
        self._streams = streams
        self._long = long
        self._refusals = refusals

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        if not details.method.startswith("/rockbed."):
            own = getattr(handler.unary_unary or handler.stream_stream, "experimental_thread_pool", None)
            if not isinstance(own, Workers) or own.tasks < own.threads + _OTHERS_MAX:
                return handler  # health and reflection have threads of their own
            return refusing(Overloaded("too many calls of this service at once: try again later"), self._refusals)
        if handler.response_streaming and not handler.request_streaming:
            if self._long.tasks < self._long.threads:
                return handler
            said = f"{self._long.threads} calls like Shrink and Export are under way"
        elif handler.request_streaming:
            if self._streams.tasks < self._streams.threads:
                return handler
            said = f"{self._streams.threads} streams are open (streams_max): close some"
        else:
            if self._calls.tasks < self._calls.threads + self._queue_max:
                return handler
            said = f"{self._calls.threads} requests are under way and {self._queue_max} wait (workers, queue_max)"
        return refusing(Overloaded(f"{said}; try again later, or raise the server's limits"), self._refusals)
