"""A span of OpenTelemetry for every call, child of the caller's where it sent a `traceparent` (W3C Trace Context)."""

import time
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rockbed._version import __version__
from rockbed.server.service_observing import CallDetails, groups_and_keys
from rockbed.wire import CLIENT_KEY

# Of a server's span the others are no errors but answers to what the caller sent: "Semantic conventions for gRPC".
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def provider_from_environment() -> TracerProvider:
    """Sends spans by OTLP over HTTP, as the OTEL_* variables say; the service is called rockbed if they do not."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": "rockbed"}).merge(OTELResourceDetector().detect())
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """An Observer that makes spans. Their attributes are listed in docs/metrics.md."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rockbed", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begun(self, details: CallDetails) -> "_Call":
        """A call begins to be served."""
        metadata = dict(details.metadata)
        attributes = {"rpc.system": "grpc", "rpc.service": details.service, "rpc.method": details.method}
        if CLIENT_KEY in metadata:
            attributes["rockbed.client"] = metadata[CLIENT_KEY]
        waited_s = time.perf_counter() - details.arrived_s
        span = self._tracer.start_span(
            f"{details.service}/{details.method}",
            context=self._propagator.extract(metadata),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=time.time_ns() - int(waited_s * 1e9),
        )
        return _Call(span)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


class _Call:
    __slots__ = ("_groups", "_keys", "_span")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._groups: set[int] = set()
        self._keys = 0

    def received(self, message: Any, size: int) -> None:
        groups, keys = groups_and_keys(message)
        self._groups.update(groups)
        self._keys += keys

    def sent(self, size: int) -> None:
        pass

    def ended(self, code: str, error: str) -> None:
        span = self._span
        if self._groups:
            span.set_attribute("rockbed.group", sorted(self._groups))
            span.set_attribute("rockbed.keys", self._keys)
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code != "OK":
            span.set_attribute("error.type", error or code)
        if code in _FAULTS:
            span.set_status(trace.StatusCode.ERROR, error or code)
        span.end()
