"""What metrics and traces add to a request: `python -m benchmarks.observing`.

Lookups of 1,000 keys over a Unix socket, at daemons with and without, which take turns; the least of many is what the
machine needs when nothing else is in the way.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from rockbed.server.service_tracing import Tracing

KEYS = 1_000
DIM = 16
CALLS = 3_000


def main() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with tempfile.TemporaryDirectory(prefix="rockbed-") as folder, ExitStack() as ends:
        engine = Engine(Path(folder) / "store", StoreConfig())
        ends.callback(engine.close)
        rows: dict[str, PyEmbedding] = {}
        for name in ("nothing", "metrics", "traces"):
            config = ServerConfig(
                listen=f"unix:{folder}/{name}", metrics_listen="127.0.0.1:0" if name == "metrics" else None
            )
            daemon = Daemon(engine, config, observers=[Tracing(provider)] if name == "traces" else [])
            ends.callback(daemon.stop)
            storage = ends.enter_context(PyStorage(daemon.target))
            optimizer, initializer = PyOptimizer(name="adagrad", gamma=0.01), PyInitializer(name="zeros")
            rows[name] = PyEmbedding(storage, optimizer, initializer, DIM, 0)
        keys = np.arange(KEYS)
        taken: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(CALLS):
            for name, embedding in rows.items():
                began = time.perf_counter()
                embedding.lookup(keys)
                taken[name].append(time.perf_counter() - began)
            spans.clear()
        print(f"lookup of {KEYS:,} keys of dim {DIM} over a Unix socket, {CALLS:,} calls, microseconds")
        for name, times in taken.items():
            least, tenth, half = (1e6 * np.quantile(times, at) for at in (0, 0.1, 0.5))
            print(f"  with {name:8} least {least:7.0f}   10% below {tenth:7.0f}   median {half:7.0f}")


if __name__ == "__main__":
    main()
