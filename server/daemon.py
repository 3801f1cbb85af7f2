"""A server: an engine behind gRPC, on a TCP port or a Unix socket."""

import ipaddress
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from rockbed.config import whole_problems
from rockbed.errors import InvalidConfig, ServerUnavailable
from rockbed.server.admin import AdminService
from rockbed.server.engine import Engine
from rockbed.server.service import EmbeddingService, Limits
from rockbed.server.service_parsing import Parsing
from rockbed.v1 import admin_pb2_grpc, embedding_pb2_grpc

DRAIN_S = 30.0
_LAST_S = 5.0  # for calls that were ended to be gone


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server listens, and what it takes.

    listen: "HOST:PORT" (port 0: any that is free) or "unix:/path/of/a/socket". insecure: whether to listen on other
    addresses than the loopback's, where everyone in the network can read and write. workers: threads that serve;
    concurrent_max: requests under way and waiting, more are refused. checkpoints, exports: directories that clients may
    have copies written into, by name.
    """

    listen: str = "127.0.0.1:7400"
    insecure: bool = False
    workers: int = field(default_factory=lambda: 2 * (os.cpu_count() or 1) + 2)
    concurrent_max: int = 256
    limits: Limits = field(default_factory=Limits)
    checkpoints: Path | None = None
    exports: Path | None = None

    def __post_init__(self) -> None:
        problems = [
            *whole_problems("workers", self.workers, 1, 1024),
            *whole_problems("concurrent_max", self.concurrent_max, self.workers, 1 << 20),
            *whole_problems("message_bytes_max", self.limits.message_bytes_max, 1 << 16, (1 << 31) - 1),
            *whole_problems("keys_max", self.limits.keys_max, 1, 1 << 31),
            *_listen_problems(self.listen, self.insecure),
        ]
        for name in ("checkpoints", "exports"):
            path = getattr(self, name)
            if path is not None and not path.is_dir():
                problems.append(f"{name} is {str(path)!r}, which is no directory: create it first")
        if problems:
            raise InvalidConfig("server: " + "; ".join(problems))


def _listen_problems(listen: str, insecure: bool) -> list[str]:
    if listen.startswith("unix:"):
        return [] if len(listen) > len("unix:") else ["listen is 'unix:' without a path"]
    host, colon, port = listen.rpartition(":")
    if not host or not colon or not port.isdigit() or int(port) > 65_535:
        return [f"listen is {listen!r}, not HOST:PORT or unix:/path"]
    if not insecure and not _is_loopback(host.strip("[]")):
        return [
            f"listen is {listen!r}, which others than this machine can reach, without encryption and without a "
            "password: listen on 127.0.0.1, or say --insecure where the network itself keeps others out"
        ]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Daemon:
    """Serves an engine until `stop`. The engine stays the caller's, who closes it after."""

    def __init__(
        self, engine: Engine, config: ServerConfig, *, interceptors: Sequence[grpc.ServerInterceptor] = ()
    ) -> None:
        """Listen. Raises ServerUnavailable where the address cannot be had."""
        self.config = config
        most = config.limits.message_bytes_max
        self._server = grpc.server(
            ThreadPoolExecutor(config.workers, thread_name_prefix="rockbed-serve"),
            interceptors=(Parsing(), *interceptors),
            maximum_concurrent_rpcs=config.concurrent_max,
            options=(
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", most + (1 << 16)),
                ("grpc.so_reuseport", 0),  # or a second server on the port would take half of the connections
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients keep idle connections alive
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        embedding_pb2_grpc.add_EmbeddingServicer_to_server(EmbeddingService(engine, config.limits), self._server)
        admin = AdminService(engine, config.limits, checkpoints=config.checkpoints, exports=config.exports)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, self._server)
        try:
            self.port = self._server.add_insecure_port(config.listen)
        except RuntimeError as error:
            raise ServerUnavailable(f"cannot listen on {config.listen}: {error}. Is another server there?") from None
        self._server.start()

    @property
    def target(self) -> str:
        """What a client on this machine gives to PyStorage."""
        if self.config.listen.startswith("unix:"):
            return "grpc+unix://" + self.config.listen.removeprefix("unix:")
        return f"grpc://{self.config.listen.rpartition(':')[0]}:{self.port}"

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no more calls, wait for those under way, end those that take longer than drain_s. May be repeated."""
        self._server.stop(drain_s).wait(drain_s + _LAST_S)  # not for ever: what is written back after must not wait

    def wait(self) -> None:
        """Until somebody calls `stop`."""
        self._server.wait_for_termination()
