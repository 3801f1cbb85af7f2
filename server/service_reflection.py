"""The standard reflection service (grpc.reflection.v1alpha), for grpcurl and clients without our proto files."""

from collections.abc import Iterator
from typing import Any

import grpc

from rockbed.extras import extra
from rockbed.server.service_errors import answered
from rockbed.server.service_health import SERVICES
from rockbed.server.service_queue import Workers

with extra("server"):
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

# A client may keep its stream open and ask now and then: it is not to take a worker from those that serve rows.
_reflections = Workers(4, "reflection")


class ReflectionService(reflection.ReflectionServicer):  # type: ignore[misc]
    """The library's, and `stop` ends the streams that clients keep open."""

    def __init__(self) -> None:
        super().__init__((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._open: set[grpc.ServicerContext] = set()

    def add_to(self, server: grpc.Server) -> None:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)

    def ServerReflectionInfo(  # noqa: N802
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        self._open.add(context)
        try:
            with answered(context):
                yield from super().ServerReflectionInfo(requests, context)
        finally:
            self._open.discard(context)

    ServerReflectionInfo.experimental_thread_pool = _reflections  # type: ignore[attr-defined]

    def stop(self) -> None:
        """End the streams that are open."""
        for context in list(self._open):
            context.cancel()
