"""Asking a server whether it serves, by the standard health service. Loads nothing that is slow to load."""

import grpc

from rockbed.client.channel_transport import not_reached, open_channel
from rockbed.client.tls import Tls
from rockbed.errors import DeadlineExceeded, InvalidConfig, ServerError, ServerUnavailable
from rockbed.extras import extra

with extra("server"):
    from grpc_health.v1 import health_pb2 as pb
    from grpc_health.v1 import health_pb2_grpc

_TIMEOUT_MAX_S = 3600.0


def check(target: str, service: str = "", *, timeout_s: float = 3.0, tls: Tls | None = None) -> None:
    """Return if a server, or one of its services by its full name, is SERVING; ask once, for timeout_s seconds at most.

    target: "host:port", "unix:/path", or as for PyStorage. Raises ServerUnavailable where nobody serves, TlsFailed,
    DeadlineExceeded, ServerError where the service is unknown, InvalidConfig.
    """
    if not 0 < timeout_s <= _TIMEOUT_MAX_S:
        raise InvalidConfig(f"timeout is {timeout_s:g} s, not above 0 and at most {_TIMEOUT_MAX_S:g}")
    with open_channel(target, tls or Tls()) as channel:
        try:
            request = pb.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as failed:
            raise _error(failed, target, service, timeout_s) from None
    if answer.status != pb.HealthCheckResponse.SERVING:
        name = pb.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise ServerUnavailable(f"{service or 'the server'} at {target} is {name}: its log says why")


def _error(failed: grpc.RpcError, target: str, service: str, timeout_s: float) -> Exception:
    status, said = failed.code(), failed.details() or "no details"
    if status is grpc.StatusCode.UNAVAILABLE:
        return not_reached(failed, target)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target} did not answer within {timeout_s:g} s")
    return ServerError(f"{target} answered the health check of {service!r} with {status.name}: {said}")
