"""Calls as metrics and traces see them: which, what was in them, how they ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import grpc

from rockbed.adaptive_messages import AdaptiveRequest
from rockbed.fused_messages import FusedApplyGradientsRequest, FusedLookupRequest
from rockbed.messages import ApplyGradientsRequest, LookupRequest
from rockbed.v1 import embedding_pb2 as pb
from rockbed.wire import CODE_KEY


class CallDetails(NamedTuple):
    """service: "rockbed.v1.Embedding"; method: "Lookup"; metadata: what the client sent with the call; stream: whether
    requests come one after another; arrived_s: time.perf_counter() when the call came, before it waited for a thread.
    """

    service: str
    method: str
    metadata: tuple[tuple[str, Any], ...]
    stream: bool
    arrived_s: float


class Call(Protocol):
    """A call under way. Its methods are called by the thread that serves it."""

    def received(self, message: Any, size: int) -> None:
        """A request of so many bytes, parsed."""

    def sent(self, size: int) -> None:
        """An answer of so many bytes."""

    def ended(self, code: str, error: str) -> None:
        """code: the gRPC status by name; error: the code of one of rockbed.errors, or ""."""


class Observer(Protocol):
    """Wants to know of every call. Thread-safe."""

    def begun(self, details: CallDetails) -> Call:
        """A call begins to be served."""


_calls: ContextVar[tuple[Call, ...]] = ContextVar("rockbed_calls", default=())  # gRPC has a context for each call


def received(message: Any, size: int) -> None:
    """Tell those who observe the call that is served now of a request in it."""
    for call in _calls.get():
        call.received(message, size)


def sent_beside(size: int) -> None:
    """Tell them of an answer that does not travel, or of a part of one."""
    for call in _calls.get():
        call.sent(size)


def groups_and_keys(message: Any) -> tuple[list[int], int]:
    """Which groups a request is about, and how many keys it has."""
    if isinstance(message, ApplyGradientsRequest):
        return [share.group for share in message.groups], sum(len(share.keys) // 8 for share in message.groups)
    if isinstance(message, FusedLookupRequest | FusedApplyGradientsRequest):  # of a handle nothing is known here
        return [each.group for each in message.features], sum(len(each.keys) // 8 for each in message.features)
    if isinstance(message, AdaptiveRequest):
        return [message.static_group, message.exact_group], len(message.keys) // 8
    if isinstance(message, list):  # of LookupMany
        return [each.group for each in message], sum(len(each.keys) // 8 for each in message)
    if isinstance(message, LookupRequest | pb.PrefetchRequest):
        return [message.group], len(message.keys) // 8
    return [], 0


class Observing(grpc.ServerInterceptor):  # type: ignore[misc]
    """The first of the interceptors: what those behind it refuse is seen too. Methods that do not exist are not."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not self._observers:
            return handler
        if getattr(handler.unary_stream, "experimental_non_blocking", False):
            return handler  # a watch of the server's health: it is called otherwise, and may last for ever
        _, service, method = details.method.split("/")
        stream = handler.request_streaming
        call = CallDetails(service, method, details.invocation_metadata, stream, time.perf_counter())
        serialize = handler.response_serializer

        if handler.response_streaming:
            behave = handler.stream_stream if stream else handler.unary_stream

            @wraps(behave)  # which carries the marks that gRPC looks for, as below
            def several(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
                with _Observed(self._observers, call, context) as observed:
                    for answer in behave(request, context):
                        data = serialize(answer)
                        observed.sent(len(data))
                        yield data

            kind = grpc.stream_stream_rpc_method_handler if stream else grpc.unary_stream_rpc_method_handler
            return kind(several, handler.request_deserializer, None)

        @wraps(handler.unary_unary)
        def one(request: Any, context: grpc.ServicerContext) -> bytes:
            with _Observed(self._observers, call, context) as observed:
                data: bytes = serialize(handler.unary_unary(request, context))
                observed.sent(len(data))
                return data

        return grpc.unary_unary_rpc_method_handler(one, handler.request_deserializer, None)


class _Observed:
    """`with`: the block is a call."""

    __slots__ = ("_calls", "_context")

    def __init__(self, observers: Sequence[Observer], details: CallDetails, context: grpc.ServicerContext) -> None:
        self._context = context
        self._calls = tuple(observer.begun(details) for observer in observers)

    def __enter__(self) -> "_Observed":
        _calls.set(self._calls)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code, own = _outcome(self._context, failed=kind is not None)
        for call in self._calls:
            call.ended(code, own)

    def sent(self, size: int) -> None:
        for call in self._calls:
            call.sent(size)


def _outcome(context: grpc.ServicerContext, *, failed: bool) -> tuple[str, str]:
    """The name of the status that the client sees, and the code of the error if it is one of Rockbed's."""
    if not context.is_active():  # whatever came of it, nobody is told any more
        late = context.time_remaining() <= 0
        return "DEADLINE_EXCEEDED" if late else "CANCELLED", ""
    code = context.code()  # also without an exception: gRPC's own services set it
    if code is None:
        return "UNKNOWN" if failed else "OK", ""
    return code.name, dict(context.trailing_metadata() or ()).get(CODE_KEY, "")
