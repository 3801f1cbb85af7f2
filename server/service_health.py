"""The standard health service (grpc.health.v1), for load balancers, Kubernetes and `rockbed health`."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import grpc

from rockbed.errors import RockbedError
from rockbed.extras import extra
from rockbed.server.service_queue import Workers
from rockbed.server.serving import Serving
from rockbed.v1 import admin_pb2, embedding_pb2

with extra("server"):
    from grpc_health.v1 import health_pb2 as pb
    from grpc_health.v1 import health_pb2_grpc

SERVICES = tuple(
    service.full_name for file in (admin_pb2, embedding_pb2) for service in file.DESCRIPTOR.services_by_name.values()
)
_KNOWN = ("", *SERVICES)  # "" is the server as a whole
_WATCHERS_MAX = 1_000  # they need no token
_TELL_S = 1.0  # that `stop` waits for watchers, of which one may not read what it is sent

# Threads of their own: a server all of whose workers are busy with long calls is healthy and has to say so, and a
# watcher that does not read must not hold up the answers to others.
_checks = Workers(4, "health")
_watches = ThreadPoolExecutor(4, thread_name_prefix="rockbed-watch")


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """SERVING until `stop`, or until the engine cannot go on.

    Not the library's own servicer, which is told a status and keeps it. This one asks the engine; and it ends the
    watches when the server stops, which would otherwise wait for them until the drain is over.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._stopping = False
        self._watchers: set[_Watcher] = set()

    def add_to(self, server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        status = self._status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {request.service[:80]!r}; known: {', '.join(map(repr, _KNOWN))}",
            )
        return pb.HealthCheckResponse(status=status)

    Check.experimental_thread_pool = _checks  # type: ignore[attr-defined]

    def Watch(  # noqa: N802
        self, request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        if len(self._watchers) >= _WATCHERS_MAX:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(f"{_WATCHERS_MAX} watch this server already")
            send(None)
            return
        watcher = _Watcher(context, send, lambda: self._status(request.service))
        self._watchers.add(watcher)
        if not context.add_callback(lambda: self._watchers.discard(watcher)):
            self._watchers.discard(watcher)  # the client has gone already
        watcher.tell(last=self._stopping)

    # gRPC lets go of the thread when the method returns, and the call goes on until `send(None)`.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    Watch.experimental_thread_pool = _watches  # type: ignore[attr-defined]

    def stop(self) -> None:
        """NOT_SERVING from here on; watchers are told so, and their calls end. Returns within about a second."""
        self._stopping = True
        wait([_watches.submit(watcher.tell, last=True) for watcher in list(self._watchers)], _TELL_S)

    def tell(self) -> None:
        """Have watchers told of a change. Does not wait for it."""
        for watcher in list(self._watchers):
            _watches.submit(watcher.tell)

    def _status(self, service: str) -> Any:
        if service not in _KNOWN:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        try:
            self._serving.engine.check_open()
        except RockbedError:
            return pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse.NOT_SERVING if self._stopping else pb.HealthCheckResponse.SERVING


class _Watcher:
    """A call of Watch."""

    def __init__(self, context: grpc.ServicerContext, send: Callable[[Any], None], status: Callable[[], Any]) -> None:
        self._context = context
        self._send = send
        self._status = status
        self._told: Any = None
        self._ended = False
        self._lock = threading.Lock()  # what is sent later is newer

    def tell(self, *, last: bool = False) -> None:
        """Send the status if it is another than the one sent before; last: then end the call."""
        with self._lock:
            if self._ended:
                return
            status = self._status()
            if status != self._told:
                self._told = status
                self._send(pb.HealthCheckResponse(status=status))
            if last:
                self._ended = True
                self._context.set_code(grpc.StatusCode.UNAVAILABLE)
                self._context.set_details("the server is shutting down")
                self._send(None)
