"""Requests are parsed here and not by gRPC, which calls what it cannot parse an internal error, and on a stream never
lets go of the call: its state stays in memory, and `stop` waits for it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import grpc

from rockbed.errors import InvalidConfig
from rockbed.server.service_errors import answered
from rockbed.server.service_handlers import Around
from rockbed.server.service_observing import received


class Parsing(grpc.ServerInterceptor):  # type: ignore[misc]
    """Gives the handlers behind it bytes to parse; what is no message ends the call with INVALID_ARGUMENT.

    streams: the threads of calls with several requests; long: of those with one, answered by several messages.
    """

    def __init__(self, streams: ThreadPoolExecutor, long: ThreadPoolExecutor) -> None:
        self._streams = streams
        self._long = long
        self._around = Around(self._made)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        return None if handler is None else self._around(handler, details.method)

    def _made(self, handler: Any, method: str) -> Any:
        if getattr(handler.unary_stream, "experimental_non_blocking", False):
            return handler  # it is called otherwise; and of its one request gRPC can let go
        parse, name = handler.request_deserializer, method.lstrip("/")

        def parsed(data: bytes) -> Any:
            try:
                message = parse(data)
            except Exception:  # protobuf's own class for it differs from version to version
                raise InvalidConfig(f"{len(data)} bytes that are no request of {name}: see its .proto file") from None
            received(message, len(data))
            return message

        if handler.request_streaming and handler.response_streaming:

            @wraps(handler.stream_stream)  # which carries the marks that gRPC looks for, as on those below
            def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
                # what cannot be parsed is raised where the handler asks for its next request, and answered there
                yield from handler.stream_stream((parsed(data) for data in requests), context)

            self._mark(stream, self._streams)
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        if handler.response_streaming:

            @wraps(handler.unary_stream)
            def several(data: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
                with answered(context):
                    request = parsed(data)
                yield from handler.unary_stream(request, context)

            self._mark(several, self._long)
            return grpc.unary_stream_rpc_method_handler(several, None, handler.response_serializer)

        @wraps(handler.unary_unary)
        def one(data: bytes, context: grpc.ServicerContext) -> Any:
            with answered(context):
                request = parsed(data)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(one, None, handler.response_serializer)

    def _mark(self, behavior: Any, pool: ThreadPoolExecutor) -> None:
        # gRPC's own name for the threads that serve a call, where a service has not chosen its own
        behavior.experimental_thread_pool = getattr(behavior, "experimental_thread_pool", pool)
