"""What Prometheus gets of a daemon."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from rockbed import Connection, PyStorage
from rockbed.config import StoreConfig
from rockbed.server.daemon import Daemon
from rockbed.server.daemon_config import ServerConfig
from rockbed.server.engine import Engine
from tests.api.helpers import embedding, ones


@contextmanager
def busy_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon with metrics that has served a client; group 0 has rows for keys 0 to 9."""
    engine = Engine(folder / "store", StoreConfig(write_back_interval_s=3600, sweep_rows_s=0))
    daemon = None
    try:
        daemon = Daemon(engine, ServerConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
        with PyStorage(daemon.target, connection=Connection(retry_s=5)) as storage:
            rows = embedding(storage)
            rows.lookup(np.arange(10))
            rows.apply_gradients(np.arange(10), ones(10))
        yield daemon
    finally:
        if daemon is not None:
            daemon.stop(0)
        engine.close()


def scraped(daemon: Daemon) -> dict[str, Metric]:
    """Name as queries have it (without _bucket, _sum and _count for a histogram) -> its family."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in families}


def value(daemon: Daemon, name: str, **labels: str) -> float:
    """A sample, by its whole name: 0 if there is none with such labels."""
    for family in scraped(daemon).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return 0.0
