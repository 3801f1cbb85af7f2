"""Calls whose messages lie in memory that the client shares: what names their place becomes the messages themselves."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import grpc

from rockbed.errors import InvalidConfig, PermissionDenied
from rockbed.server.service_errors import answered
from rockbed.server.service_handlers import Around
from rockbed.server.service_observing import sent_beside
from rockbed.server.shared_memory import SharedMemory, answer_in, is_here, request_in
from rockbed.shared_messages import METHODS, SharedMessage, lies_elsewhere, read_shared_message, shared_message
from rockbed.v1 import embedding_pb2 as pb
from rockbed.wire_format import Parts


class MemoryService:
    """A part of the Embedding service. Thread-safe."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def methods(self) -> dict[str, Any]:
        """Handlers by the names of the methods."""
        read, write = pb.ShareMemoryRequest.FromString, pb.ShareMemoryResponse.SerializeToString
        return {"ShareMemory": grpc.unary_unary_rpc_method_handler(self.ShareMemory, read, write)}

    def ShareMemory(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with answered(context):
            if not is_here(context.peer()):
                raise PermissionDenied(f"{context.peer()} is another machine, with which no memory can be shared")
            return pb.ShareMemoryResponse(memory=self._memory.add(request.process, request.descriptor, request.secret))


class Sharing(grpc.ServerInterceptor):  # type: ignore[misc]
    """Gives the handlers behind it requests where they lie, and writes their answers beside them."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._around = Around(self._made)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        return None if handler is None else self._around(handler, details.method)

    def _made(self, handler: Any, method: str) -> Any:
        if handler.unary_unary is None or method.rpartition("/")[2] not in METHODS:
            return handler

        @wraps(handler.unary_unary)  # which carries the marks that gRPC looks for
        def one(data: bytes, context: grpc.ServicerContext) -> bytes | Parts:
            answer: Parts
            if not lies_elsewhere(data):
                answer = handler.unary_unary(data, context)
                return answer
            with answered(context):
                place = _place(data)
                view = self._memory.view(place)
            answer = handler.unary_unary(request_in(view, place), context)
            lies = answer_in(view, place, answer)
            if lies is None:
                return answer
            sent_beside(lies.size)
            return shared_message(lies)

        return grpc.unary_unary_rpc_method_handler(one, handler.request_deserializer, handler.response_serializer)


def _place(data: bytes) -> SharedMessage:
    try:
        return read_shared_message(data)
    except (ValueError, IndexError, KeyError):
        raise InvalidConfig(f"{len(data)} bytes that are no SharedMessage: see embedding.proto") from None
