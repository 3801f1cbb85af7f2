"""Requests in figures, for Prometheus. docs/metrics.md has them."""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rockbed.server.service_observing import CallDetails, groups_and_keys

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the histogram's buckets."""


@dataclass(slots=True)
class _Method:
    """What happened in calls of one method."""

    in_flight: int = 0
    keys: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by status and error
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    seconds: float = 0.0


class RequestMetrics(Collector):
    """An Observer. Plain numbers under one lock: prometheus_client's own counters have a lock each, and add up to three
    times as long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._methods: dict[tuple[str, str], _Method] = {}

    def begun(self, details: CallDetails) -> "_Call":
        """A call begins to be served."""
        key = (details.service, details.method)
        with self._lock:
            method = self._methods.get(key)
            if method is None:
                method = self._methods[key] = _Method()
            method.in_flight += 1
        return _Call(self._lock, method, details)

    def collect(self) -> list[Metric]:
        """As of one moment."""
        with self._lock:
            return list(self._collected())

    def _collected(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "rockbed_requests",
            "Calls that have ended, by gRPC status and, if it is one of Rockbed's, the code of the error: overloaded "
            "are those refused because too many waited.",
            labels=["method", "code", "error"],
        )
        seconds = HistogramMetricFamily(
            "rockbed_request_duration_seconds",
            "From the arrival of a call, the wait for a thread included, to its answer; of a stream of requests, from "
            "each request to its answer.",
            labels=["method"],
        )
        in_flight = GaugeMetricFamily("rockbed_requests_in_flight", "Calls being served.", labels=["method"])
        keys = CounterMetricFamily("rockbed_request_keys", "Keys in requests.", labels=["method"])
        received = CounterMetricFamily("rockbed_request_bytes", "Bytes of requests.", labels=["method"])
        sent = CounterMetricFamily("rockbed_response_bytes", "Bytes of answers.", labels=["method"])
        bounds = [*map(str, SECONDS), "+Inf"]
        for (service, short), method in self._methods.items():
            name = f"{service.rpartition('.')[2]}/{short}"
            for (code, error), count in method.ends.items():
                requests.add_metric([name, code, error], count)
            buckets = list(zip(bounds, accumulate(method.buckets), strict=True))
            seconds.add_metric([name], buckets, method.seconds)
            in_flight.add_metric([name], method.in_flight)
            keys.add_metric([name], method.keys)
            received.add_metric([name], method.request_bytes)
            sent.add_metric([name], method.response_bytes)
        yield from (requests, seconds, in_flight, keys, received, sent)


class _Call:
    """A call under way."""

    __slots__ = ("_began", "_keys", "_lock", "_method", "_received", "_sent", "_stream")

    def __init__(self, lock: threading.Lock, method: _Method, details: CallDetails) -> None:
        self._lock = lock
        self._method = method
        self._stream = details.stream
        self._began: float | None = None if details.stream else details.arrived_s
        self._keys = self._received = self._sent = 0  # not added to the method's yet

    def received(self, message: Any, size: int) -> None:
        self._keys += groups_and_keys(message)[1]
        self._received += size
        if self._stream:
            self._began = time.perf_counter()

    def sent(self, size: int) -> None:
        self._sent += size
        if self._stream:
            with self._lock:
                self._add()

    def ended(self, code: str, error: str) -> None:
        with self._lock:
            self._add()
            self._method.in_flight -= 1
            self._method.ends[code, error] += 1

    def _add(self) -> None:
        method = self._method
        method.keys += self._keys
        method.request_bytes += self._received
        method.response_bytes += self._sent
        self._keys = self._received = self._sent = 0
        if self._began is not None:
            seconds = time.perf_counter() - self._began
            method.buckets[bisect_left(SECONDS, seconds)] += 1
            method.seconds += seconds
            self._began = None
