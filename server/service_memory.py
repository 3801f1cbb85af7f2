"""The SharedEmbedding service: calls whose messages lie in memory that the client shares."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import grpc

from rockbed.errors import InvalidConfig, PermissionDenied
from rockbed.server.service_errors import answered
from rockbed.server.service_handlers import Around
from rockbed.server.service_observing import sent_beside
from rockbed.server.shared_memory import SharedMemory, answer_in, is_here, request_in
from rockbed.shared_messages import (
    METHODS,
    OF_SERVICE,
    SERVICE,
    SharedMessage,
    read_shared_message,
    sent_message,
    shared_message,
)
from rockbed.v1 import embedding_pb2 as pb
from rockbed.wire_format import Parts

_SHARED, _WHOLE = (f"/{name}/" for name in (SERVICE, OF_SERVICE))


class MemoryService:
    """What a client shares. Thread-safe."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def add_to(self, server: grpc.Server) -> None:
        """Have a server answer the calls that are not of `Sharing`."""
        read, write = pb.ShareMemoryRequest.FromString, pb.ShareMemoryResponse.SerializeToString
        methods = {"ShareMemory": grpc.unary_unary_rpc_method_handler(self.ShareMemory, read, write)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def ShareMemory(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            if not is_here(context.peer()):
                raise PermissionDenied(f"{context.peer()} is another machine, with which no memory can be shared")
            return pb.ShareMemoryResponse(memory=self._memory.add(request.process, request.descriptor, request.secret))


class Sharing(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers calls of SharedEmbedding by those behind it of Embedding: gives them requests where they lie, and writes
    their answers beside them."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._around = Around(self._made)
        self._methods = {_SHARED + name: _WHOLE + name for name in METHODS}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        method = self._methods.get(details.method)
        if method is None:
            return continuation(details)
        return self._around(continuation(details._replace(method=method)), method)

    def _made(self, handler: Any, method: str) -> Any:
        @wraps(handler.unary_unary)  # which carries the marks that gRPC looks for
        def one(data: bytes, context: grpc.ServicerContext) -> bytes | Parts:
            with answered(context):
                place = _place(data)
                view = self._memory.view(place)
            answer: Parts = handler.unary_unary(request_in(view, place), context)
            lies = answer_in(view, place, answer)
            if lies is None:
                return sent_message(answer)
            sent_beside(lies.size)
            return shared_message(lies)

        return grpc.unary_unary_rpc_method_handler(one, handler.request_deserializer, handler.response_serializer)


def _place(data: bytes) -> SharedMessage:
    try:
        return read_shared_message(data)
    except (ValueError, IndexError):
        raise InvalidConfig(f"{len(data)} bytes that are no SharedMessage: see embedding.proto") from None
