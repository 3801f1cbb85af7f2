"""The address that Prometheus scrapes."""

import logging

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server

from rockbed.errors import ServerUnavailable
from rockbed.server.metrics import StoreMetrics
from rockbed.server.service_metrics import RequestMetrics
from rockbed.server.serving import Serving
from rockbed.server.shared_memory import SharedMemory

_log = logging.getLogger("rockbed.server")


class MetricsEndpoint:
    """Serves the metrics of one daemon over HTTP until `stop`. `requests` is to observe its calls.

    A registry of its own: prometheus_client's global one would mix the daemons of a process.
    """

    def __init__(self, serving: Serving, memory: SharedMemory, listen: str) -> None:
        """listen: "HOST:PORT", port 0: any that is free. Raises ServerUnavailable."""
        self.requests = RequestMetrics()
        self._store = StoreMetrics(serving)
        registry = CollectorRegistry()
        registry.register(self.requests)
        registry.register(self._store)
        shared = Gauge("rockbed_shared_memory_bytes", "Bytes of memory shared with clients.", registry=registry)
        shared.set_function(memory.nbytes)
        ProcessCollector(registry=registry)
        host, _, port = listen.rpartition(":")
        try:
            self._http, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise ServerUnavailable(
                f"cannot serve metrics on {listen}: {error}. Is something else there? Give another metrics_listen"
            ) from None
        self.port: int = self._http.server_port
        _log.info("metrics at http://%s:%d/metrics", host, self.port)

    def stop(self) -> None:
        """Close the port. May be repeated."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._store.detach()
