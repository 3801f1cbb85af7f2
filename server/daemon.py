"""A server: an engine behind gRPC, on TCP ports or Unix sockets."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from rockbed.allocation import keep_large_blocks
from rockbed.errors import ServerUnavailable
from rockbed.server.access import Role, Tokens
from rockbed.server.admin import AdminService
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.daemon_metrics import MetricsEndpoint
from rockbed.server.daemon_tls import credentials
from rockbed.server.engine import Engine
from rockbed.server.kept_batches import KeptBatches
from rockbed.server.service import EmbeddingService
from rockbed.server.service_access import Access
from rockbed.server.service_health import HealthService
from rockbed.server.service_memory import MemoryService, Sharing
from rockbed.server.service_observing import Observer, Observing
from rockbed.server.service_parsing import Parsing
from rockbed.server.service_queue import Queue, Workers
from rockbed.server.service_reflection import ReflectionService
from rockbed.server.serving import Serving
from rockbed.server.shared_memory import SharedMemory
from rockbed.v1 import admin_pb2_grpc

DRAIN_S = 30.0
_LAST_S = 5.0  # for calls that were ended to be gone
_LONG_MAX = 16  # calls like Shrink and Export at a time
_REFUSALS_MAX = 1_000  # under way at a time; more are refused by gRPC itself, without a reason


class Daemon:
    """Serves an engine until `stop`. `engine` stays the caller's, who closes it after."""

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        *,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        """Listen. observers: are told of every call.

        Raises ServerUnavailable where an address cannot be had, InvalidConfig (tokens, certificates).
        """
        keep_large_blocks()
        self.config = config
        self._serving = Serving(engine)
        self._tokens = None if config.tokens is None else Tokens(config.tokens)
        self._memory = SharedMemory(config.limits)
        self._sharing = Sharing(self._memory)
        metrics = config.metrics_listen
        self._metrics = None if metrics is None else MetricsEndpoint(self._serving, self._memory, metrics)
        self._observing = Observing([*observers, *([] if self._metrics is None else [self._metrics.requests])])
        self._interceptors = interceptors
        self._workers = Workers(config.workers, "serve")
        self._streams = Workers(config.streams_max, "stream")
        self._long = Workers(_LONG_MAX, "long")
        self._refusals = ThreadPoolExecutor(1, thread_name_prefix="rockbed-refuse")
        self._health, self._reflection = HealthService(self._serving), ReflectionService()
        self._servers: list[grpc.Server] = []
        self._ports: list[int] = []
        try:
            if config.admin_listen is None:
                self._serve(config.listen, Role.ADMIN)
            else:
                self._serve(config.listen, Role.TRAIN)
                self._serve(config.admin_listen, Role.ADMIN)
        except BaseException:
            self.stop(0)
            raise
        engine.on_failure = self._health.tell
        engine.kept = KeptBatches(config.limits)
        for server in self._servers:
            server.start()

    def _serve(self, listen: str, highest: Role) -> None:
        config, most = self.config, self.config.limits.message_bytes_max
        access = Access(self._tokens, self._refusals, highest)
        parsing = Parsing(self._streams, self._long)
        queue = Queue(self._workers, config.queue_max, self._streams, self._long, self._refusals)
        server = grpc.server(
            self._workers,
            interceptors=(self._observing, access, queue, self._sharing, parsing, *self._interceptors),
            maximum_concurrent_rpcs=config.workers + config.queue_max + config.streams_max + _LONG_MAX + _REFUSALS_MAX,
            options=(
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", most + (1 << 16)),
                ("grpc.so_reuseport", 0),  # or a second server on the port would take half of the connections
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients keep idle connections alive
                ("grpc.keepalive_permit_without_calls", 1),
                # a client whose machine is gone must not keep a thread
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ),
        )
        EmbeddingService(self._serving, config.limits, access).add_to(server)
        MemoryService(self._memory).add_to(server)
        admin = AdminService(
            self._serving, config.limits, access, checkpoints=config.checkpoints, exports=config.exports
        )
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
        self._health.add_to(server)
        self._reflection.add_to(server)
        self._servers.append(server)
        # a socket file has its own permissions, and nothing on it leaves the machine
        secrets = None if listen.startswith("unix:") else credentials(config)
        try:
            port = server.add_insecure_port(listen) if secrets is None else server.add_secure_port(listen, secrets)
        except RuntimeError as error:
            raise ServerUnavailable(f"cannot listen on {listen}: {error}. Is another server there?") from None
        self._ports.append(port)

    @property
    def engine(self) -> Engine:
        """What is served now: another than at first once a checkpoint was restored."""
        return self._serving.engine

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._ports[0]

    @property
    def target(self) -> str:
        """What a client on this machine gives to PyStorage."""
        return self.config.target(self.config.listen, self._ports[0])

    @property
    def admin_target(self) -> str:
        """The same for calls that take the role admin."""
        return (
            self.target
            if self.config.admin_listen is None
            else self.config.target(self.config.admin_listen, self._ports[1])
        )

    @property
    def tokens(self) -> int | None:
        """How many tokens the server knows, None where it asks for none."""
        return None if self._tokens is None else len(self._tokens)

    @property
    def metrics_port(self) -> int | None:
        """Where metrics are served, None if nowhere."""
        return None if self._metrics is None else self._metrics.port

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no more calls, wait for those under way, end those that take longer than drain_s. May be repeated."""
        self._health.stop()  # before calls are refused, so that who watches it sends no more
        stopping = [server.stop(drain_s) for server in self._servers]
        self._reflection.stop()
        for stopped in stopping:
            stopped.wait(drain_s + _LAST_S)  # not for ever: what is written back after must not wait
        for pool in (self._workers, self._streams, self._long, self._refusals):
            pool.shutdown(wait=False)
        self._memory.close()
        if self._metrics is not None:
            self._metrics.stop()
