"""Calls over gRPC: deadlines, trying again, and errors as Rockbed's own."""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from rockbed.adaptive_messages import read_adaptive_response
from rockbed.allocation import keep_large_blocks
from rockbed.client import shared_memory
from rockbed.client.channel_transport import is_about_tls, not_reached, open_channel
from rockbed.client.connection import Connection
from rockbed.client.shared_memory import Segment, SharedMemory
from rockbed.client.target import is_on_this_machine
from rockbed.client.tracing import trace_headers
from rockbed.errors import (
    DeadlineExceeded,
    LimitExceeded,
    Overloaded,
    RockbedError,
    ServerError,
    StorageClosed,
    UnknownMemory,
    all_errors,
)
from rockbed.fused_messages import read_fused_lookup_response
from rockbed.messages import read_lookup_many_response, read_lookup_response
from rockbed.shared_messages import METHODS, OF_SERVICE, SERVICE, read_shared_message, shared_message
from rockbed.v1 import admin_pb2_grpc, embedding_pb2, embedding_pb2_grpc
from rockbed.wire import CLIENT_KEY, CODE_KEY, TOKEN_KEY, TOKEN_SCHEME
from rockbed.wire_format import Buffer, Parts, joined, size_of

_log = logging.getLogger("rockbed.client")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
# a server that ends cancels what it has not finished
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_TOO_MANY = "Concurrent RPC limit exceeded!"  # what gRPC itself says


def _read_push_response(data: Buffer) -> Any:
    return embedding_pb2.ApplyGradientsResponse.FromString(bytes(data))


_READ: dict[str, Callable[[Buffer], Any]] = {
    "Lookup": read_lookup_response,
    "LookupMany": read_lookup_many_response,
    "AdaptiveLookup": read_adaptive_response,
    "FusedLookup": read_fused_lookup_response,
    "ApplyGradients": _read_push_response,
    "FusedApplyGradients": _read_push_response,
}


class Transport:
    """A channel to one server. Thread-safe. Methods of the services by name: "Lookup", "Stats", ..."""

    def __init__(self, target: str, connection: Connection) -> None:
        """target: "grpc://host:port", "grpcs://host:port", or "grpc+unix:///path/of/a/socket". Raises InvalidConfig."""
        self.target = target
        self._connection = connection
        self._process = os.getpid()
        self._channel = open_channel(target, connection)
        keep_large_blocks()
        call, push = self._channel.unary_unary, embedding_pb2.ApplyGradientsResponse.FromString
        self._travelling = {name: call(f"/{OF_SERVICE}/{name}") for name in METHODS}
        self._lying = {name: call(f"/{SERVICE}/{name}") for name in METHODS}
        self._push_stream = self._channel.stream_stream(f"/{OF_SERVICE}/ApplyGradientsStream", joined, push)
        shared = connection.shared_memory and is_on_this_machine(target) and hasattr(os, "memfd_create")
        self._memory = SharedMemory(self._share) if shared else None
        services = embedding_pb2_grpc.EmbeddingStub, embedding_pb2_grpc.SharedEmbeddingStub, admin_pb2_grpc.AdminStub
        self._stubs = [service(self._channel) for service in services]
        named = () if connection.client_id is None else ((CLIENT_KEY, connection.client_id),)
        token = () if connection.token is None else ((TOKEN_KEY, TOKEN_SCHEME + connection.token),)
        self._metadata = named + token
        self._closing = threading.Event()

    def call(self, method: str, request: Any, *, again: bool, long: bool = False) -> Any:
        """The answer to a request. again: try again while the server is away; long: without a deadline."""
        # a call that is waited for at once spares a change of threads, a fifth of a small one's time
        return self._tried(lambda: self._invoke(self._method(method), request, long), method, again)

    def exchange(self, method: str, message: Parts, answer_bytes: int = 0) -> Any:
        """The answer to a message that is mostly arrays, sent again while the server is away.

        answer_bytes: at least so many as its arrays have, for which there will be room in memory that is shared. They
        lie there until the answer is let go of.
        """
        return self._tried(lambda: self._exchanged(method, message, answer_bytes), method, again=True)

    def push(self, messages: Callable[[], Iterator[Parts]]) -> Any:
        """The one answer to a push in several messages, which are made anew for each attempt."""
        method = "ApplyGradientsStream"

        def attempt() -> Any:
            answers = self._invoke(self._push_stream, messages(), long=False)
            try:
                for answer in answers:
                    return answer
                raise ServerError(f"{self.target} ended {method} without an answer")
            finally:
                answers.cancel()

        return self._tried(attempt, method, again=True)

    def start(self, method: str, message: Parts, answer_bytes: int) -> Any:
        """Send a message as `exchange` does; `finish` waits for its answer."""
        try:
            call, data, segment = self._placed(method, message, answer_bytes)
        except grpc.RpcError:  # the server is away: `finish` sends it
            return None
        return self._invoke(call.future, data, long=False), segment

    def finish(self, sent: Any, method: str, message: Parts, answer_bytes: int) -> Any:
        """The answer to what `start` sent; the message is sent again while the server is away."""
        first = iter([] if sent is None else [sent])

        def attempt() -> Any:
            for future, segment in first:
                return self._received(method, message, segment, future.result)
            return self._exchanged(method, message, answer_bytes)

        return self._tried(attempt, method, again=True)

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """The answers to a request that has several."""
        self._check_open()
        try:
            yield from self._method(method)(request, metadata=self._metadata + trace_headers())
        except grpc.RpcError as failed:
            raise self._error(failed, method) from None

    def close(self) -> None:
        """End every call under way. May be called twice."""
        self._closing.set()
        self._channel.close()
        if self._memory is not None and os.getpid() == self._process:  # in a forked one its lock may never be free
            self._memory.clear()

    def _tried(self, attempt: Callable[[], Any], method: str, again: bool) -> Any:
        until = time.monotonic() + (self._connection.retry_s if again else 0)
        wait = _FIRST_WAIT_S
        while True:
            try:
                return attempt()
            except grpc.RpcError as failed:
                pause = wait * random.uniform(0.5, 1.5)
                if self._closing.is_set() or not _is_passing(failed) or time.monotonic() + pause > until:
                    raise self._error(failed, method) from None
                if wait == _FIRST_WAIT_S:
                    _log.warning(
                        "rockbed: %s does not take %s now (%s): trying again for up to %g s",
                        *(self.target, method, failed.details(), self._connection.retry_s),
                    )
            except grpc.FutureCancelledError:
                raise self._closed() from None
            self._closing.wait(pause)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _invoke(self, call: Any, request: Any, long: bool) -> Any:
        self._check_open()
        timeout = None if long else self._connection.deadline_s
        try:
            return call(request, timeout=timeout, metadata=self._metadata + trace_headers())
        except ValueError:  # what gRPC says of a channel that was closed a moment ago
            self._check_open()
            raise

    def _exchanged(self, method: str, message: Parts, answer_bytes: int) -> Any:
        call, data, segment = self._placed(method, message, answer_bytes)
        return self._received(method, message, segment, lambda: self._invoke(call, data, long=False))

    def _placed(self, method: str, message: Parts, answer_bytes: int) -> tuple[Any, bytes, Segment | None]:
        """A call, and what is to travel: a message, or where it is in memory that is shared; and that memory."""
        self._check_open()  # before anything is written: what is shared is the parent's, too, in a forked process
        segment, size = None, size_of(message) + answer_bytes
        if self._memory is not None and size >= shared_memory.WORTH_BYTES:
            segment = self._segment(self._memory, size)
        if segment is None:
            return self._travelling[method], joined(message), None
        return self._lying[method], shared_message(segment.put(message, answer_bytes)), segment

    def _segment(self, memory: SharedMemory, size: int) -> Segment | None:
        try:
            return memory.take(size)
        except grpc.RpcError as failed:
            if _is_passing(failed):
                raise
            why = failed.details()
        except OSError as error:
            why = error.strerror
        level = logging.INFO if memory.rest() else logging.DEBUG
        _log.log(level, "rockbed: no memory is shared with %s (%s): messages travel", self.target, why)
        return None

    def _received(self, method: str, message: Parts, segment: Segment | None, answer: Callable[[], bytes]) -> Any:
        read = _READ[method]
        if segment is None:
            return read(answer())
        try:
            place = read_shared_message(answer())
        except grpc.RpcError as failed:
            code = _trailer(failed, CODE_KEY)
            # another server than the one that it was shared with: one that was started since, an older one perhaps
            if code == UnknownMemory.code or failed.code() is grpc.StatusCode.UNIMPLEMENTED:
                return read(self._invoke(self._travelling[method], joined(message), long=False))
            if code is not None:  # the server itself has refused it, and does nothing more with it
                segment.give()
            raise
        if place.size:
            return read(segment.answer(place))
        segment.give()
        return read(place.message)

    def _share(self, descriptor: int, secret: bytes) -> bytes:
        request = embedding_pb2.ShareMemoryRequest(process=self._process, descriptor=descriptor, secret=secret)
        handle: bytes = self._invoke(self._method("ShareMemory"), request, long=False).memory
        return handle

    def _method(self, name: str) -> Any:
        return next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise self._closed()
        if os.getpid() != self._process:
            raise StorageClosed(
                f"the connection to {self.target} belongs to process {self._process}, this is {os.getpid()}: it cannot "
                "be used across fork(). Connect in the process that uses it"
            )

    def _closed(self) -> StorageClosed:
        return StorageClosed(f"the connection to {self.target} is closed: open another PyStorage")

    def _error(self, failed: Any, method: str) -> RockbedError:
        if self._closing.is_set():
            return self._closed()
        cls = all_errors().get(_trailer(failed, CODE_KEY) or "")
        if cls is not None:
            return cls(failed.details())
        status, said = failed.code(), failed.details() or "no details"
        if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return not_reached(failed, self.target)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{self.target} did not answer {method} within {self._connection.deadline_s} s: send smaller batches, "
                "or raise deadline_s of the connection"
            )
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and said == _TOO_MANY:
            return Overloaded(f"{self.target} refused {method}: {said}")
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(f"{self.target} refused {method}: {said}")
        return ServerError(f"{self.target} answered {method} with {status.name}: {said}")


def _is_passing(failed: Any) -> bool:
    """Whether the call may go well another time."""
    if failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _trailer(failed, CODE_KEY) == Overloaded.code or failed.details() == _TOO_MANY
    return failed.code() in _AGAIN and not is_about_tls(failed)


def _trailer(failed: Any, key: str) -> str | None:
    return next((value for name, value in failed.trailing_metadata() or () if name == key), None)
